//! Putting something into force: another configuration, other lists, or a switch. It either succeeds as a whole or leaves
//! things as they were.

use std::collections::BTreeMap;
use std::mem::swap;

use anyhow::{Result, anyhow};

use super::active_paths::{Exchanged, Intent};
use super::applied::{Applied, AppliedList};
use super::egress::EgressState;
use super::install;
use super::lans::{Lans, WithoutXdp, look_at_lans, refuse_missing};
use super::pinning::connections;
use super::sources::{Sources, WithWaiting};
use super::translation::forget_beside;
use super::{Controller, delta, egress, faults, make_loadable, make_ruleset, summary};
use crate::config::{self, Config};
use crate::control::{Plan, Reloaded};
use crate::datapath::LanPlan;
use crate::exit::{Code, WithCode};
use crate::health::default_targets;
use crate::journal::{self, Entry, Who};
use crate::list::{InForce, Instance, List};
use crate::policy::{Build, Policy};
use crate::ruleset::{Image, Ruleset, Slots, compile};
use crate::timestamp::Timestamp;

/// Reason for an activation.
#[derive(Clone, Debug)]
pub(super) struct Cause {
    pub(super) who: Who,
    /// See [`Entry::action`].
    pub(super) action: &'static str,
    pub(super) why: String,
}

impl Cause {
    pub(super) fn operator(action: &'static str, why: impl Into<String>) -> Self {
        Cause {
            who: Who::Operator,
            action,
            why: why.into(),
        }
    }
}

/// Intended state.
pub(super) struct Wanted {
    pub(super) config: Config,
    pub(super) lists: Vec<List>,
    pub(super) bypass: bool,
    /// The time that grace times are reckoned from.
    pub(super) as_of: Timestamp,
}

/// Treatment of lists that wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    Apply,
    Wait,
}

/// Result of an operator's order: configuration and lists together.
pub(super) struct Next {
    config: Config,
    preferences: BTreeMap<String, u8>,
    /// The sources of the lists, if they are others than before.
    sources: Option<Sources>,
    lists: Vec<List>,
    /// Lists that are activated by it.
    pub(super) states: Vec<(Instance, InForce)>,
    /// Changes, in sentences.
    pub(super) causes: Vec<String>,
}

/// Input of an installation.
struct Setup {
    config: Config,
    lists: Vec<List>,
    ruleset: Ruleset,
    slots: Slots,
    lans: Vec<LanPlan>,
    without_xdp: WithoutXdp,
    // Saved with what is installed, so that an index never means something else after a crash.
    egress_indices: BTreeMap<String, u8>,
    preference_indices: BTreeMap<String, u8>,
}

impl Controller {
    /// Reads the configuration again, and the list if it is a file that is used as it is.
    pub(super) async fn reload(&mut self) -> Result<Reloaded> {
        self.obstacles.want_look();
        let cause = Cause::operator("reload", "the configuration was read again");
        let next = self.next(Waiting::Wait)?;
        self.go_over(next, self.as_of(), &cause).await
    }

    /// Goes over to a configuration with its lists. Everything else follows from that, and cannot fail any more.
    pub(super) async fn go_over(
        &mut self,
        next: Next,
        as_of: Timestamp,
        cause: &Cause,
    ) -> Result<Reloaded> {
        let Next {
            config,
            sources,
            lists,
            states,
            ..
        } = next;
        let wanted = Wanted {
            config,
            lists,
            bypass: self.ruleset.bypass,
            as_of,
        };
        let done = self.put_into_force(wanted, cause).await?;
        if let Some(mut sources) = sources {
            sources.hurry(Timestamp::now());
            self.sources = sources;
            // What is being looked at is not the source any more.
            self.looks.abandon(
                "[list] has changed while its former source was being looked at; run breakout list fetch again",
            );
        }
        for (instance, state) in states {
            self.keep_in_force(instance, state);
        }
        Ok(done)
    }

    /// Adds to what an order has done what could not be written down.
    pub(super) fn noted(&self, done: Result<Reloaded>) -> Result<Reloaded> {
        done.map(|mut done| {
            done.notes
                .extend(self.unsaved.as_ref().map(ToString::to_string));
            done.notes.extend(self.sources.unsaved());
            done
        })
    }

