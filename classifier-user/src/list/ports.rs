//! Port lists as the web service writes them.

use breakout_common::table::Transport;

use super::PortRange;
use crate::plain::short;

/// Parses `"443,80"`, `"80, 443"`, `"3478-3481"` or `""` into sorted ranges; adjacent and
/// overlapping ones become one.
///
/// # Errors
///
/// Names the part that is no port or range from 1 to 65535.
pub fn parse_ports(transport: Transport, text: &str) -> Result<Vec<PortRange>, String> {
    let mut ranges = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(parse_range)
        .collect::<Result<Vec<_>, _>>()?;
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if u32::from(first) <= u32::from(previous.last) + 1 => {
                previous.last = previous.last.max(last);
            }
            _ => merged.push(PortRange {
                transport,
                first,
                last,
            }),
        }
    }
    Ok(merged)
}

/// Parses `"tcp 80,443"`, `"udp 3478-3481"`, or a protocol alone for all of its ports.
///
/// # Errors
///
/// Says what is wrong with the text.
pub fn parse_protocol_and_ports(text: &str) -> Result<Vec<PortRange>, String> {
    let (protocol, ports) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let transport = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => {
            return Err(format!(
                "\"{text}\" does not start with tcp or udp, as in \"tcp 80,443\""
            ));
        }
    };
    match ports.trim() {
        "" | "0-65535" => Ok(vec![PortRange {
            transport,
            first: 0,
            last: u16::MAX,
        }]),
        ports => parse_ports(transport, ports),
    }
}

fn parse_range(part: &str) -> Result<(u16, u16), String> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let port = |text: &str| {
        let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = Some(text.trim()).filter(is_number);
        match number.and_then(|text| text.parse::<u16>().ok()) {
            None | Some(0) => Err(format!(
                "\"{}\" is no port or range of ports from 1 to 65535",
                short(part, 40)
            )),
            Some(port) => Ok(port),
        }
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("\"{part}\" is a range that ends before it starts"));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Result<Vec<(u16, u16)>, String> {
        let ranges = parse_ports(Transport::Tcp, text)?;
        Ok(ranges
            .iter()
            .map(|range| (range.first, range.last))
            .collect())
    }

    #[test]
    fn everything_the_service_has_sent() {
        assert_eq!(tcp("443,80"), Ok(vec![(80, 80), (443, 443)]));
        assert_eq!(tcp("80, 443"), Ok(vec![(80, 80), (443, 443)]));
        assert_eq!(
            tcp("143, 587, 993, 995"),
            Ok(vec![(143, 143), (587, 587), (993, 993), (995, 995)])
        );
        assert_eq!(tcp(""), Ok(vec![]));
        assert_eq!(tcp("3478,3479,3480,3481"), Ok(vec![(3478, 3481)]));
        assert_eq!(
            tcp("50000-59999, 3478-3481"),
            Ok(vec![(3478, 3481), (50000, 59999)])
        );
        assert_eq!(tcp("1-65535,80"), Ok(vec![(1, 65535)]));
        assert_eq!(tcp("65535"), Ok(vec![(65535, 65535)]));
    }

    #[test]
    fn what_is_no_port_is_named() {
        for bad in ["0", "65536", "http", "443;80", "90-80", "-", "1-2-3"] {
            let error = tcp(bad).unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
    }
}
