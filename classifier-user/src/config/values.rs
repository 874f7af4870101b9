//! Kinds of values: one or several, durations, shares and ports.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::list::{PortRange, parse_protocol_and_ports};

/// A value, or an array of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        OneOrMany(Vec::new())
    }
}

impl<T> Deref for OneOrMany<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or an array of values")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|value| vec![value])
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Vec<T>, E> {
                T::deserialize(de::value::I64Deserializer::new(number)).map(|value| vec![value])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<Vec<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(values))
            }
        }

        deserializer
            .deserialize_any(Values(PhantomData))
            .map(OneOrMany)
    }
}

/// A duration, as in `"7 days"` or `"1h 30m"`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Span(pub Duration);

impl Span {
    /// So many hours.
    pub const fn hours(hours: u64) -> Self {
        Span(Duration::from_secs(hours * 3600))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = humantime::parse_duration(&text);
        parsed.map(Span).map_err(|error| {
            format!("\"{text}\" is no duration, as in \"7 days\" or \"30 m\": {error}")
        })
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        humantime::format_duration(span.0).to_string()
    }
}

/// A volume of traffic in a month, in bytes, as in `"200 MiB/month"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct MonthlyVolume(pub u64);

impl MonthlyVolume {
    /// The budget for probes by a metered egress.
    pub const OF_METERED: Self = MonthlyVolume(200 << 20);
}

impl TryFrom<String> for MonthlyVolume {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let volume = text.trim().strip_suffix("/month");
        let parsed = volume.and_then(|volume| volume.trim().parse::<ByteSize>().ok());
        match parsed {
            Some(volume) if volume >= ByteSize::mib(1) => Ok(MonthlyVolume(volume.as_u64())),
            _ => Err(format!(
                "\"{text}\" is no volume of 1 MiB a month or more, as in \"200 MiB/month\""
            )),
        }
    }
}

impl From<MonthlyVolume> for String {
    fn from(volume: MonthlyVolume) -> Self {
        format!("{}/month", ByteSize::b(volume.0))
    }
}

/// A share, as in `"10 %"`, kept in thousandths of a percent.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Share(u32);

/// All of it.
const WHOLE: u32 = 100_000;

impl Share {
    /// So many percent.
    pub const fn percent(percent: u32) -> Self {
        Share(percent * 1000)
    }

    /// The highest of the 65,536 buckets of `breakout_common::condition::bucket` that belong to the share.
    pub fn last_bucket(self) -> u16 {
        let buckets = u64::from(self.0) * 65_536 / u64::from(WHOLE);
        u16::try_from(buckets.saturating_sub(1)).unwrap_or(u16::MAX)
    }

    /// The share as a number from 0 to 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }

    /// Returns whether `part` of `whole` is more than this share.
    pub fn is_exceeded(self, part: u128, whole: u128) -> bool {
        part.saturating_mul(WHOLE.into()) > whole.saturating_mul(self.0.into())
    }
}

impl TryFrom<String> for Share {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.trim().strip_suffix('%').map(str::trim);
        let parsed = number.and_then(|number| number.parse::<f64>().ok());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range has been checked"
        )]
        match parsed {
            Some(percent) if (0.002..=100.0).contains(&percent) => {
                Ok(Share((percent * 1000.0).round() as u32))
            }
            _ => Err(format!(
                "\"{text}\" is no share from 0.002 to 100 percent, as in \"10 %\""
            )),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", f64::from(self.0) / 1000.0)
    }
}

impl From<Share> for String {
    fn from(share: Share) -> Self {
        share.to_string()
    }
}

/// Protocols and ports, as in `"tcp 80,443"`, `"udp 3478-3481"` or `"tcp"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "OneOrMany<String>", into = "Vec<String>")]
#[schemars(with = "Vec<String>")]
pub struct Ports(pub Vec<PortRange>);

impl TryFrom<OneOrMany<String>> for Ports {
    type Error = String;

    fn try_from(texts: OneOrMany<String>) -> Result<Self, String> {
        let mut ranges = Vec::new();
        for text in &texts.0 {
            ranges.extend(parse_protocol_and_ports(text)?);
        }
        if ranges.is_empty() {
            return Err("ports names none; leave the key out for every port".to_owned());
        }
        ranges.sort_unstable();
        Ok(Ports(ranges))
    }
}

impl From<Ports> for Vec<String> {
    fn from(ports: Ports) -> Self {
        ports.0.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_buckets() {
        let share = |text: &str| Share::try_from(text.to_owned());
        assert_eq!(share("100 %").unwrap().last_bucket(), u16::MAX);
        assert_eq!(share("50%").unwrap().last_bucket(), 32_767);
        assert_eq!(share("0.5 %").unwrap().to_string(), "0.5 %");
        assert!(share("30 %").unwrap().is_exceeded(31, 100));
        assert!(!share("30 %").unwrap().is_exceeded(30, 100));
        for bad in ["", "10", "0 %", "101 %", "x %"] {
            assert!(share(bad).unwrap_err().contains("no share"), "{bad}");
        }
    }

    #[test]
    fn ports_have_a_protocol() {
        let ports = |text: &str| Ports::try_from(OneOrMany(vec![text.to_owned()]));
        assert_eq!(
            Vec::from(ports("tcp 80, 443").unwrap()),
            ["TCP 80", "TCP 443"]
        );
        assert_eq!(
            Vec::from(ports("UDP 3478-3481").unwrap()),
            ["UDP 3478-3481"]
        );
        assert_eq!(Vec::from(ports("tcp").unwrap()), ["TCP 0-65535"]);
        assert!(ports("443").unwrap_err().contains("tcp or udp"));
        assert!(ports("tcp http").is_err());
    }
}