    /// Returns what the configuration file and the lists come to now, before any of it is in force.
    pub(super) fn next(&self, waiting: Waiting) -> Result<Next> {
        let config = self.read_config()?;
        let sources = self.sources_of(&config)?;
        let followed = sources.as_ref().unwrap_or(&self.sources);
        let mut causes = Vec::new();
        if config != self.config {
            causes.push(format!(
                "the configuration {} was edited",
                self.options.config.display()
            ));
        }
        let now = Timestamp::now();
        let mut persistent = self.persistent.clone();
        persistent.assign_indices(&config).code(Code::Config)?;
        let build = Build {
            config: &config,
            preferences: &persistent.preferences,
        };
        let grace = longest_grace(&build.policy().code(Code::Config)?);
        let with = match waiting {
            Waiting::Apply => followed.with_waiting(now, grace)?,
            Waiting::Wait => WithWaiting {
                lists: followed.lists(),
                ..WithWaiting::default()
            },
        };
        causes.extend(with.names.iter().map(|name| format!("list {name} waits")));
        let WithWaiting { lists, states, .. } = with;
        Ok(Next {
            config,
            preferences: persistent.preferences,
            sources,
            lists,
            states,
            causes,
        })
    }

    /// Returns what a reload and the lists that wait would change.
    pub(super) fn plan(&self) -> Result<Plan> {
        let Next {
            config,
            preferences,
            lists,
            mut causes,
            ..
        } = self.next(Waiting::Apply)?;
        let mut slots = self.slots.clone();
        let ruleset = make_loadable(&config, &lists, &preferences, &mut slots, Timestamp::now())?;
        if causes.is_empty() && ruleset.hash() != self.ruleset_hash {
            causes.push(
                "a file that the configuration names was edited, or a grace time is over"
                    .to_owned(),
            );
        }
        Ok(Plan {
            causes,
            from_hash: self.ruleset_hash.clone(),
            to_hash: ruleset.hash(),
            delta: delta::between(&self.ruleset, &ruleset, &preferences),
        })
    }

    /// The configuration as the file has it now, if it can be put into force without a restart.
    pub(super) fn read_config(&self) -> Result<Config> {
        let config = config::load(&self.options.config).code(Code::Config)?;
        if config.state != self.config.state
            || config.control != self.config.control
            || config.routing != self.config.routing
            || config.metrics != self.config.metrics
        {
            return Err(anyhow!(
                "[state], [control], [routing] and [metrics] cannot change in a reload; restart the controller for that"
            ))
            .code(Code::Config);
        }
        Ok(config)
    }

    /// The sources of a configuration, unless they are those that are open and need no reading again.
    pub(super) fn sources_of(&self, config: &Config) -> Result<Option<Sources>> {
        let is_open = self.sources.is_followed() && self.sources.problem.is_none();
        if config.list == self.config.list && is_open {
            return Ok(None);
        }
        let open = &self.sources.kept;
        let sources = Sources::open_beside(config, self.options.list.as_deref(), open)?;
        warn_of_problems(&sources.lists());
        Ok(Some(sources))
    }

    /// The policy of a configuration.
    pub(super) fn policy(&self, config: &Config) -> Result<Policy> {
        let preferences = &self.persistent.preferences;
        Build {
            config,
            preferences,
        }
        .policy()
        .code(Code::Config)
    }

    /// The time that grace times are reckoned from: now, or after a rollback when the ruleset was made.
    pub(super) fn as_of(&self) -> Timestamp {
        let mut kept = self.sources.kept.iter();
        let held = kept.find_map(|kept| kept.state().held.as_ref());
        held.map_or_else(Timestamp::now, |held| held.as_of)
    }

