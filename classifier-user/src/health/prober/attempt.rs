//! One try to reach a target, with its route, in its time.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::timeout;

use super::super::Target;
use super::super::bound::Bound;
use super::super::peer::Trust;
use super::super::probe::{Answered, Failure, probe};
use super::super::routes::ProbeRoutes;
use super::super::stun::Method;

/// For how long an answer to a quick probe is heard that was taken for lost: longer than most queues of modems and mobile networks.
const LATE: Duration = Duration::from_secs(5);

/// Outcome of a probe.
pub(super) struct Outcome {
    /// The target's.
    pub(super) index: usize,
    /// True if the target was silent when it was sent.
    pub(super) was_silent: bool,
    /// True if it had been taken for lost.
    pub(super) is_late: bool,
    pub(super) answer: Result<Answered, Failure>,
}

/// A probe that is to be sent.
pub(super) struct Attempt {
    /// The target's.
    pub(super) index: usize,
    pub(super) target: Target,
    pub(super) address: SocketAddr,
    pub(super) method: Option<Method>,
    pub(super) bound: Bound,
    pub(super) trust: Option<Trust>,
    /// By which a route is made for it first, if it needs one.
    pub(super) routes: Option<ProbeRoutes>,
    /// Time that the answer may take.
    pub(super) patience: Duration,
    pub(super) was_silent: bool,
}

impl Attempt {
    /// Sends it, and tells what it came to: of a quick one also when it is answered late.
    pub(super) async fn run(self, outcomes: UnboundedSender<Outcome>) {
        let tell = |answer, is_late| {
            // Who does not listen any more has left the path.
            let _ = outcomes.send(Outcome {
                index: self.index,
                was_silent: self.was_silent,
                is_late,
                answer,
            });
        };
        let led = match &self.routes {
            Some(routes) => routes.lead(self.address.ip()).await,
            None => Ok(()),
        };
        if let Err(error) = led {
            return tell(Err(Failure::Silence(format!("{error:#}"))), false);
        }
        let (patience, trust) = (self.patience, self.trust.as_ref());
        let attempt = probe(
            &self.target,
            self.address,
            self.method,
            &self.bound,
            trust,
            patience,
        );
        tokio::pin!(attempt);
        match timeout(patience, &mut attempt).await {
            Ok(answer) => tell(answer, false),
            Err(_) => {
                let why = format!("no answer within {} ms", patience.as_millis());
                tell(Err(Failure::Silence(why)), false);
                let late = match self.target.kind.is_quick() {
                    true => LATE.saturating_sub(patience),
                    false => Duration::ZERO,
                };
                if let Ok(Ok(answered)) = timeout(late, attempt).await {
                    tell(Ok(answered), true);
                }
            }
        }
    }
}
