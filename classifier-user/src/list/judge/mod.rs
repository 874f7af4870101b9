//! The judge of new lists: what it would steer beside what is steered now, and whether that can be right.
//!
//! What counts is what the policy steers. Of other sets the judge only tells.

mod networks;
mod steered;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Category, Coverage, EndpointSet, Family, List, ListDelta, SetKey, Severity};
use crate::config::{ListConfig, Share, UnknownNetworks};
use crate::timestamp::Timestamp;
use networks::{Known, overlap, special};
use steered::{Steered, coverage};

/// So many sets may come to be steered at once because their category has changed. In Microsoft's lists of all years hardly one did.
const MOVES: usize = 2;

/// Time at which this was written, 2026-11-01: a clock that is behind that is wrong.
const WRITTEN: u64 = 1_793_491_200;

/// A version may be so far ahead of the clock. Microsoft's are of the day that they are published on.
const AHEAD: Duration = Duration::from_secs(366 * 86_400);

/// As many findings are told of; a damaged list can have millions.
const MAX_FINDINGS: usize = 100;

/// Something that stands out in a new list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The endpoint set, if it is about one.
    pub id: Option<u32>,
    /// Finding.
    pub what: String,
    /// True if the list is refused for it.
    pub refuses: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.id {
            write!(f, "endpoint set {id}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// Verdict of the validation on a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// Findings.
    pub findings: Vec<Finding>,
    /// Number of findings beyond these.
    #[serde(default)]
    pub more: usize,
    /// For how many of those it is refused.
    #[serde(default)]
    pub more_refusals: usize,
}

impl Judgement {
    /// Says whether the list may be applied.
    pub fn is_passed(&self) -> bool {
        self.refusals().next().is_none()
    }

    /// The findings for which it may not.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.refuses)
    }

    /// Says why it may not, in a sentence.
    pub fn refusal(&self) -> String {
        let texts: Vec<String> = self.refusals().take(3).map(ToString::to_string).collect();
        let more = self.refusals().count() - texts.len() + self.more_refusals;
        match more {
            0 => texts.join("; "),
            _ => format!("{}; and {more} more", texts.join("; ")),
        }
    }

    pub(super) fn find(&mut self, id: Option<u32>, refuses: bool, what: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { id, what, refuses });
            return;
        }
        self.more += 1;
        // What refuses must not drown in what does not.
        match self.findings.last_mut() {
            Some(last) if refuses && !last.refuses => *last = Finding { id, what, refuses },
            _ => self.more_refusals += usize::from(refuses),
        }
    }
}

/// Says whether a policy steers an endpoint set.
pub type Steers = Arc<dyn Fn(&EndpointSet) -> bool + Send + Sync>;

/// By what lists are judged.
#[derive(Clone)]
pub struct Judge {
    /// The shortest IPv4 prefix that is believed.
    pub shortest_v4: u8,
    /// The shortest IPv6 prefix that is believed.
    pub shortest_v6: u8,
    /// The largest share of what is steered that may go at once.
    pub max_removed: Share,
    /// Treatment of lists that steer networks which none of Microsoft's had before.
    pub unknown_networks: UnknownNetworks,
    /// The networks of the gateway and its LANs.
    pub own: Vec<IpNet>,
    /// Current day, if that is known.
    pub today: Option<Timestamp>,
    steers: Steers,
}

impl Judge {
    /// The judge that a configuration asks for, on a gateway with these networks, where category Optimize is steered.
    pub fn new(config: &ListConfig, own: Vec<IpNet>) -> Self {
        Judge {
            shortest_v4: config.shortest_v4,
            shortest_v6: config.shortest_v6,
            max_removed: config.max_removed,
            unknown_networks: config.unknown_networks,
            own,
            today: Some(Timestamp::now()).filter(|now| *now > Timestamp::from_seconds(WRITTEN)),
            steers: Arc::new(|set| set.category == Category::Optimize),
        }
    }

    /// The same judge for another policy.
    #[must_use]
    pub fn steering(self, steers: Steers) -> Self {
        Judge { steers, ..self }
    }

