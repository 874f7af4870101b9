//! Sources of lists: those that are used unvalidated, and those that are updated and stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};

use super::make_loadable;
use crate::config::{Config, ListSource};
use crate::durable::{Disk, is_full, read_text};
use crate::exit::{Code, WithCode, code_of};
use crate::list::{
    FetchError, Fetched, InForce, Instance, Kept, Limits, List, Schedule, Service, check, embedded,
    read_file,
};
use crate::ruleset::{Ruleset, Slots};
use crate::secrets::masked;
use crate::timestamp::Timestamp;

/// Interval at which a watched file is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// Result of a look at the source, by instance.
pub(super) type Looked = Vec<(Instance, Result<Option<Fetched>, FetchError>)>;

/// Version of a watched file when it was last read.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    modified: SystemTime,
    length: u64,
    /// Reason why it is no list, if so.
    problem: Option<FetchError>,
}

/// Lists, those that wait among them.
#[derive(Default)]
pub(super) struct WithWaiting {
    pub(super) lists: Vec<List>,
    pub(super) states: Vec<(Instance, InForce)>,
    pub(super) names: Vec<String>,
}

impl Seen {
    pub(super) fn with_problem(self, problem: Option<FetchError>) -> Self {
        Seen { problem, ..self }
    }
}

/// The lists' source as configured.
pub(super) struct Sources {
    source: ListSource,
    /// The kept lists, if the source is followed.
    pub(super) kept: Vec<Kept>,
    fixed: Vec<List>,
    service: Option<Service>,
    /// Reason why the service cannot be asked, if so.
    pub(super) problem: Option<String>,
    interval: Duration,
    seen: Option<Seen>,
    pub(super) disk: Disk,
}

impl Sources {
    /// Opens the source of a configuration, or the file that takes its place.
    ///
    /// # Errors
    ///
    /// When a file that is to be used as it is is no list, or the state directory cannot be written.
    pub(super) fn open(config: &Config, file: Option<&Path>) -> Result<Self> {
        Self::open_beside(config, file, &[])
    }

