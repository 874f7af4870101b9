//! Our nftables table: made as the configuration wants it, and made again if somebody removes it, as a firewall does that begins
//! with `flush ruleset`.

use anyhow::Result;
use tokio::task::JoinSet;

use super::Controller;
use super::egress::EgressState;
use crate::config::Routing;
use crate::nat::{Listing, NatEgress, NatPlan};
use crate::tool;

impl Controller {
    /// The table that there should be for these egresses.
    pub(super) fn nat(&self, egresses: &[EgressState]) -> NatPlan {
        let wanting = egresses.iter().filter_map(|egress| {
            let (masquerade, skip_dnat) =
                (egress.config.is_masqueraded(), egress.config.skips_dnat());
            (masquerade || skip_dnat).then(|| NatEgress {
                interface: egress.config.interface.clone(),
                mark: egress.mark,
                masquerade,
                skip_dnat,
            })
        });
        nat_plan(&self.config.routing, wanting.collect())
    }

    /// Makes the table as the configuration wants it; none if no egress wants anything of it.
    pub(super) async fn apply_nat(&mut self, egresses: &[EgressState]) -> Result<()> {
        self.nat_keeper.stop().await;
        let plan = self.nat(egresses);
        if !self.persistent.nat && plan.egresses.is_empty() {
            return Ok(());
        }
        self.persistent.nat = true;
        self.save("after a crash, the nftables table may have to be removed by hand");
        // Nothing waits for a controller that has not installed anything yet.
        let limit = match self.datapath.live_table() {
            Ok(_) => tool::LIMIT,
            Err(_) => tool::LIMIT_AT_START,
        };
        plan.apply(limit).await?;
        self.nat_keeper.note_made(&plan).await;
        Ok(())
    }

    /// Has it looked whether the table is as it was made, beside everything else, and made again if somebody has changed it.
    pub(super) fn keep_nat(&mut self) {
        let plan = self.nat(&self.egresses());
        self.nat_keeper.look(plan);
    }

    /// Takes in what came of that.
    pub(super) fn kept_nat(&mut self, outcome: Result<Looked>) {
        match outcome {
            Ok(Looked::AsMade) => {}
            Ok(Looked::Untranslated(count)) => {
                let what = "were not sent: connection tracking had not translated them";
                tracing::warn!("{count} steered packets {what}");
                self.events
                    .note("nat", format!("{count} packets"), "dropped", what);
                self.translation.look_at_all_in_turn();
            }
            Ok(Looked::MadeAgain(subject)) => {
                let why = "somebody had removed or changed it, or something of it";
                tracing::warn!("the nftables table {subject} was made again: {why}");
                self.events.note("nat", subject, "made again", why);
                self.translation.look_at_all();
            }
            Err(error) => tracing::error!("steered packets may not be translated: {error:#}"),
        }
    }
}

/// Looks after the table, in a task of its own: `nft` may take long.
#[derive(Default)]
pub(super) struct NatKeeper {
    /// The listing of the table as it was made, with what has been counted since.
    made: Option<(NatPlan, Listing)>,
    running: JoinSet<Kept>,
    /// Plan for another look once the look that runs is done.
    again: Option<NatPlan>,
}

/// The finding of a look.
pub(super) enum Looked {
    AsMade,
    /// So many more packets were dropped because they were not translated.
    Untranslated(u64),
    /// The table with this name was not as it was made, and is again.
    MadeAgain(String),
}

/// The outcome of a look, and the listing of the table now.
type Kept = (Result<Looked>, Option<(NatPlan, Listing)>);

impl NatKeeper {
    /// Notes how the table is listed that was just made.
    async fn note_made(&mut self, plan: &NatPlan) {
        self.made = match plan.egresses.is_empty() {
            true => None,
            false => listed(plan).await.ok(),
        };
    }

    /// Ends a look that runs: it would put back what is about to be changed.
    pub(super) async fn stop(&mut self) {
        self.again = None;
        self.running.shutdown().await;
    }

    fn look(&mut self, plan: NatPlan) {
        if plan.egresses.is_empty() {
            return;
        }
        if !self.running.is_empty() {
            self.again = Some(plan);
            return;
        }
        let made = self.made.clone();
        self.running.spawn(async move {
            let now = listed(&plan).await;
            match now {
                Ok(now) if made.as_ref().is_some_and(|made| is_same(made, &now)) => {
                    let before = made.map_or(0, |(_, listing)| listing.untranslated);
                    let looked = match now.1.untranslated.saturating_sub(before) {
                        0 => Looked::AsMade,
                        more => Looked::Untranslated(more),
                    };
                    (Ok(looked), Some(now))
                }
                // What cannot be looked at now is looked at again later.
                Err(error) if error.is::<tool::TimedOut>() => (Err(error), made),
                _ => match plan.apply(tool::LIMIT).await {
                    Ok(()) => {
                        let subject = format!("inet {}", plan.table);
                        (Ok(Looked::MadeAgain(subject)), listed(&plan).await.ok())
                    }
                    Err(error) => (Err(error), made),
                },
            }
        });
    }

    /// Waits for a look that was taken. May be dropped at any time without losing it.
    pub(super) async fn kept(&mut self) -> Result<Looked> {
        loop {
            match self.running.join_next().await {
                Some(Ok((outcome, made))) => {
                    self.made = made;
                    if let Some(plan) = self.again.take() {
                        self.look(plan);
                    }
                    return outcome;
                }
                Some(Err(error)) => tracing::warn!("looking after nftables failed: {error}"),
                None => std::future::pending().await,
            }
        }
    }
}

/// Tells whether the plan and the rules are the same, whatever was counted.
fn is_same((plan, listing): &(NatPlan, Listing), (other_plan, other): &(NatPlan, Listing)) -> bool {
    plan == other_plan && listing.content == other.content
}

async fn listed(plan: &NatPlan) -> Result<(NatPlan, Listing)> {
    Ok((plan.clone(), plan.listing().await?))
}

/// The table of these routing numbers.
pub(super) fn nat_plan(routing: &Routing, egresses: Vec<NatEgress>) -> NatPlan {
    NatPlan {
        table: format!("breakout-{}", routing.table),
        mask: routing.mark_mask,
        egresses,
    }
}