    /// Judges a list that is to follow another one.
    pub fn judge(&self, before: &List, new: &List) -> Judgement {
        let mut judgement = Judgement::default();
        self.version(before, new, &mut judgement);
        let (old, now) = (self.steered(before), self.steered(new));
        for problem in &new.problems {
            // What is left out of a set that is not steered is missed by nobody.
            let is_steered = |steered: &Steered<'_>| {
                problem.id.is_some() && steered.sets.iter().any(|set| set.key.id() == problem.id)
            };
            let refuses = match problem.severity {
                Severity::Useless => false,
                Severity::Damaged => is_steered(&old) || is_steered(&now),
                Severity::Contradictory => true,
            };
            judgement.find(problem.id, refuses, problem.problem.clone());
        }
        if now.sets.is_empty() && !old.sets.is_empty() {
            let what = "no usable set is steered any more: none is in category Optimize, or named by the policy";
            judgement.find(None, true, what.to_owned());
        }
        self.prefixes(before, new, &now, &mut judgement);
        self.moves(before, new, &old, &now, &mut judgement);
        for (id, what) in now.foreign_ports(&old) {
            judgement.find(id, true, what);
        }
        for what in old.losses(&now, self.max_removed) {
            let what = format!("{what} are gone at once, more than {}", self.max_removed);
            judgement.find(None, true, what);
        }
        // The first lists had no category Optimize; those after them can be compared with nothing.
        if !old.sets.is_empty() {
            for what in now.growths(&old) {
                judgement.find(None, true, what);
            }
        }
        for (id, lost) in old.lost_sets(&now, self.max_removed) {
            let what = format!(
                "{lost} % of what it steered, in addresses and ports, are gone at once, more than {}",
                self.max_removed
            );
            judgement.find(id, true, what);
        }
        let all = |list| Steered::of(List::published(list).filter(|set| set.is_usable()));
        for what in all(before).losses(&all(new), self.max_removed) {
            let what = what.replace("that are steered", "of all sets");
            judgement.find(None, false, format!("{what} are gone at once"));
        }
        judgement
    }

    /// The sets of a list that are judged by what is steered.
    pub fn steered_sets<'a>(&self, list: &'a List) -> Vec<&'a EndpointSet> {
        self.steered(list).sets
    }

    fn steered<'a>(&self, list: &'a List) -> Steered<'a> {
        let usable = || List::published(list).filter(|set| set.is_usable());
        let steered = Steered::of(usable().filter(|set| (self.steers)(set)));
        if !steered.sets.is_empty() {
            return steered;
        }
        // A policy that steers nothing of Microsoft's may do so tomorrow.
        Steered::of(usable().filter(|set| set.category == Category::Optimize))
    }

    fn version(&self, before: &List, new: &List, judgement: &mut Judgement) {
        let Some(version) = &new.version else { return };
        if let Some(old) = before.version.as_ref().filter(|old| version < *old) {
            let what = format!("version {version} is older than {old}");
            judgement.find(None, true, what);
        }
        if !is_version(version) {
            let what = format!(
                "version {version} is no day and number, as in 2026033100; every later list would be older"
            );
            judgement.find(None, true, what);
        } else if let Some(today) = self.today
            && day_of(version).is_some_and(|day| day > today.after(AHEAD))
        {
            let what = format!(
                "version {version} is of more than a year after today ({today}); every later list would be older until then"
            );
            judgement.find(None, true, what);
        }
    }

    /// Looks at each prefix by itself.
    fn prefixes(&self, before: &List, new: &List, now: &Steered<'_>, judgement: &mut Judgement) {
        let known = Known::of(new.instance, before);
        let steered: HashSet<&SetKey> = now.sets.iter().map(|set| &set.key).collect();
        let is_steered = |set: &EndpointSet| steered.contains(&set.key);
        for set in new.published() {
            let refuses = is_steered(set) && self.unknown_networks == UnknownNetworks::Refuse;
            for prefix in &set.prefixes {
                if let Some(what) = self.impossible(prefix) {
                    judgement.find(set.key.id(), true, what);
                } else if !known.contains(prefix) {
                    let what = format!(
                        "{prefix} is in no network that Microsoft's lists or announcements are known to have had"
                    );
                    judgement.find(set.key.id(), refuses, what);
                }
            }
        }
    }

    /// Says why no list can have a prefix, if so.
    fn impossible(&self, prefix: &IpNet) -> Option<String> {
        let shortest = match prefix {
            IpNet::V4(_) => self.shortest_v4,
            IpNet::V6(_) => self.shortest_v6,
        };
        if prefix.prefix_len() < shortest {
            return Some(format!(
                "{prefix} is shorter than /{shortest}, the shortest prefix that is believed"
            ));
        }
        if let Some(net) = special(prefix) {
            return Some(format!("{prefix} is in {net}, where no public service is"));
        }
        let own = self.own.iter().find(|net| overlap(net, prefix))?;
        Some(format!(
            "{prefix} overlaps {own}, a network of this gateway"
        ))
    }

    /// Tells of sets whose category has changed. When many are steered only since then, also under other ids, or when sign-in is
    /// steered with another set, the list is refused.
    fn moves(
        &self,
        before: &List,
        new: &List,
        old: &Steered<'_>,
        now: &Steered<'_>,
        judgement: &mut Judgement,
    ) {
        for delta in ListDelta::between(before, new).sets {
            if let (Some(from), Some(to), true) =
                (&delta.category.0, &delta.category.1, delta.is_move())
            {
                let what = format!("has moved from category {from} to {to}");
                judgement.find(Some(delta.id), false, what);
            }
        }
        if old.sets.is_empty() {
            return;
        }
        let was_steered: HashSet<&SetKey> = old.sets.iter().map(|set| &set.key).collect();
        let others: Vec<&EndpointSet> = List::published(before)
            .filter(|set| set.is_usable() && !was_steered.contains(&set.key))
            .collect();
        let by_key: HashMap<&SetKey, &EndpointSet> =
            others.iter().map(|set| (&set.key, *set)).collect();
        let other = Family::ALL.map(|family| coverage(&others, family));
        let is_move = |set: &&&EndpointSet| {
            by_key.contains_key(&set.key)
                || !was_steered.contains(&set.key)
                    && Family::ALL.into_iter().any(|family| {
                        let own = coverage([*set], family);
                        let moved = own.common(&other[family as usize]);
                        let known = own.common(&old.coverage[family as usize]);
                        2 * moved > own.size() && 2 * known < own.size()
                    })
        };
        let moves = now.sets.iter().filter(is_move).count();
        if moves > MOVES {
            let what = format!(
                "{moves} sets have moved to category Optimize, or another one that is steered, at once, more than {MOVES}"
            );
            judgement.find(None, true, what);
        }
        let sign_in: Vec<&EndpointSet> = (before.published().chain(new.published()))
            .filter(|set| set.is_sign_in())
            .collect();
        let steered: Vec<&EndpointSet> = now
            .sets
            .iter()
            .filter(|set| !set.is_sign_in())
            .copied()
            .collect();
        for family in Family::ALL {
            let sign_in: Coverage = coverage(&sign_in, family);
            let was = old.coverage[family as usize].common(&sign_in);
            let is = coverage(&steered, family).common(&sign_in);
            if is > was {
                let what = format!(
                    "{is} {} where users sign in would be steered with other sets",
                    family.unit()
                );
                judgement.find(None, true, what);
            }
        }
    }
}

/// Tells a day since 2018 and two digits, as in Microsoft's versions, from anything else.
fn is_version(version: &str) -> bool {
    version.len() == 10
        && version.bytes().all(|byte| byte.is_ascii_digit())
        && (2018..2100).contains(&version[..4].parse().unwrap_or(0))
        && day_of(version).is_some()
}

fn day_of(version: &str) -> Option<Timestamp> {
    Timestamp::from_day(version.get(..8)?)
}
