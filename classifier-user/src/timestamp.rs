//! Points in time, to the second: in files and answers as RFC 3339 writes them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Seconds since 1970-01-01 00:00 UTC.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Timestamp(u64);

impl Timestamp {
    /// Now, by the system's clock.
    pub fn now() -> Self {
        Timestamp::from(SystemTime::now()).moved_by(faked())
    }

    /// The same time once the clock was set by so many seconds.
    #[must_use]
    pub const fn moved_by(self, seconds: i64) -> Self {
        Timestamp(self.0.saturating_add_signed(seconds))
    }

    /// This many seconds after 1970-01-01 00:00 UTC.
    pub const fn from_seconds(seconds: u64) -> Self {
        Timestamp(seconds)
    }

    /// The start of a day that is written as eight digits, as the web service does: `20260331`.
    pub fn from_day(text: &str) -> Option<Self> {
        if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let text = format!("{}-{}-{}T00:00:00Z", &text[..4], &text[4..6], &text[6..]);
        text.parse().ok()
    }

    /// The time that has passed since an earlier time; zero if that is later.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    /// A later time.
    #[must_use]
    pub const fn after(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_add(duration.as_secs()))
    }
}

/// By how much a test has set the clock: the seconds in the file that `BREAKOUT_CLOCK` names. A release has none of it.
fn faked() -> i64 {
    #[cfg(debug_assertions)]
    if let Some(file) = std::env::var_os("BREAKOUT_CLOCK") {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        return text.trim().parse().unwrap_or_default();
    }
    0
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Timestamp(
            time.duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        )
    }
}

impl FromStr for Timestamp {
    type Err = humantime::TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339(text).map(Timestamp::from)
    }
}

impl TryFrom<String> for Timestamp {
    type Error = humantime::TimestampError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last second of the year 9999, behind which there is no such text.
        let seconds = self.0.min(253_402_300_799);
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        f.pad(&humantime::format_rfc3339_seconds(time).to_string())
    }
}

/// A duration for people, in its two largest units.
pub fn for_people(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let rounded = match seconds {
        0..3_600 => seconds,
        3_600..86_400 => seconds / 60 * 60,
        _ => seconds / 3_600 * 3_600,
    };
    let (days, rest) = (rounded / 86_400, rounded % 86_400);
    let parts = [
        (days, "d"),
        (rest / 3_600, "h"),
        (rest % 3_600 / 60, "min"),
        (rest % 60, "s"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let text: Vec<String> = parts
        .map(|(count, unit)| format!("{count} {unit}"))
        .collect();
    if text.is_empty() {
        return "0 s".to_owned();
    }
    text.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_their_text() {
        let time: Timestamp = "2026-03-31T12:30:05Z".parse().unwrap();
        assert_eq!(time.to_string(), "2026-03-31T12:30:05Z");
        let day = Timestamp::from_day("20260331").unwrap();
        assert_eq!(
            time.since(day),
            Duration::from_secs(12 * 3600 + 30 * 60 + 5)
        );
        assert_eq!(day.since(time), Duration::ZERO);
        assert_eq!(Timestamp::from_day("2026-3-31"), None);
        assert_eq!(Timestamp::from_day("20261331"), None);
        assert!(Timestamp(u64::MAX).to_string().starts_with("9999"));
    }

    #[test]
    fn durations_for_people() {
        let text = |seconds| for_people(Duration::from_secs(seconds));
        assert_eq!(text(0), "0 s");
        assert_eq!(text(90), "1 min 30 s");
        assert_eq!(text(3_700), "1 h 1 min");
        assert_eq!(text(10 * 86_400 + 3_700), "10 d 1 h");
    }
}
