//! Path selection: the egress of each preference, by the health of the egresses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use breakout_common::path::{BUCKETS, ORDINARY, PLACES, PathTable, place};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::egress::EgressState;
use super::passive::{PathTraffic, Watching};
use crate::config::{Class, Config, Preference};
use crate::datapath::{Clock, Paths, TrafficView};
use crate::health::{self, Judge, Measure, Probers, Standing, State, Target, Verdict};
use crate::links::Solicitor;

/// For how long an established flow that is silent keeps its place when the table of flows is full: less than the time
/// after which Microsoft's front ends and most NATs end an idle connection.
const TCP_ESTABLISHED: Duration = Duration::from_secs(300);
/// The same for UDP: as long as most NATs keep a mapping (RFC 4787, section 4.3, where they keep it for less than they
/// should).
const UDP_ESTABLISHED: Duration = Duration::from_secs(30);

/// Delay after which a next hop is asked again for its MAC address while probes are not answered, and at the latest.
const SOLICIT_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Health of all egresses, and the probes that measure it.
pub(super) struct Health {
    /// By egress and whether it is IPv6. A verdict is about the link that it was made on.
    judges: BTreeMap<(String, bool), (String, Judge)>,
    measures: BTreeMap<(String, bool), Measure>,
    traffic: BTreeMap<(String, bool), PathTraffic>,
    watching: Watching,
    /// The state that was told last.
    told: BTreeMap<(String, bool), State>,
    solicitor: Solicitor,
    /// Time at which next hops are asked again for their MAC addresses, and how long it is from then to the next time.
    solicited: BTreeMap<(String, bool), (Instant, Duration)>,
    pub(super) probers: Probers,
}

/// Saved health of the egresses, to be restored.
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
            traffic: BTreeMap::new(),
            watching: Watching::default(),
            told: BTreeMap::new(),
            solicitor: Solicitor::default(),
            solicited: BTreeMap::new(),
            probers: Probers::new(runtime),
        }
    }

    /// Returns what is known now.
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
                    // Each address family has half of it.
                    let budget = state.config.probe_budget().map(|volume| volume.0 / 2);
                    paths.push(health::Path {
                        budget,
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
        let judges = &self.judges;
        self.traffic.retain(|key, _| judges.contains_key(key));
        self.told.retain(|key, _| judges.contains_key(key));
        // What other probes of the link have measured holds until these have measured something.
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
            self.told.insert(key.clone(), judge.standing().state);
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

    /// Takes in what probes tell. Asks the next hop for its MAC address where the last answers are missing.
    pub(super) fn note(&mut self, report: health::Report, states: &[EgressState]) {
        if !self.probers.is_current(&report) {
            return;
        }
        let key = (report.path.egress.clone(), report.path.v6);
        if report.is_doubtful {
            self.solicit(&key, states);
        } else if let Some((_, pause)) = self.solicited.get_mut(&key) {
            *pause = SOLICIT_AGAIN[0];
        }
        self.measures.insert(key, report.measure);
    }

    /// Asks a next hop for its MAC address, at growing intervals.
    fn solicit(&mut self, key: &(String, bool), states: &[EgressState]) {
        let (now, [first, longest]) = (Instant::now(), SOLICIT_AGAIN);
        let (next, pause) = self.solicited.get(key).copied().unwrap_or((now, first));
        if now < next {
            return;
        }
        self.solicited
            .insert(key.clone(), (now + pause, (pause * 2).min(longest)));
        let meant = states.iter().find(|state| state.name == key.0);
        let Some((asker, next_hop)) = meant.and_then(|state| state.asker(key.1)) else {
            return;
        };
        if let Err(error) = self.solicitor.solicit(&asker, next_hop) {
            tracing::warn!("cannot ask for the MAC address of {next_hop}: {error}");
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
                let is_silent = measure.is_some_and(|measure| measure.alive == Some(false));
                let traffic = self.traffic.entry(key.clone()).or_default();
                let life = traffic.life(now, is_silent);
                if traffic.has_ceased(now) {
                    self.probers.suspect(&state.name, v6);
                }
                let new = || (state.link(v6), Judge::default());
                let (_, judge) = self.judges.entry(key.clone()).or_insert_with(new);
                judge.look(now, &config.health, problem.as_deref(), measure, life);
                let standing = traffic.standing(judge);
                let before = self.told.insert(key, standing.state);
                if before != Some(standing.state) {
                    changes.push(Changed {
                        egress: state.name.clone(),
                        v6,
                        before: before.unwrap_or(State::Down),
                        standing,
                    });
                }
            }
        }
        changes
    }

    /// Returns how an egress stands.
    pub(super) fn standing(&self, egress: &str, v6: bool) -> Option<Standing> {
        let key = (egress.to_owned(), v6);
        let (_, judge) = self.judges.get(&key)?;
        let traffic = self.traffic.get(&key);
        Some(traffic.map_or_else(|| judge.standing(), |traffic| traffic.standing(judge)))
    }

    /// Tells which flows may use an egress.
    fn uses(&self, state: &EgressState, v6: bool, class: Class) -> Uses {
        let key = (state.name.clone(), v6);
        let judge = self.judges.get(&key);
        let Some((_, judge)) = judge.filter(|(link, _)| *link == state.link(v6)) else {
            return Uses::default();
        };
        let traffic = self.traffic.get(&key);
        let is_broken = traffic.is_some_and(|traffic| traffic.ahead.is_broken());
        // To move a TCP connection is to end it, and the verdict is about those that begin. Media lives on, and would lead new media.
        let stays = !is_broken || class == Class::Standard;
        Uses {
            new_flows: judge.works(class) && !is_broken,
            tries: judge.works(class) && traffic.is_some_and(|traffic| traffic.ahead.is_tried()),
            old_flows: judge.keeps(class) && stays,
        }
    }

    /// Looks at what the programs have seen of flows since the last time, if that is long enough ago.
    pub(super) fn observe(&mut self, states: &[EgressState], view: Option<&TrafficView>) {
        self.watching
            .observe(states, view, &self.measures, &mut self.traffic);
    }

    /// Forgets which flows were watched, which may be in another table now.
    pub(super) fn unwatch(&mut self) {
        for path in self.traffic.values_mut() {
            path.ahead.unwatch();
        }
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
            let uses = |state: &EgressState| self.uses(state, v6, class);
            let works = |name: &&str| named(name).is_some_and(|state| uses(state).new_flows);
            let is_tried = |name: &&str| named(name).is_some_and(|state| uses(state).tries);
            let index = |name: &str| named(name).map(|state| state.index);
            for state in states {
                if uses(state).old_flows || uses(state).tries {
                    paths.table.working[place] |= 1 << state.index;
                }
            }
            for (text, preference) in preferences {
                let rule = Preference::from_text(text);
                let choices = choices(&rule, works, is_tried, index);
                paths.table.set_choices(*preference, place, &choices);
                if rule.egresses().iter().any(is_tried) {
                    paths.table.by_flow |= 1 << *preference;
                }
            }
        }
        paths
    }
}

