//! A stream of packets like those of a call, each of which a relay answers: loss, latency, jitter and order.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::outcome::milliseconds;
use crate::health::{Bound, Method, Request};

/// The interval of packets of speech.
const INTERVAL: Duration = Duration::from_millis(20);
/// The bytes of a request: as many as 20 ms of speech have with their RTP header.
const LENGTH: usize = 172;
/// The time in which loss comes in bursts, in packets: 200 ms.
const BURST: usize = 10;
/// The time for which answers to the last packets are awaited.
const LAST: Duration = Duration::from_secs(1);
/// The time that a relay has to answer at all.
const PATIENCE: Duration = Duration::from_secs(3);

/// Figures of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// The mean latency, there and back, in milliseconds; none without answers.
    pub(super) latency: Option<f64>,
    /// Packets without an answer, in percent.
    pub(super) loss: f64,
    /// The same in the worst 200 ms.
    pub(super) burst: f64,
    /// The mean difference between the latencies of neighbours, in milliseconds; none without two answers in a row.
    pub(super) jitter: Option<f64>,
    /// Answers behind one to a later packet, in percent; a single one does not count. None without answers.
    pub(super) reordering: Option<f64>,
}

/// Asks a relay in each way until it answers. Returns a way that it answers, and the address that it says the requests come from, if it does:
/// answers to bindings tell that.
pub(super) async fn reach(
    bound: &Bound,
    relay: SocketAddr,
) -> io::Result<(Method, Option<SocketAddr>)> {
    let socket = bound.datagrams(relay)?;
    let deadline = Instant::now() + PATIENCE;
    let mut message = [0; 1500];
    let (mut requests, mut found) = (Vec::new(), None);
    while Instant::now() < deadline {
        for method in [Method::Allocate, Method::Binding] {
            let request = Request::new(method);
            socket.send(&request.bytes).await?;
            requests.push(request);
        }
        let turn = Instant::now() + PATIENCE / 4;
        while let Ok(length) = timeout(turn - Instant::now(), socket.recv(&mut message)).await {
            let message = &message[..length?];
            let answered = requests
                .iter()
                .find(|request| request.answer(message).is_some());
            let Some(request) = answered else { continue };
            let mapped = request.mapped(message);
            found = Some((request.method, mapped));
            if mapped.is_some() {
                break;
            }
        }
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
}

/// Sends a stream for a time, and waits for the answers to its last packets.
pub(super) async fn stream(
    bound: &Bound,
    relay: SocketAddr,
    method: Method,
    duration: Duration,
) -> io::Result<Figures> {
    let socket = bound.datagrams(relay)?;
    let count = duration.as_millis() / INTERVAL.as_millis();
    let count = usize::try_from(count).unwrap_or(usize::MAX).max(1);
    let mut sent: Vec<(Request, Instant)> = Vec::with_capacity(count);
    let mut answered = Vec::with_capacity(count);
    let mut message = [0; 1500];
    let mut next = Instant::now();
    let mut end = next + LAST;
    while answered.len() < count {
        let due = if sent.len() < count { next } else { end };
        tokio::select! {
            () = sleep_until(due) => {
                if sent.len() == count {
                    break;
                }
                let request = Request::new(method).padded(LENGTH);
                // A packet that the kernel refuses is lost like any other.
                let _ = socket.send(&request.bytes).await;
                sent.push((request, Instant::now()));
                next += INTERVAL;
                end = Instant::now() + LAST;
            }
            length = socket.recv(&mut message) => {
                let Ok(length) = length else {
                    continue;
                };
                let message = &message[..length];
                let asked = sent.iter().rposition(|(request, _)| request.answer(message).is_some());
                if let Some(asked) = asked && !answered.iter().any(|(other, _)| *other == asked) {
                    answered.push((asked, sent[asked].1.elapsed()));
                }
            }
        }
    }
    Ok(figures(sent.len(), &answered))
}

/// Computes the figures of a stream of so many packets from the answers in the order in which they came: the number of the packet that
/// each is for, and how long it took.
fn figures(sent: usize, answered: &[(usize, Duration)]) -> Figures {
    let mut took = vec![None; sent];
    let (mut latest, mut late) = (0, 0_usize);
    for &(number, time) in answered {
        late += usize::from(number < latest);
        latest = latest.max(number);
        took[number] = Some(milliseconds(time));
    }
    let share = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    let lost = |part: &[Option<f64>]| {
        share(
            part.iter().filter(|took| took.is_none()).count(),
            part.len(),
        )
    };
    let mean = |values: &[f64]| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let latencies: Vec<f64> = took.iter().flatten().copied().collect();
    let neighbours = took
        .windows(2)
        .filter_map(|pair| Some((pair[1]? - pair[0]?).abs()));
    let neighbours: Vec<f64> = neighbours.collect();
    Figures {
        latency: mean(&latencies),
        loss: lost(&took),
        burst: took
            .windows(BURST.min(sent.max(1)))
            .map(lost)
            .fold(0.0, f64::max),
        jitter: mean(&neighbours),
        reordering: (!answered.is_empty())
            .then(|| share(if late > 1 { late } else { 0 }, answered.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(figure: Option<f64>, expected: f64) -> bool {
        figure.is_some_and(|figure| (figure - expected).abs() < 1e-9)
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn figures_are_those_of_the_packets() {
        let even: Vec<_> = (0..100).map(|number| (number, ms(30))).collect();
        let clean = figures(100, &even);
        assert_eq!(
            (clean.loss, clean.burst, clean.reordering),
            (0.0, 0.0, Some(0.0))
        );
        assert!(is(clean.latency, 30.0) && is(clean.jitter, 0.0));

        // Two of a hundred are lost, side by side: a fifth of 200 ms.
        let holed: Vec<_> = even
            .iter()
            .copied()
            .filter(|(number, _)| !(40..42).contains(number))
            .collect();
        let lossy = figures(100, &holed);
        assert!((lossy.loss - 2.0).abs() < 1e-9 && (lossy.burst - 20.0).abs() < 1e-9);

        // Latencies that take turns.
        let uneven: Vec<_> = (0..100)
            .map(|number| (number, ms(if number % 2 == 0 { 10 } else { 50 })))
            .collect();
        assert!(is(figures(100, &uneven).jitter, 40.0));

        // One answer comes behind the next one, then two.
        let mut swapped = even;
        swapped.swap(10, 11);
        assert!(is(figures(100, &swapped).reordering, 0.0));
        swapped.swap(20, 21);
        assert!(is(figures(100, &swapped).reordering, 2.0));
        let silent = figures(100, &[]);
        assert_eq!((silent.loss, silent.burst), (100.0, 100.0));
        assert_eq!(
            (silent.latency, silent.jitter, silent.reordering),
            (None, None, None)
        );
    }
}
