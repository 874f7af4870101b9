//! The clock by which the data path tells how long a flow has been silent: the kernel's jiffies, in ticks of about two
//! seconds.

use std::time::Duration;

use breakout_common::flows::LONGEST;
use nix::time::{ClockId, clock_getres, clock_gettime};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// Jiffies at boot, before the kernel's first tick: five minutes before their lower half overflows (Linux,
/// `INITIAL_JIFFIES`).
const BEFORE_OVERFLOW: u64 = 300;
/// Tick rate that is assumed where the kernel does not tell its own.
const USUAL_HZ: u64 = 250;

/// Clock of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Jiffies a second.
    hz: u64,
}

impl Clock {
    /// This kernel's.
    pub fn of_kernel() -> Self {
        // The coarse clocks go on with each jiffy.
        let jiffy = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from);
        let jiffy = jiffy.map_or(0, |jiffy| u64::try_from(jiffy.as_nanos()).unwrap_or(0));
        Clock {
            hz: (SECOND + jiffy / 2).checked_div(jiffy).unwrap_or(USUAL_HZ),
        }
    }

    /// By how many bits jiffies are shifted down to make a tick: at most two and a half seconds, and more than half of
    /// that.
    pub fn shift(self) -> u8 {
        let bits = (self.hz * 5 / 2).max(1).ilog2();
        u8::try_from(bits).unwrap_or(u8::MAX)
    }

    /// The time now. It may be a tick away from what the data path reads at the same time, because the two clocks begin in
    /// the middle of a boot.
    pub fn now(self) -> u32 {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.at(now)
    }

    /// The time so long after boot.
    fn at(self, since_boot: Duration) -> u32 {
        let initial = (1 << 32) - BEFORE_OVERFLOW * self.hz;
        let ticks = (u128::from(initial) + self.jiffies(since_boot)) >> self.shift();
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    fn jiffies(self, span: Duration) -> u128 {
        span.as_nanos() * u128::from(self.hz) / u128::from(SECOND)
    }

    /// A time span in ticks: one at least, for a flow that goes on is not silent, and no more than can be told.
    pub fn ticks(self, span: Duration) -> u32 {
        let ticks = self.jiffies(span).div_ceil(1 << self.shift());
        u32::try_from(ticks).unwrap_or(u32::MAX).clamp(1, LONGEST)
    }

    /// So many ticks, in seconds.
    pub fn seconds(self, ticks: u32) -> u32 {
        let jiffies = u64::from(ticks) << self.shift();
        u32::try_from(jiffies / self.hz).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_about_two_seconds_with_every_rate_of_jiffies() {
        for (hz, shift) in [(100, 7), (250, 9), (300, 9), (1000, 11)] {
            let clock = Clock { hz };
            assert_eq!(clock.shift(), shift);
            let hour = clock.ticks(Duration::from_secs(3600));
            assert!((1440..=2880).contains(&hour), "{hz}: {hour}");
            assert!((3600..=3602).contains(&clock.seconds(hour)), "{hz}");
            let later = clock.at(Duration::from_secs(90_000 + 3600));
            let passed = later - clock.at(Duration::from_secs(90_000));
            assert!(passed.abs_diff(hour) <= 1, "{hz}: {passed}, not {hour}");
        }
    }
}
