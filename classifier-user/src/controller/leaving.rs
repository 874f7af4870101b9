//! Check that steered packets leave by the egresses, by the packets themselves: what is counted as steered at the LAN must be
//! seen among what the egress interfaces send. Rules of others may clear the mark, route first, or drop.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Controller;
use super::egress::EgressState;
use crate::config::Mode;
use crate::datapath::Count;
use crate::links::DeviceCounts;

/// Time over which packets are counted before the counts are compared.
const WINDOW: Duration = Duration::from_secs(3);
/// So many windows in a row must be bad: a link that has just failed is no rule of others.
const WINDOWS: u32 = 2;
/// Fewer packets in a window say nothing.
const ENOUGH: u64 = 30;

/// Counts at the last comparison.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    at: Option<Instant>,
    steered: Count,
    /// By interface.
    sent: BTreeMap<String, u64>,
    bad: u32,
    /// Problem, if there is one.
    pub(super) alert: Option<String>,
}

impl Leaving {
    /// Compares what was steered and what was sent since the last time, if that is long enough ago. Returns whether there is
    /// an alert that there was not.
    fn compare(&mut self, now: Instant, steered: Count, sent: BTreeMap<String, u64>) -> bool {
        if self.at.is_some_and(|at| now < at + WINDOW) {
            return false;
        }
        let new = steered - self.steered;
        // An interface that has been made anew counts anew.
        let left = self.sent.iter().map(|(interface, before)| {
            let now = sent.get(interface)?;
            now.checked_sub(*before)
        });
        let left: Option<u64> = left.sum();
        let is_first = self.at.is_none() || sent.len() != self.sent.len();
        (self.at, self.steered, self.sent) = (Some(now), steered, sent);
        let left = match left {
            Some(left) if !is_first && new.packets >= ENOUGH => left,
            _ => {
                self.bad = 0;
                return false;
            }
        };
        // Far less, because much is dropped where a link is full.
        if left >= new.bytes / 20 {
            (self.bad, self.alert) = (0, None);
            return false;
        }
        self.bad += 1;
        let is_new = self.bad == WINDOWS;
        if self.bad >= WINDOWS {
            self.alert = Some(format!(
                "steered packets do not leave by their egress: {} bytes were steered in {} s and the egresses sent {left}. Look for \
                 rules of others that change the firewall mark (mangle), drop forwarded packets, or route before ours \
                 (ip rule show); breakout doctor names some",
                new.bytes,
                WINDOW.as_secs()
            ));
        }
        is_new
    }
}

impl Controller {
    /// Compares what is steered with what the egresses send.
    pub(super) fn look_at_leaving(&mut self) {
        let egresses = self.egresses();
        // What XDP redirects is not among what an interface counts, with every driver.
        let is_routed = |egress: &EgressState| egress.config.mode == Mode::Route;
        if !egresses.iter().all(is_routed) || self.ruleset.bypass || self.config.shadow {
            self.leaving = Leaving::default();
            return;
        }
        let (Ok(reasons), Ok(devices)) = (self.datapath.reasons(), DeviceCounts::read()) else {
            return;
        };
        let steered = reasons.iter().filter(|(reason, _)| reason.is_steer());
        let steered = steered.fold(Count::default(), |sum, (_, count)| Count {
            packets: sum.packets.wrapping_add(count.packets),
            bytes: sum.bytes.wrapping_add(count.bytes),
        });
        let mut interfaces: Vec<&str> = (egresses.iter())
            .map(|egress| egress.config.interface.as_str())
            .collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        let sent = interfaces
            .into_iter()
            .filter_map(|interface| Some((interface.to_owned(), devices.sent_bytes(interface)?)));
        let sent = sent.collect();
        if self.leaving.compare(Instant::now(), steered, sent)
            && let Some(alert) = self.leaving.alert.clone()
        {
            tracing::error!("{alert}");
            self.events
                .note("egress", "all", "steered packets are missing", alert);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bad_windows_are_an_alert_and_a_good_one_ends_it() {
        let mut leaving = Leaving::default();
        let start = Instant::now();
        let mut steered = Count::default();
        let mut sent = 0;
        let mut window = |leaving: &mut Leaving, number: u32, packets: u64, bytes_sent: u64| {
            steered.packets += packets;
            steered.bytes += packets * 100;
            sent += bytes_sent;
            let sent = BTreeMap::from([("inet".to_owned(), sent)]);
            leaving.compare(start + WINDOW * number, steered, sent)
        };
        assert!(!window(&mut leaving, 0, 0, 0));
        assert!(!window(&mut leaving, 1, 100, 9_000));
        assert!(!window(&mut leaving, 2, 100, 400) && leaving.alert.is_none());
        assert!(window(&mut leaving, 3, 100, 400) && leaving.alert.is_some());
        assert!(!window(&mut leaving, 4, 100, 400) && leaving.alert.is_some());
        // Too little says nothing.
        assert!(!window(&mut leaving, 5, 5, 0) && leaving.alert.is_some());
        assert!(!window(&mut leaving, 6, 100, 400) && !window(&mut leaving, 7, 5, 0));
        assert!(!window(&mut leaving, 8, 100, 9_900) && leaving.alert.is_none());
        // An interface that has come back has sent nothing yet.
        let sent = BTreeMap::from([("inet".to_owned(), 7)]);
        let steered = Count {
            packets: 10_000,
            bytes: 1_000_000,
        };
        assert!(!leaving.compare(start + WINDOW * 9, steered, sent));
        assert_eq!(leaving.bad, 0);
    }
}