    /// The same, where the lists of instances that are open already go on as they are in memory: what could not be written down
    /// holds as well.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub(super) fn open_beside(config: &Config, file: Option<&Path>, open: &[Kept]) -> Result<Self> {
        let source = match file {
            Some(file) => ListSource::Fixed(file.to_owned()),
            None => config.list.list_source(),
        };
        let mut sources = Sources {
            kept: Vec::new(),
            fixed: Vec::new(),
            service: None,
            problem: None,
            interval: match source {
                ListSource::Watched(_) => WATCH,
                _ => config.list.interval.0,
            },
            seen: None,
            source,
            disk: Disk::reliable(),
        };
        for instance in config.list.instances() {
            match &sources.source {
                ListSource::Fixed(file) => sources
                    .fixed
                    .push(read_file(file, instance).code(Code::List)?),
                ListSource::BuiltIn => sources.fixed.push(embedded(instance)),
                ListSource::Service(_) | ListSource::Watched(_) => {
                    let is_open = open.iter().find(|kept| kept.instance() == instance);
                    sources.kept.push(match is_open {
                        Some(kept) => kept.clone(),
                        None => open_kept(config, instance)?,
                    });
                }
            }
        }
        if let ListSource::Service(base) = &sources.source {
            let service = client_id(&config.state.directory).and_then(|client_id| {
                Service::new(&config.list, base, &client_id, Limits::default())
            });
            match service {
                Ok(service) => sources.service = Some(service),
                Err(error) => {
                    tracing::warn!("the lists are not followed: {error:#}");
                    sources.problem = Some(format!("{error:#}"));
                }
            }
        }
        let source = format!(
            "{} {}",
            sources.name(),
            sources.service.as_ref().map_or("", Service::query)
        );
        for kept in &mut sources.kept {
            if kept.schedule.source != source {
                // Another source knows nothing of when the one before was asked.
                kept.schedule = Schedule {
                    source: source.clone(),
                    ..Schedule::default()
                };
            }
        }
        Ok(sources)
    }

    /// The lists in force, one of each instance.
    pub(super) fn lists(&self) -> Vec<List> {
        if self.kept.is_empty() {
            return self.fixed.clone();
        }
        self.kept.iter().map(Kept::in_force).collect()
    }

    /// The lists once those that wait come into force, with what is noted of these then, and their names.
    ///
    /// # Errors
    ///
    /// When this version of Breakout cannot read one of them.
    pub(super) fn with_waiting(&self, now: Timestamp, grace: Duration) -> Result<WithWaiting> {
        let mut with = WithWaiting {
            lists: self.lists(),
            ..WithWaiting::default()
        };
        for (kept, list) in self.kept.iter().zip(&mut with.lists) {
            if let Some(record) = kept.waiting() {
                let (after, state) = kept.after(record, now, grace).code(Code::List)?;
                *list = after;
                with.states.push((kept.instance(), state));
                with.names
                    .push(format!("{} {}", kept.instance(), record.name()));
            }
        }
        Ok(with)
    }

    /// The ruleset of the newest lists in force that can be loaded, and these lists. One that cannot be is noted, and the good one
    /// before it comes into force.
    ///
    /// # Errors
    ///
    /// When the built-in lists cannot be loaded either, or it is not the lists' fault.
    pub(super) fn first_that_loads(
        &mut self,
        config: &Config,
        preferences: &BTreeMap<String, u8>,
        slots: &mut Slots,
        as_of: Timestamp,
    ) -> Result<(Ruleset, Vec<List>)> {
        loop {
            let lists = self.lists();
            let before = slots.clone();
            match make_loadable(config, &lists, preferences, slots, as_of) {
                Ok(ruleset) => return Ok((ruleset, lists)),
                Err(error) if code_of(&error) == Code::List && self.step_back(&error) => {
                    *slots = before;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Goes back from the list that was fetched last. Returns whether there was one.
    fn step_back(&mut self, error: &anyhow::Error) -> bool {
        let of_kept = |kept: &Kept| {
            kept.record(kept.state().record?)
                .map(|record| record.fetched)
        };
        let newest = self.kept.iter_mut().filter(|kept| of_kept(kept).is_some());
        let Some(kept) = newest.max_by_key(|kept| of_kept(kept)) else {
            return false;
        };
        let why = format!("it cannot be loaded: {error:#}");
        let name = kept.in_force().name();
        let noted = kept.step_back(&self.disk, &why);
        tracing::error!(
            "list {name} is not used, {why}; {} is",
            kept.in_force().name()
        );
        if let Err(error) = noted {
            tracing::warn!("{error:#}");
        }
        true
    }

    /// Returns whether the lists are followed.
    pub(super) fn is_followed(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Returns where they come from, for people.
    pub(super) fn name(&self) -> String {
        match &self.source {
            ListSource::Service(base) => masked(base),
            ListSource::Watched(file) | ListSource::Fixed(file) => file.display().to_string(),
            ListSource::BuiltIn => "built-in".to_owned(),
        }
    }

    pub(super) fn kept(&self, instance: Instance) -> Option<&Kept> {
        self.kept.iter().find(|kept| kept.instance() == instance)
    }

    /// The kept lists of an instance, to be changed, and the disk to write to.
    pub(super) fn kept_mut(&mut self, instance: Instance) -> Result<(&mut Kept, &Disk)> {
        let kept = self
            .kept
            .iter_mut()
            .find(|kept| kept.instance() == instance);
        let kept = kept.with_context(|| format!("{instance} is not followed"))?;
        Ok((kept, &self.disk))
    }

    /// The instances whose source can be looked at now because an operator wants that.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(super) fn may_be_asked(&self, now: Timestamp) -> Result<Vec<Instance>> {
        if let Some(problem) = &self.problem {
            return Err(anyhow!("the lists are not followed: {problem}")).code(Code::Config);
        }
        if !self.is_followed() {
            return Err(anyhow!(
                "the list is used as it is, from {}; it is not fetched. Set [list] source to follow it",
                self.name()
            ))
            .code(Code::List);
        }
        let left_alone = self.left_alone(now);
        let kept = self.kept.iter().map(Kept::instance);
        let instances: Vec<Instance> = kept
            .filter(|instance| !left_alone.contains_key(instance))
            .collect();
        match (instances.is_empty(), left_alone.into_values().next()) {
            (true, Some(problem)) => Err(anyhow!(problem)).code(Code::Unreachable),
            _ => Ok(instances),
        }
    }

    /// The instances that the source wants not to be asked for now, with a sentence about it.
    pub(super) fn left_alone(&self, now: Timestamp) -> BTreeMap<Instance, String> {
        let kept = self.kept.iter();
        let waiting = kept.filter_map(|kept| {
            let until = kept.schedule.must_wait(now)?;
            let problem = format!("{} has asked to be left alone until {until}", self.name());
            Some((kept.instance(), problem))
        });
        waiting.collect()
    }

    /// Returns what could not be written down of the lists, and what follows from that.
    pub(super) fn unsaved(&self) -> impl Iterator<Item = String> {
        let unsaved = self.kept.iter().filter(|kept| !kept.is_saved());
        unsaved.map(|kept| {
            format!(
                "which list of {} is in force could not be written down; after a restart an earlier one may be",
                kept.instance()
            )
        })
    }

    /// The latest time that is known to have been.
    pub(super) fn latest(&self) -> Option<Timestamp> {
        let attempts = self.kept.iter().map(|kept| kept.schedule.last_attempt);
        attempts.max().flatten()
    }

    /// Moves along what is due after the clock was set.
    pub(super) fn move_by(&mut self, step: i64) {
        for kept in &mut self.kept {
            if let Err(error) = kept.move_by(&self.disk, step) {
                tracing::warn!("{error:#}");
            }
        }
    }

    /// Asks soon again where the last look has failed, as after a change of how it is looked.
    pub(super) fn hurry(&mut self, now: Timestamp) {
        for kept in &mut self.kept {
            if kept.schedule.last_error.is_some() && kept.schedule.must_wait(now).is_none() {
                kept.schedule.next = None;
            }
        }
    }

    /// The instances whose source is to be looked at now.
    pub(super) fn due(&self, now: Timestamp) -> Vec<Instance> {
        let due = self.kept.iter().filter(|kept| kept.schedule.is_due(now));
        due.map(Kept::instance).collect()
    }

    /// A look at the source for some instances, to be taken beside everything else.
    pub(super) fn look(&self, instances: &[Instance]) -> Look {
        Look {
            watched: match &self.source {
                ListSource::Watched(file) => Some((file.clone(), self.seen.clone())),
                _ => None,
            },
            service: self.service.clone(),
            instances: instances.to_vec(),
            known: self.known(instances),
            failing: (self.kept.iter().filter(|kept| kept.schedule.failures > 0))
                .map(Kept::instance)
                .collect(),
        }
    }

    fn known(&self, instances: &[Instance]) -> BTreeMap<Instance, String> {
        let query = self.service.as_ref().map_or("", Service::query);
        let kept = self
            .kept
            .iter()
            .filter(|kept| instances.contains(&kept.instance()));
        kept.filter_map(|kept| Some((kept.instance(), kept.known_version(query)?.to_owned())))
            .collect()
    }

    /// Notes when the source was looked at, and when it is next.
    pub(super) fn note(
        &mut self,
        instance: Instance,
        outcome: Result<(), &FetchError>,
        now: Timestamp,
    ) {
        let (interval, jitter) = (self.interval, jitter(&self.source));
        let is_service = matches!(self.source, ListSource::Service(_));
        let Ok((kept, disk)) = self.kept_mut(instance) else {
            return;
        };
        kept.schedule.since.get_or_insert(now);
        match outcome {
            Ok(()) => kept.schedule.succeeded(now, interval, jitter),
            Err(error) => kept.schedule.failed(now, error, interval, jitter),
        }
        // A watched file is looked at every second, which is nothing to write down.
        if is_service && let Err(error) = kept.save_schedule(disk) {
            tracing::warn!("{error:#}; after a restart the service is asked earlier");
        }
    }

    /// Notes what a watched file was when it was read.
    pub(super) fn note_seen(&mut self, seen: Option<Seen>) {
        self.seen = seen.or(self.seen.take());
    }
}

fn open_kept(config: &Config, instance: Instance) -> Result<Kept> {
    let kept = Kept::open(&config.state.directory, instance).code(Code::System)?;
    for damaged in kept.damaged() {
        tracing::warn!("not used: {damaged}");
    }
    Ok(kept)
}

/// Between 0 and 1, another one each time; none for a file.
fn jitter(source: &ListSource) -> f64 {
    match source {
        ListSource::Service(_) => {
            f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
        }
        _ => 0.0,
    }
}

/// A look at the source.
pub(super) struct Look {
    watched: Option<(PathBuf, Option<Seen>)>,
    service: Option<Service>,
    instances: Vec<Instance>,
    known: BTreeMap<Instance, String>,
    /// Those for which the last look has failed already.
    failing: BTreeSet<Instance>,
}

impl Look {
    /// Takes it. Returns as well what a watched file was like.
    pub(super) async fn take(self) -> (Looked, Option<Seen>) {
        if let Some((file, seen)) = self.watched {
            // It may be large, or on another machine.
            let read = tokio::task::spawn_blocking(move || read_watched(&file, seen));
            let (outcome, seen) = read.await.unwrap_or_else(|error| {
                std::panic::resume_unwind(error.into_panic());
            });
            let looked = self.instances.first().map(|instance| (*instance, outcome));
            return (looked.into_iter().collect(), seen);
        }
        let mut looked: Looked = Vec::with_capacity(self.instances.len());
        for instance in &self.instances {
            let Some(service) = &self.service else {
                continue;
            };
            let before = looked
                .last()
                .and_then(|(_, outcome)| outcome.as_ref().err());
            let outcome = match before {
                // Each question is an attempt more, and some accounts are locked after three.
                Some(error) if error.is_refused_password() => Err(error.clone()),
                _ => {
                    let known = self.known.get(instance).map(String::as_str);
                    if self.failing.contains(instance) {
                        check(&service.once(), *instance, known).await
                    } else {
                        check(service, *instance, known).await
                    }
                }
            };
            looked.push((*instance, outcome));
        }
        (looked, None)
    }
}

/// Reads a watched file if it is not what it was.
fn read_watched(
    file: &Path,
    seen: Option<Seen>,
) -> (Result<Option<Fetched>, FetchError>, Option<Seen>) {
    let failed = |error: std::io::Error| FetchError::Transport {
        url: file.display().to_string(),
        reason: error.to_string(),
        was_noticed: false,
    };
    let now = match fs::metadata(file).and_then(|data| Ok((data.modified()?, data.len()))) {
        Ok(now) => now,
        Err(error) => return (Err(failed(error)), None),
    };
    if !file.is_file() {
        return (
            Err(failed(std::io::Error::other("it is no regular file"))),
            None,
        );
    }
    let (modified, length) = now;
    if let Some(seen) = seen.filter(|seen| (seen.modified, seen.length) == now) {
        return (seen.problem.clone().map_or(Ok(None), Err), Some(seen));
    }
    let fetched = crate::list::read_bytes(file).map(|endpoints| {
        Some(Fetched {
            version: None,
            source: file.display().to_string(),
            query: String::new(),
            endpoints,
            changes: Vec::new(),
        })
    });
    let fetched = fetched.map_err(|error| failed(std::io::Error::other(error)));
    let problem = fetched.as_ref().err().cloned();
    let seen = Seen {
        modified,
        length,
        problem,
    };
    (fetched, Some(seen))
}

/// The GUID by which the service tells this machine from others: made at the first use, and kept.
pub(super) fn client_id(state_directory: &Path) -> Result<String> {
    let path = state_directory.join("client-id");
    if let Ok(text) = read_text(&path)
        && let Ok(id) = text.trim().parse::<uuid::Uuid>()
    {
        return Ok(id.to_string());
    }
    let id = uuid::Uuid::new_v4().to_string();
    match Disk::reliable().write(&path, format!("{id}\n").as_bytes()) {
        // Where there is no state directory, there was no place to make one.
        Err(error) if is_full(&error) || error.kind() == ErrorKind::NotFound => {
            tracing::warn!(
                "cannot write {}: {error}; the service is asked with another id after a restart",
                path.display()
            );
        }
        written => written.with_context(|| format!("cannot write {}", path.display()))?,
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::Judge;

    /// A version that took more lists than this one may have put one into force.
    #[test]
    fn the_newest_list_that_loads_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.state.directory = directory.path().to_owned();
        config.list.unknown_networks = crate::config::UnknownNetworks::Allow;
        let mut kept = Kept::open(directory.path(), Instance::Worldwide).unwrap();
        let disk = Disk::reliable();
        let row = |id: u32| {
            format!(
                r#"{{"id":{id},"ips":["52.{}.{}.0/24"],"tcpPorts":"443","category":"Optimize"}}"#,
                112 + id / 250,
                id % 250
            )
        };
        for (version, sets) in [("2026070100", 9), ("2026080100", 4200)] {
            let rows: Vec<String> = (1..=sets).map(row).collect();
            let fetched = Fetched {
                version: Some(version.to_owned()),
                source: "test".to_owned(),
                query: String::new(),
                endpoints: format!("[{}]", rows.join(",")).into_bytes(),
                changes: Vec::new(),
            };
            let judge = Judge::new(&config.list, Vec::new());
            let number = kept
                .add(&disk, &fetched, &judge, Timestamp::now())
                .unwrap()
                .number;
            kept.amend(&disk, number, |record| {
                record.accepted = Some(Timestamp::now());
            })
            .unwrap();
            let state = InForce {
                record: Some(number),
                ..InForce::default()
            };
            kept.set_in_force(&disk, state).unwrap();
        }
        let preferences = BTreeMap::from([("local".to_owned(), 0)]);
        let mut slots = Slots::default();
        for expected in [9, 9] {
            let mut sources = Sources::open(&config, None).unwrap();
            let now = Timestamp::now();
            let loaded = sources.first_that_loads(&config, &preferences, &mut slots, now);
            let (ruleset, lists) = loaded.unwrap();
            assert_eq!(ruleset.rules.len(), expected);
            assert_eq!(lists[0].version.as_deref(), Some("2026070100"));
        }
        let kept = Kept::read_only(directory.path(), Instance::Worldwide);
        assert!(
            kept.refused()
                .unwrap()
                .refusal()
                .contains("cannot be loaded")
        );
    }

    /// What one cloud's service asks for holds no other one back.
    #[test]
    fn each_instance_waits_for_itself() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.state.directory = directory.path().to_owned();
        config.list.instance.0 = vec!["worldwide".to_owned(), "china".to_owned()];
        let mut sources = Sources::open(&config, None).unwrap();
        let now = Timestamp::now();
        sources.kept[1].schedule.last_attempt = Some(now);
        sources.kept[1].schedule.not_before = Some(now.after(Duration::from_secs(3600)));
        assert_eq!(sources.may_be_asked(now).unwrap(), [Instance::Worldwide]);
        let left_alone = sources.left_alone(now);
        assert!(left_alone[&Instance::China].contains("asked to be left alone until"));
        assert_eq!(left_alone.len(), 1);
        sources.kept[0].schedule = sources.kept[1].schedule.clone();
        assert!(sources.may_be_asked(now).is_err());
    }
}