    /// Puts something into force, in one switch of tables if the interfaces and modes stay, else by a new installation that
    /// takes over.
    pub(super) async fn put_into_force(
        &mut self,
        wanted: Wanted,
        cause: &Cause,
    ) -> Result<Reloaded> {
        let from_generation = self.generation;
        let from_hash = self.ruleset_hash.clone();
        let was_bypassed = self.ruleset.bypass;
        let Wanted {
            config,
            lists,
            bypass,
            as_of,
        } = wanted;
        let mut slots = self.slots.clone();
        let mut persistent = self.persistent.clone();
        persistent.assign_indices(&config).code(Code::Config)?;
        let indices = &persistent.preferences;
        let mut ruleset = make_ruleset(&config, &lists, indices, &mut slots, as_of)?;
        ruleset.own = self.links.own_addresses().await?;
        ruleset.bypass = bypass;
        let delta = delta::between(&self.ruleset, &ruleset, indices);
        faults::step("compile the ruleset").code(Code::List)?;
        let mut image = compile(&ruleset).code(Code::List)?;
        // What needs no other interfaces works without those that are gone just now.
        let Lans {
            lans,
            missing,
            without_xdp,
        } = if config == self.config && !matches!(cause.action, "reload" | "apply") {
            Lans {
                lans: self.lans.clone(),
                missing: self.missing_lans.clone(),
                without_xdp: self.without_xdp.clone(),
            }
        } else {
            // What refused XDP is asked again.
            look_at_lans(
                &self.links,
                &config,
                &self.lans,
                &WithoutXdp::default(),
                &persistent.egresses,
            )
            .await?
        };
        if config.lan != self.config.lan {
            refuse_missing(&missing)?;
        }
        let same_setup = config.egress == self.config.egress
            && install::pins(&config) == install::pins(&self.config);
        let same_interfaces = lans == self.lans && same_setup;
        let lans_before = self.lans.clone();
        let to_hash = ruleset.hash();
        let same_rules = to_hash == from_hash
            && ruleset.bypass == self.ruleset.bypass
            && ruleset.own == self.ruleset.own
            && cause.action == "list";
        image.set_generation(self.generation.wrapping_add(1));
        faults::step("read the ruleset in force")?;
        let before = self.ways_now()?;
        if !same_rules {
            self.pin_the_ordinary(&before, image.words());
        }
        // From the switch on nothing fails any more; what does not work is said.
        let mut warnings = Vec::new();
        // What has to be translated afresh once it has moved.
        let mut moving = Vec::new();
        if bypass && !was_bypassed {
            moving = connections(self.steered_connections());
        }
        if same_interfaces && same_rules {
            // Another version of the same rules: nothing to switch.
            (self.config, self.lists, self.ruleset, self.slots) = (config, lists, ruleset, slots);
        } else if same_interfaces
            && self.publish_ruleset(&mut image, &persistent.preferences, bypass)?
        {
            (self.config, self.lists, self.ruleset, self.slots) = (config, lists, ruleset, slots);
            self.persistent.egresses = persistent.egresses;
            self.persistent.preferences = persistent.preferences;
            self.commit(from_generation.wrapping_add(1));
        } else {
            let indices = &persistent.egresses;
            let (former, since) = {
                let paths = self.failover.paths();
                (paths.egresses().to_vec(), paths.fact_number())
            };
            faults::step("look at the egresses")?;
            let egresses = egress::look(&self.links, &config, indices, &former).await?;
            // A change of something else shall not wait for a link that is gone just now.
            let is_new = |egress: &&EgressState| {
                self.config.egress.get(&egress.name) != Some(&egress.config)
            };
            egress::insist(egresses.iter().filter(is_new))?;
            let intent = Intent {
                config: config.clone(),
                preferences: persistent.preferences.clone(),
                targets: default_targets(&lists),
            };
            let is_beyond = config.pinning.enabled && !bypass;
            let published = self.failover.paths().staged(&intent, &egresses, is_beyond);
            let after = published.table;
            moving.extend(self.flows_that_lose_their_way(&before.words, &before.paths, &after));
            let setup = Setup {
                config,
                lists,
                ruleset,
                slots,
                lans,
                without_xdp,
                egress_indices: persistent.egresses,
                preference_indices: persistent.preferences,
            };
            let paths = Exchanged {
                intent,
                egresses,
                published,
                maps: None,
                since,
                knowledge: None,
            };
            self.replace(setup, paths, image).await?;
        }
        if bypass
            && let Err(error) = faults::step("forget flows").and_then(|()| self.unpin_steered())
        {
            warnings.push(format!(
                "flows that were steered before may stay where they are: {error:#}"
            ));
        }
        moving.extend(self.unpinned_that_move(&before));
        forget_beside(moving);
        {
            let mut paths = self.failover.paths();
            paths.set_config(self.config.clone(), default_targets(&self.lists));
            paths.settle();
        }
        self.after_failover();
        self.missing_lans = missing;
        self.ruleset_hash = to_hash.clone();
        self.as_of = as_of;
        self.write_down(cause, from_generation, &from_hash);
        Ok(Reloaded {
            from_generation,
            to_generation: self.generation,
            changed: !same_setup
                || self.lans != lans_before
                || to_hash != from_hash
                || was_bypassed != bypass,
            from_hash,
            to_hash,
            list: self.lists.first().map(summary).unwrap_or_default(),
            lists: self.lists.iter().map(summary).collect(),
            delta,
            notes: warnings,
        })
    }

