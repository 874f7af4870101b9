//! Microsoft's points for the connectivity of a site ("Microsoft 365 network connectivity performance score"): linear between
//! published corners.

/// Milliseconds of TCP latency to Exchange Online, and points.
const EXCHANGE: [(f64, f64); 6] = [
    (10.0, 100.0),
    (25.0, 80.0),
    (100.0, 60.0),
    (200.0, 40.0),
    (300.0, 20.0),
    (350.0, 0.0),
];

/// Megabytes per second downloaded from SharePoint, and points.
const SHAREPOINT: [(f64, f64); 6] = [
    (0.0, 0.0),
    (2.0, 20.0),
    (4.0, 40.0),
    (8.0, 60.0),
    (14.0, 80.0),
    (20.0, 100.0),
];

/// Returns Exchange's points for a TCP latency in milliseconds.
pub(super) fn exchange(latency: f64) -> f64 {
    between(&EXCHANGE, latency)
}

/// Returns SharePoint's points for a download rate in megabytes per second.
pub(super) fn sharepoint(rate: f64) -> f64 {
    between(&SHAREPOINT, rate)
}

/// Interpolates between corners whose first numbers grow; beyond the outermost ones their points hold.
fn between(corners: &[(f64, f64)], at: f64) -> f64 {
    for pair in corners.windows(2) {
        let [(from, first), (to, last)] = *pair else {
            continue;
        };
        if at <= from {
            return first;
        }
        if at <= to {
            return first + (last - first) * (at - from) / (to - from);
        }
    }
    corners.last().map_or(0.0, |(_, points)| *points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_those_of_the_published_corners() {
        for (latency, points) in EXCHANGE {
            assert!((exchange(latency) - points).abs() < 1e-9, "{latency}");
        }
        for (rate, points) in SHAREPOINT {
            assert!((sharepoint(rate) - points).abs() < 1e-9, "{rate}");
        }
        for (latency, points) in [
            (0.0, 100.0),
            (17.5, 90.0),
            (62.5, 70.0),
            (325.0, 10.0),
            (900.0, 0.0),
        ] {
            assert!((exchange(latency) - points).abs() < 1e-9, "{latency}");
        }
        for (rate, points) in [(1.0, 10.0), (11.0, 70.0), (17.0, 90.0), (125.0, 100.0)] {
            assert!((sharepoint(rate) - points).abs() < 1e-9, "{rate}");
        }
    }
}
