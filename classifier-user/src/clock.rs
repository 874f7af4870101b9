//! Steps of the system's clock, seen beside the time since boot, which does not jump and counts suspend.
//!
//! Times that something is due at are kept as the system's clock had them, so that they can be shown and outlive a reboot. When
//! that clock is set, they are moved along: what was to end in an hour ends in an hour.

use nix::time::{ClockId, clock_gettime};

use crate::timestamp::Timestamp;

/// Tolerance between two looks: reading both clocks takes time, and each is cut to a second.
const NOISE: i64 = 2;

/// Difference between the system's clock and the time since boot, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    ahead: i64,
}

impl Clock {
    /// Goes on from what another process of the same boot knew, or begins now.
    pub fn resume(ahead: Option<i64>) -> Self {
        Clock {
            ahead: ahead.unwrap_or_else(ahead_now),
        }
    }

    /// Returns what the clock is ahead, for the next process.
    pub fn ahead(self) -> i64 {
        self.ahead
    }

    /// The seconds by which the system's clock was set forward since the last time, or back; nothing if it was not.
    pub fn step(&mut self) -> Option<i64> {
        self.step_to(ahead_now())
    }

    fn step_to(&mut self, now: i64) -> Option<i64> {
        let step = now - self.ahead;
        // Slow changes, as NTP makes them, are followed without anything being moved.
        self.ahead = now;
        (step.abs() > NOISE).then_some(step)
    }
}

fn ahead_now() -> i64 {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| time.tv_sec());
    let now = Timestamp::now().since(Timestamp::default()).as_secs();
    i64::try_from(now).unwrap_or(i64::MAX) - boot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_are_told_of() {
        let mut clock = Clock { ahead: 1000 };
        assert_eq!(clock.step_to(1002), None);
        assert_eq!(clock.step_to(1004), None);
        assert_eq!(clock.step_to(-31_000_000), Some(-31_001_004));
        assert_eq!(clock.step_to(1004), Some(31_001_004));
        assert_eq!(Clock::resume(None).step(), None);
    }
}
