//! Schedule of requests to the web service.
//!
//! Microsoft asks for one `/version` an hour at most, and for an hour's wait after 429. A service that has not been
//! reached at all is tried again sooner, because it did not notice.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::FetchError;
use crate::timestamp::Timestamp;

const HOUR: Duration = Duration::from_secs(3600);
/// The wait after the first attempt that has not reached the service; it doubles from then on.
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is believed.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Past attempts, and the time of the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Source, and the query that it is asked.
    #[serde(default)]
    pub source: String,
    /// The first time that it was looked at.
    pub since: Option<Timestamp>,
    /// The last attempt.
    pub last_attempt: Option<Timestamp>,
    /// The last attempt that succeeded: as of then the list is known to be the newest.
    pub last_success: Option<Timestamp>,
    /// Attempts that have failed since.
    pub failures: u32,
    /// Reason why the last one failed, if it did.
    pub last_error: Option<String>,
    /// Time at which the next one is due.
    pub next: Option<Timestamp>,
    /// Until when the service has asked to be left alone.
    pub not_before: Option<Timestamp>,
}

impl Schedule {
    /// Returns whether an attempt is due. A clock that was set back to before the last attempt does not delay it.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let is_set_back = self.last_attempt.is_some_and(|last| last > now);
        is_set_back || self.next.is_none_or(|next| next <= now) && self.must_wait(now).is_none()
    }

    /// Until when the service has asked to be left alone, if it has.
    pub fn must_wait(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.not_before.filter(|until| *until > now);
        until.filter(|_| self.last_attempt.is_none_or(|last| last <= now))
    }

    /// Notes an attempt that succeeded. `jitter` is between 0 and 1.
    pub fn succeeded(&mut self, now: Timestamp, interval: Duration, jitter: f64) {
        self.last_attempt = Some(now);
        self.last_success = Some(now);
        self.failures = 0;
        self.last_error = None;
        self.not_before = None;
        self.next = Some(now.after(interval + interval.mul_f64(jitter / 10.0)));
    }

    /// Notes an attempt that failed. `jitter` is between 0 and 1.
    pub fn failed(&mut self, now: Timestamp, error: &FetchError, interval: Duration, jitter: f64) {
        self.last_attempt = Some(now);
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(error.to_string());
        let wait = match error.wait() {
            Some(asked) => {
                let wait = asked.clamp(HOUR.min(interval), LONGEST_WAIT);
                self.not_before = Some(now.after(wait));
                wait
            }
            None if error.is_refused_password() => LONGEST_WAIT,
            None if error.was_noticed() => interval,
            None => {
                let doublings = self.failures.saturating_sub(1).min(16);
                FIRST_RETRY.saturating_mul(1 << doublings).min(interval)
            }
        };
        self.next = Some(now.after(wait + wait.mul_f64(jitter / 10.0)));
    }

    /// Moves along what is due after the clock was set.
    pub fn move_by(&mut self, step: i64) {
        let times = [
            &mut self.since,
            &mut self.last_attempt,
            &mut self.last_success,
            &mut self.next,
            &mut self.not_before,
        ];
        for time in times {
            *time = time.map(|time| time.moved_by(step));
        }
    }

    /// Returns how long it has not been known whether the list is the newest.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        let since = self.last_success.or(self.since)?;
        Some(now.since(since))
    }
}
