//! Which egress each preference leads to, by how the egresses stand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use breakout_common::path::{BUCKETS, ORDINARY, PLACES, PathTable, place};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::egress::EgressState;
use crate::config::{Class, Config, Preference};
use crate::datapath::{Clock, Paths};
use crate::health::{self, Judge, Measure, Probers, Standing, State, Target, Verdict};

/// For how long an established flow that is silent keeps its place when the table of flows is full: less than the time
/// after which Microsoft's front ends and most NATs end an idle connection.
const TCP_ESTABLISHED: Duration = Duration::from_secs(300);
/// The same for UDP: as long as most NATs keep a mapping (RFC 4787, section 4.3, where they keep it for less than they
/// should).
const UDP_ESTABLISHED: Duration = Duration::from_secs(30);

/// How all egresses stand, and the probes that tell.
pub(super) struct Health {
    /// By egress and whether it is IPv6. A verdict is about the link that it was made on.
    judges: BTreeMap<(String, bool), (String, Judge)>,
    measures: BTreeMap<(String, bool), Measure>,
    pub(super) probers: Probers,
}

/// What is known of the egresses, for going back to it.
pub(super) struct Knowledge {
    judges: BTreeMap<(String, bool), (String, Judge)>,
    measures: BTreeMap<(String, bool), Measure>,
}

/// A verdict on an egress and address family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EgressVerdict {
    egress: String,
    v6: bool,
    #[serde(default)]
    link: String,
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

/// An egress stands otherwise than before.
pub(super) struct Changed {
    pub(super) egress: String,
    pub(super) v6: bool,
    pub(super) before: State,
    pub(super) standing: Standing,
}

impl Health {
    /// Knows nothing yet. Probes will run on this runtime.
    pub(super) fn new(runtime: Handle) -> Self {
        Health {
            judges: BTreeMap::new(),
            measures: BTreeMap::new(),
            probers: Probers::new(runtime),
        }
    }

    /// What is known now.
    pub(super) fn knowledge(&self) -> Knowledge {
        Knowledge {
            judges: self.judges.clone(),
            measures: self.measures.clone(),
        }
    }

    /// Goes back to what was known.
    pub(super) fn know(&mut self, knowledge: Knowledge) {
        (self.judges, self.measures) = (knowledge.judges, knowledge.measures);
    }

    /// Probes what is configured, or else `default_targets`, through those links that could work.
    pub(super) fn set_probes(
        &mut self,
        config: &Config,
        states: &[EgressState],
        default_targets: &[Target],
    ) {
        let mut paths = Vec::new();
        for state in states {
            for v6 in [false, true] {
                let targets = match &state.config.probes {
                    Some(targets) => targets.0.clone(),
                    None => default_targets.to_vec(),
                };
                let can_answer = |target: &Target| {
                    target
                        .address()
                        .is_none_or(|address| address.is_ipv6() == v6)
                };
                let targets: Vec<_> = targets.into_iter().filter(can_answer).collect();
                if state.problem(v6).is_none() && !targets.is_empty() {
                    paths.push(health::Path {
                        egress: state.name.clone(),
                        v6,
                        interface: state.config.interface.clone(),
                        mark: state.mark,
                        way: state.probe_way(v6),
                        targets,
                        health: config.health.clone(),
                    });
                }
            }
        }
        self.judges.retain(|(egress, v6), (link, _)| {
            let is_same = |state: &EgressState| state.name == *egress && state.link(*v6) == *link;
            states.iter().any(is_same)
        });
        // What other probes of the link have measured holds until these have measured something.
        let judges = &self.judges;
        self.measures.retain(|key, _| {
            let is_same = |path: &health::Path| path.egress == key.0 && path.v6 == key.1;
            judges.contains_key(key) && paths.iter().any(is_same)
        });
        for path in &paths {
            let measure = self.measures.entry((path.egress.clone(), path.v6));
            measure.or_insert_with(|| Measure::untried(&path.targets));
        }
        self.probers.set(paths);
    }

