//! Verdicts on what was found at a front door.

use super::door::{Door, Refused};
use super::outcome::{Outcome, Test, Verdict};
use super::path::Path;
use super::tcp;
use crate::health::Target;

/// The headers of IP and TCP, without options, in bytes.
const HEADERS: [u32; 2] = [40, 60];
/// The longest packet that Microsoft's front doors announce room for, in bytes: their segments have 1440 bytes over IPv4.
const AT_FRONT_DOORS: u32 = 1480;

/// Judges what was found at a front door.
pub(super) fn door_outcomes(path: &Path, door: &Target, visited: &Door) -> Vec<Outcome> {
    let told = |test, verdict, found: String| {
        Outcome::told(&path.name, test, Some(&door.host), verdict, found)
    };
    let mut outcomes = vec![match &visited.latency {
        Ok(latency) => Outcome::measured(&path.name, Test::TcpLatency, &door.host, *latency),
        Err(why) => told(Test::TcpLatency, Verdict::Fail, why.clone()),
    }];
    match &visited.answer {
        None => {}
        Some(Err(Refused::Tls(why))) => outcomes.push(told(Test::Tls, Verdict::Fail, why.clone())),
        Some(answer) => {
            outcomes.push(told(
                Test::Tls,
                Verdict::Pass,
                "its own certificate".to_owned(),
            ));
            outcomes.push(match answer {
                Ok(answer) => match answer.proxy() {
                    Some(proxy) => told(Test::Http, Verdict::Fail, proxy),
                    None => told(
                        Test::Http,
                        Verdict::Pass,
                        format!("status {}", answer.status),
                    ),
                },
                Err(Refused::Http(why) | Refused::Tls(why)) => {
                    told(Test::Http, Verdict::Fail, why.clone())
                }
            });
        }
    }
    if let (Some(agreed), Some(mtu)) = (visited.agreed, path.mtu) {
        outcomes.extend(
            tcp_outcomes(agreed, mtu, path.v6)
                .map(|(test, verdict, found)| told(test, verdict, found)),
        );
    }
    outcomes
}

/// Judges what a connection has agreed on over an interface of this MTU.
fn tcp_outcomes(agreed: tcp::Agreed, mtu: u32, v6: bool) -> [(Test, Verdict, String); 2] {
    let expected = mtu
        .min(AT_FRONT_DOORS)
        .saturating_sub(HEADERS[usize::from(v6)]);
    let segment = if agreed.segment < expected {
        (
            Verdict::Warning,
            format!("{} bytes instead of {expected}", agreed.segment),
        )
    } else {
        (Verdict::Pass, format!("{} bytes", agreed.segment))
    };
    let missing: Vec<&str> = [
        (agreed.has_selective_acks, "selective acknowledgements"),
        (agreed.has_window_scaling, "window scaling"),
    ]
    .into_iter()
    .filter_map(|(is_there, name)| (!is_there).then_some(name))
    .collect();
    let options = if missing.is_empty() {
        (Verdict::Pass, "as asked for".to_owned())
    } else {
        (
            Verdict::Warning,
            format!("without {}", missing.join(" and ")),
        )
    };
    [
        (Test::SegmentSize, segment.0, segment.1),
        (Test::TcpOptions, options.0, options.1),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tcp::Agreed;
    use super::*;

    #[test]
    fn devices_that_change_syns_are_told() {
        let whole = Agreed {
            segment: 1460,
            has_selective_acks: true,
            has_window_scaling: true,
        };
        let verdicts =
            |agreed, mtu, v6| tcp_outcomes(agreed, mtu, v6).map(|(_, verdict, _)| verdict);
        assert_eq!(verdicts(whole, 1500, false), [Verdict::Pass; 2]);
        let pppoe = Agreed {
            segment: 1452,
            ..whole
        };
        assert_eq!(
            verdicts(pppoe, 1492, false),
            [Verdict::Pass; 2],
            "the link's own MTU"
        );
        let theirs = Agreed {
            segment: 1440,
            ..whole
        };
        assert_eq!(verdicts(theirs, 1500, false), [Verdict::Pass; 2]);
        let lowered = Agreed {
            segment: 1400,
            ..whole
        };
        assert_eq!(verdicts(lowered, 1500, false)[0], Verdict::Warning);
        let six = Agreed {
            segment: 1440,
            ..whole
        };
        assert_eq!(verdicts(six, 9000, true), [Verdict::Pass; 2]);
        let plain = Agreed {
            has_selective_acks: false,
            ..whole
        };
        assert_eq!(verdicts(plain, 1500, false)[1], Verdict::Warning);
    }
}