    /// Adds to the journal and keeps the ruleset. The data path is right already, so a full disk is no reason to fail.
    pub(super) fn write_down(&mut self, cause: &Cause, from_generation: u32, from_hash: &str) {
        let entry = Entry {
            at: Timestamp::now(),
            who: cause.who,
            action: cause.action.to_owned(),
            from_generation,
            to_generation: self.generation,
            from_hash: from_hash.to_owned(),
            to_hash: self.ruleset_hash.clone(),
            lists: self.lists.iter().map(List::name).collect(),
            why: cause.why.clone(),
        };
        let subject = format!("generation {}", self.generation);
        self.events
            .note("ruleset", subject, cause.action, &*cause.why);
        let path = journal::path(&self.config.state.directory);
        let written =
            faults::step("write the journal").and_then(|()| Ok(journal::append(&path, &entry)?));
        if let Err(error) = written {
            tracing::warn!("cannot write {}: {error}", path.display());
        }
        let applied = Applied {
            generation: self.generation,
            hash: self.ruleset_hash.clone(),
            at: entry.at,
            as_of: self.as_of,
            who: cause.who,
            why: cause.why.clone(),
            lists: self.applied_lists(),
            rules: delta::lines(&self.ruleset, &self.persistent.preferences),
        };
        let keep = self.config.list.keep;
        let kept = faults::step("keep the ruleset")
            .and_then(|()| self.applied.add(&self.sources.disk, applied, keep));
        if let Err(error) = kept {
            tracing::warn!("{error:#}; this ruleset cannot be gone back to");
        }
    }

    pub(super) fn applied_lists(&self) -> Vec<AppliedList> {
        let lists = self.lists.iter().map(|list| AppliedList {
            instance: list.instance,
            record: list.record,
            version: list.version.clone(),
            hash: list.hash(),
            withdrawn: list.withdrawn().cloned().collect(),
        });
        lists.collect()
    }

    /// Installs another setup; if that fails, the one before stays in force.
    async fn replace(&mut self, mut setup: Setup, paths: Exchanged, image: Image) -> Result<()> {
        let lans = self.persistent.lans.clone();
        self.exchange(&mut setup);
        let Err(error) = self.install(image, paths).await else {
            return Ok(());
        };
        self.exchange(&mut setup);
        self.persistent.lans = lans;
        self.save("after a crash, what is installed now may have to be removed by hand");
        let egresses = self.egresses();
        let plan = egress::routing(&self.config, &egresses);
        let routing = self.links.apply_routing(&plan).await;
        if let Err(left) = routing.and(self.apply_nat(&egresses).await) {
            // The regular look puts it right.
            tracing::error!("rules and routes are not yet as they were: {left:#}");
        }
        Err(error.context("nothing has changed"))
    }

    fn exchange(&mut self, setup: &mut Setup) {
        swap(&mut self.config, &mut setup.config);
        swap(&mut self.lists, &mut setup.lists);
        swap(&mut self.ruleset, &mut setup.ruleset);
        swap(&mut self.slots, &mut setup.slots);
        swap(&mut self.lans, &mut setup.lans);
        swap(&mut self.without_xdp, &mut setup.without_xdp);
        let persistent = &mut self.persistent;
        swap(&mut persistent.egresses, &mut setup.egress_indices);
        swap(&mut persistent.preferences, &mut setup.preference_indices);
    }
}

/// The longest grace time of any rule.
pub(super) fn longest_grace(policy: &Policy) -> std::time::Duration {
    let graces = policy.rules.iter().map(|rule| rule.grace);
    graces.max().unwrap_or_default()
}

/// Logs what of the lists cannot be used.
pub(super) fn warn_of_problems(lists: &[List]) {
    for list in lists {
        for problem in crate::control::Unusable::of(list) {
            tracing::warn!("list {}: {problem}", list.name());
        }
    }
}