    /// Goes on from the verdicts of an earlier controller.
    pub(super) fn resume(&mut self, verdicts: &[EgressVerdict]) {
        for one in verdicts {
            let key = (one.egress.clone(), one.v6);
            let judge = Judge::resume(one.verdict);
            self.judges.insert(key, (one.link.clone(), judge));
        }
    }

    /// Moves along since when they are as they are, after the clock was set.
    pub(super) fn move_by(&mut self, step: i64) {
        for (_, judge) in self.judges.values_mut() {
            judge.move_by(step);
        }
    }

    /// The verdicts, for the next controller.
    pub(super) fn verdicts(&self) -> Vec<EgressVerdict> {
        let judges = self.judges.iter();
        let verdicts = judges.map(|((egress, v6), (link, judge))| EgressVerdict {
            egress: egress.clone(),
            v6: *v6,
            link: link.clone(),
            verdict: judge.verdict(),
        });
        verdicts.collect()
    }

    /// Takes in what probes tell.
    pub(super) fn note(&mut self, report: health::Report) {
        if self.probers.is_current(&report) {
            let key = (report.path.egress.clone(), report.path.v6);
            self.measures.insert(key, report.measure);
        }
    }

    /// Judges every egress anew. Returns those that stand otherwise than before.
    pub(super) fn look(&mut self, config: &Config, states: &[EgressState]) -> Vec<Changed> {
        let now = Instant::now();
        let mut changes = Vec::new();
        for state in states {
            for v6 in [false, true] {
                let key = (state.name.clone(), v6);
                let problem = state.problem(v6);
                let measure = self.measures.get(&key);
                let new = || (state.link(v6), Judge::default());
                let (_, judge) = self.judges.entry(key).or_insert_with(new);
                let before = judge.look(now, &config.health, problem.as_deref(), measure);
                if let Some(before) = before {
                    changes.push(Changed {
                        egress: state.name.clone(),
                        v6,
                        before,
                        standing: judge.standing(),
                    });
                }
            }
        }
        changes
    }

    /// How an egress stands.
    pub(super) fn standing(&self, egress: &str, v6: bool) -> Option<Standing> {
        let judge = self.judges.get(&(egress.to_owned(), v6));
        judge.map(|(_, judge)| judge.standing())
    }

    fn works(&self, state: &EgressState, v6: bool, class: Class) -> bool {
        let judge = self.judges.get(&(state.name.clone(), v6));
        judge.is_some_and(|(link, judge)| *link == state.link(v6) && judge.works(class))
    }

    /// The path table that fits how the egresses stand; the epoch and what is said of pins are left open.
    pub(super) fn paths(
        &self,
        config: &Config,
        states: &[EgressState],
        preferences: &BTreeMap<String, u8>,
    ) -> Paths {
        let mut paths = Paths::default();
        let clock = Clock::of_kernel();
        paths.table.media_hold = clock.ticks(config.pinning.media_hold.0);
        paths.table.tcp_idle = clock.ticks(config.pinning.tcp_idle.0);
        paths.table.udp_idle = clock.ticks(config.pinning.udp_idle.0);
        paths.table.tcp_established = clock.ticks(TCP_ESTABLISHED);
        paths.table.udp_established = clock.ticks(UDP_ESTABLISHED);
        for state in states {
            let egress = state.to_words(config.routing.mark_mask);
            paths.table.egresses[usize::from(state.index)] = egress.to_words();
            paths
                .devices
                .extend(state.device().map(|device| (state.index, device)));
        }
        for (v6, class) in PLACES_OF {
            let place = place(v6, class == Class::Media);
            let named = |name: &str| states.iter().find(|state| state.name == name);
            let works = |name: &&str| named(name).is_some_and(|state| self.works(state, v6, class));
            let index = |name: &str| named(name).map(|state| state.index);
            for state in states.iter().filter(|state| self.works(state, v6, class)) {
                paths.table.working[place] |= 1 << state.index;
            }
            for (text, preference) in preferences {
                let choices = choices(&Preference::from_text(text), works, index);
                paths.table.set_choices(*preference, place, &choices);
            }
        }
        paths
    }
}