/// Flows that may use an egress.
#[derive(Clone, Copy, Default)]
struct Uses {
    /// By flows that begin now.
    new_flows: bool,
    /// By a share of those.
    tries: bool,
    /// By flows that have it.
    old_flows: bool,
}

/// The buckets of flows, not of clients, that try what is broken ahead: about 6 %.
const TRIAL: usize = BUCKETS / 16;

const PLACES_OF: [(bool, Class); PLACES] = [
    (false, Class::Standard),
    (false, Class::Media),
    (true, Class::Standard),
    (true, Class::Media),
];

/// The choice of each bucket: the most preferred egress that works, or a share of the buckets for each. Those that are tried get
/// a few of the first buckets each, where they are preferred to what works.
fn choices(
    preference: &Preference,
    works: impl Fn(&&str) -> bool,
    is_tried: impl Fn(&&str) -> bool,
    index: impl Fn(&str) -> Option<u8>,
) -> [u8; BUCKETS] {
    let mut egresses = preference.egresses();
    egresses.retain(|name| index(name).is_some());
    let mut choices = working_choices(preference, &egresses, &works, &index);
    let is_ordered = !matches!(preference, Preference::Weighted(_));
    let preferred = egresses
        .iter()
        .take_while(|name| !(is_ordered && works(name)));
    let tried = preferred.filter(|name| is_tried(name));
    for (share, name) in choices.chunks_exact_mut(TRIAL).zip(tried) {
        share.fill(index(name).unwrap_or(ORDINARY));
    }
    choices
}

/// The choice of each bucket among those that work.
fn working_choices(
    preference: &Preference,
    egresses: &[&str],
    works: impl Fn(&&str) -> bool,
    index: impl Fn(&str) -> Option<u8>,
) -> [u8; BUCKETS] {
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
    let shared = share_out(egresses, weights, BUCKETS);
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

/// Returns whether two tables differ in what pins are looked at for.
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
        assert_eq!(
            choices(&preference, |_| true, |_| false, index),
            [0; BUCKETS]
        );
        assert_eq!(
            choices(&preference, |name| *name != "local", |_| false, index),
            [1; BUCKETS]
        );
        assert_eq!(
            choices(&preference, |name| *name == "gone", |_| false, index),
            [ORDINARY; BUCKETS]
        );
    }

    #[test]
    fn weights_share_out_and_only_the_failed_ones_move() {
        let preference = Preference::from_text("dsl 20, local 60, lte 20");
        let all = choices(&preference, |_| true, |_| false, index);
        let count = |index: u8| all.iter().filter(|choice| **choice == index).count();
        assert_eq!([count(0), count(1), count(2)], [38, 13, 13]);
        let without = choices(&preference, |name| *name != "lte", |_| false, index);
        for (before, after) in all.iter().zip(without) {
            assert!(*before == after || *before == 1 && after != 1);
        }
        assert_eq!(without.iter().filter(|choice| **choice == 0).count(), 48);
    }

    #[test]
    fn what_is_tried_gets_a_few_buckets_whatever_its_rank() {
        let count = |choices: &[u8], index: u8| choices.iter().filter(|it| **it == index).count();
        for tried in ["dsl", "local", "lte"] {
            let preference = Preference::from_text("dsl 20, local 60, lte 20");
            let works = |name: &&str| *name != tried;
            let chosen = choices(&preference, works, |name| *name == tried, index);
            assert_eq!(count(&chosen, index(tried).unwrap()), TRIAL, "{tried}");
        }
        let ordered = Preference::from_text("local > lte > dsl");
        let without = |gone: &'static str| {
            choices(
                &ordered,
                move |name| *name != gone,
                move |name| *name == gone,
                index,
            )
        };
        assert_eq!(
            [0, 1].map(|way| count(&without("local"), way)),
            [TRIAL, BUCKETS - TRIAL]
        );
        // Nobody tries what would not be taken.
        assert_eq!(without("lte"), [0; BUCKETS]);
        let alone = Preference::from_text("local");
        let tried = choices(&alone, |_| false, |_| true, index);
        assert_eq!(
            [0, ORDINARY].map(|way| count(&tried, way)),
            [TRIAL, BUCKETS - TRIAL]
        );
    }
}