const PLACES_OF: [(bool, Class); PLACES] = [
    (false, Class::Standard),
    (false, Class::Media),
    (true, Class::Standard),
    (true, Class::Media),
];

/// The choice of each bucket: the most preferred egress that works, or a share of the buckets for each.
fn choices(
    preference: &Preference,
    works: impl Fn(&&str) -> bool,
    index: impl Fn(&str) -> Option<u8>,
) -> [u8; BUCKETS] {
    let mut egresses = preference.egresses();
    egresses.retain(|name| index(name).is_some());
    let mut choices = [ORDINARY; BUCKETS];
    let Preference::Weighted(weights) = preference else {
        let first = egresses.iter().find(|name| works(name));
        if let Some(index) = first.and_then(|name| index(name)) {
            choices.fill(index);
        }
        return choices;
    };
    let working: Vec<&str> = egresses
        .iter()
        .copied()
        .filter(|name| works(name))
        .collect();
    let shared = share_out(&egresses, weights, BUCKETS);
    // Buckets of those that do not work go to the others; no other bucket changes.
    let lost = shared.iter().filter(|name| !working.contains(name)).count();
    let mut replacements = share_out(&working, weights, lost).into_iter();
    for (choice, name) in choices.iter_mut().zip(shared) {
        let name = if working.contains(&name) {
            Some(name)
        } else {
            replacements.next()
        };
        if let Some(index) = name.and_then(&index) {
            *choice = index;
        }
    }
    choices
}

/// So many places, shared out by weight.
fn share_out<'a>(
    names: &[&'a str],
    weights: &BTreeMap<String, u32>,
    places: usize,
) -> Vec<&'a str> {
    let weight = |name: &str| weights.get(name).map_or(1, |weight| *weight as usize);
    let total: usize = names.iter().map(|name| weight(name)).sum();
    let at = |place: usize| {
        let mut point = (2 * place + 1) * total / (2 * places);
        names
            .iter()
            .copied()
            .find(|name| match point.checked_sub(weight(name)) {
                Some(rest) => {
                    point = rest;
                    false
                }
                None => true,
            })
    };
    (0..places).filter_map(at).collect()
}

/// Whether two tables differ in what pins are looked at for.
pub(super) fn changes_ways(before: &PathTable, after: &PathTable) -> bool {
    (before.working, before.preferences) != (after.working, after.preferences)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str) -> Option<u8> {
        ["local", "lte", "dsl"]
            .iter()
            .position(|other| *other == name)
            .map(|index| u8::try_from(index).unwrap())
    }

    #[test]
    fn the_first_one_that_works_is_chosen() {
        let preference = Preference::from_text("local > lte > gone");
        assert_eq!(choices(&preference, |_| true, index), [0; BUCKETS]);
        assert_eq!(
            choices(&preference, |name| *name != "local", index),
            [1; BUCKETS]
        );
        assert_eq!(
            choices(&preference, |name| *name == "gone", index),
            [ORDINARY; BUCKETS]
        );
    }

    #[test]
    fn weights_share_out_and_only_the_failed_ones_move() {
        let preference = Preference::from_text("dsl 20, local 60, lte 20");
        let all = choices(&preference, |_| true, index);
        let count = |index: u8| all.iter().filter(|choice| **choice == index).count();
        assert_eq!([count(0), count(1), count(2)], [38, 13, 13]);
        let without = choices(&preference, |name| *name != "lte", index);
        for (before, after) in all.iter().zip(without) {
            assert!(*before == after || *before == 1 && after != 1);
        }
        assert_eq!(without.iter().filter(|choice| **choice == 0).count(), 48);
    }
}
