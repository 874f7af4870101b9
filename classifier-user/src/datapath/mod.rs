//! The kernel side: programs and maps. The one module that names aya.
//!
//! [`DataPath::prepare`] builds a complete set of maps and programs beside the one in force, and [`DataPath::attach`] lets it take
//! over, interface by interface, each in one atomic replacement. [`DataPath::publish_ruleset`] and
//! [`PathMaps::publish`] replace a whole table of the set in force in one atomic store. Links are
//! pinned, so the programs go on without a controller; counters and the pins of flows are too, so they go on.

mod answers;
mod asker;
mod attached;
mod bench;
mod bpffs;
mod clock;
mod counters;
mod flows;
mod kept;
mod mapped;
mod mappings;
mod object;
mod paths;
mod pins;
mod plan;
mod program;
mod synthetic;
mod sys;
mod tables;
mod traffic;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{DevMapHash, HashMap, Map, MapData};
use breakout_common::verdict::Reason;

use crate::ruleset::Image;
use bpffs::PinDirectory;
use flows::{ADDRESSES, FLOWS, NOTES};
use kept::Kept;
use mappings::MAPPINGS;
use program::{Added, Options, Programs};
use tables::TableMap;

pub use answers::TrafficView;
pub use asker::Asker;
pub use attached::{Attachment, Hook, Side};
pub use bench::{Bench, Run, Size};
pub use clock::Clock;
pub use counters::{Count, Counters};
pub use flows::{BegunLately, FlowTable, Pinned, Unanswered};
pub use mappings::Mapping;
pub use object::object;
pub use paths::PathMaps;
pub use plan::{LanPlan, Paths, Plan};
pub use program::has_tcx;
pub use synthetic::{Catcher, Caught};

/// The maps that all programs of one installation share, as the eBPF object names them.
const MAPS: [&str; 16] = [
    "RULESET",
    "PATHS",
    "DEVICES",
    "TC_DEVICES",
    "FRAGMENTS",
    "REASONS",
    "SETS",
    FLOWS,
    NOTES,
    ADDRESSES,
    pins::EVENTS,
    "LANS",
    program::TC_LANS,
    "REPLIES",
    answers::ANSWERS,
    MAPPINGS,
];
/// Those of them that later installations go on using.
const LASTING_MAPS: [&str; 9] = [
    "REASONS",
    "SETS",
    "REPLIES",
    FLOWS,
    NOTES,
    ADDRESSES,
    pins::EVENTS,
    answers::ANSWERS,
    MAPPINGS,
];

/// Another controller's program is on a LAN interface.
#[derive(Debug, thiserror::Error)]
#[error(
    "another Breakout controller's program is attached to {interface}. Stop that controller, or, if it has died, run \
     `breakout unload --config FILE` with its configuration"
)]
pub struct Foreign {
    /// The interface.
    pub interface: String,
}

/// An interface takes no XDP program natively, as it is now. TC does all of the work there if the plan has no XDP for it.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct XdpRefused {
    /// The interface.
    pub interface: String,
    /// Objection of the kernel or the driver.
    pub why: String,
}

/// The data path of one controller.
pub struct DataPath {
    pins: PinDirectory,
    /// True if another version of Breakout left something.
    had_other_layout: bool,
    live: Option<Live>,
    /// Entries of the table of flows that somebody seems to be writing, by their slots.
    begun: BTreeMap<u32, u64>,
}

/// The installation in force.
struct Live {
    programs: Vec<Programs>,
    ruleset: TableMap,
    kept: Option<Kept>,
}

/// An installation that is complete, and not in force yet.
pub struct Prepared(Live);

impl DataPath {
    /// Opens the data path that belongs to a state directory, with whatever an earlier controller left there.
    ///
    /// # Errors
    ///
    /// When the BPF file system cannot be reached.
    pub fn open(state_directory: &Path) -> Result<Self> {
        let pins = PinDirectory::open(state_directory)?;
        let had_other_layout = pins.adopt_links(is_link)?;
        let datapath = DataPath {
            pins,
            had_other_layout,
            live: None,
            begun: BTreeMap::new(),
        };
        // Should an earlier controller have ended in the middle.
        datapath.settle_pins(false)?;
        Ok(datapath)
    }

    /// Returns whether an earlier controller was not stopped in order, so that its programs may be attached.
    pub fn has_leftovers(&self) -> bool {
        self.had_other_layout || self.pins.names().is_ok_and(|names| !names.is_empty())
    }

    /// Fails if another controller's program is on one of the interfaces.
    ///
    /// # Errors
    ///
    /// [`Foreign`], or when the kernel does not answer.
    pub fn refuse_foreign(&self, lans: &[LanPlan]) -> Result<()> {
        lans.iter()
            .try_for_each(|lan| program::refuse_foreign(lan, &self.pins))
    }

    /// Forgets all counts, for when it is no longer known which endpoint set has which counter.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed.
    pub fn reset_counters(&self) -> Result<()> {
        LASTING_MAPS
            .iter()
            .try_for_each(|map| self.pins.remove(map))
    }

    /// Builds maps and programs for the plan, beside those in force, which takes long. Returns as well what its path table is
    /// published in.
    ///
    /// # Errors
    ///
    /// When something cannot be loaded.
    pub fn prepare(&self, plan: &Plan<'_>) -> Result<(Prepared, PathMaps)> {
        self.refuse_foreign(plan.lans)?;
        self.pin_again()?;
        let image = self.covering_flows(plan)?;
        let plan = &Plan {
            image: &image,
            ..*plan
        };
        let staged = self.stage(plan, false);
        let unstaged = self.unstage();
        staged
            .and_then(|(live, paths)| unstaged.map(|()| (Prepared(live), paths)))
            .inspect_err(|_| self.keep_former_pins())
    }

    /// The plan's ruleset, in which what flows of rulesets before may go to is covered.
    fn covering_flows<'a>(&self, plan: &Plan<'a>) -> Result<Cow<'a, Image>> {
        let mut image = Cow::Borrowed(plan.image);
        if plan.paths.table.pins_beyond_ruleset == 0 {
            return Ok(image);
        }
        if self.live.is_some() {
            image.to_mut().cover_as(&self.live_table()?);
        } else if self.has_pins() {
            // Which ruleset they are of is not known.
            image.to_mut().cover_everything();
        }
        Ok(image)
    }

    /// Lets what was prepared take over on every LAN interface, those of the plan. Programs may be on `former` ones, among others.
    ///
    /// Adds the interfaces that got a clsact qdisc to `clsact`, also when it fails.
    ///
    /// # Errors
    ///
    /// When something cannot be attached. Then nothing stays attached that was not before.
    pub fn attach(
        &mut self,
        prepared: Prepared,
        lans: &[LanPlan],
        former: &BTreeSet<String>,
        clsact: &mut Vec<String>,
    ) -> Result<()> {
        let Prepared(mut live) = prepared;
        let mut added = Added::default();
        let attached = attach_all(&mut live.programs, &self.pins, &mut added);
        clsact.append(&mut added.clsact);
        if let Err(error) = attached {
            added.undo(&self.pins);
            self.keep_former_pins();
            // Those that had been replaced already get their programs back.
            let before = self.live.iter_mut().flat_map(|live| &mut live.programs);
            for programs in before {
                if let Err(error) = programs.take_over(&self.pins) {
                    tracing::error!("cannot go back to the programs before: {error:#}");
                }
            }
            return Err(error);
        }
        self.live = Some(live);
        // What follows tidies up; the new installation is in force.
        let tidied = self.settle_pins(true).and(self.remove_links_except(lans));
        if let Err(error) = tidied.and(self.pins.remove_other_layouts()) {
            tracing::warn!("programs before are left: {error:#}");
        }
        if let Err(error) = self.keep_pinned() {
            tracing::warn!("if somebody removes the pins, they cannot be put back: {error:#}");
        }
        let is_gone = |name: &&String| lans.iter().all(|lan| lan.name != **name);
        let removed = former.iter().filter(is_gone);
        let removed = removed.map(|name| (name, program::remove_filters(name)));
        let unused = lans
            .iter()
            .map(|lan| (&lan.name, program::remove_unused_filter(lan)));
        for (name, outcome) in removed.chain(unused) {
            if let Err(error) = outcome {
                tracing::warn!("a filter is left on {name}: {error:#}");
            }
        }
        Ok(())
    }

    /// Lets go of what was prepared and is not to take over.
    pub fn discard(&self, prepared: Prepared) {
        drop(prepared);
        self.keep_former_pins();
    }

    /// Opens what is pinned, so that it does not depend on its pins.
    fn keep_pinned(&mut self) -> Result<()> {
        let links = self.pins.names()?.into_iter().filter(|name| is_link(name));
        let maps = LASTING_MAPS.map(str::to_owned);
        let kept = Kept::open(&self.pins, links.chain(maps))?;
        self.live_mut()?.kept = Some(kept);
        Ok(())
    }

    /// Pins again what somebody has unpinned. Returns the names of those pins.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pin_again(&self) -> Result<Vec<String>> {
        let kept = self.live.as_ref().and_then(|live| live.kept.as_ref());
        kept.map_or(Ok(Vec::new()), |kept| kept.pin_again(&self.pins))
    }

    /// One of the maps that later installations go on using.
    fn lasting_map(&self, name: &str) -> Result<MapData> {
        match self.live.as_ref().and_then(|live| live.kept.as_ref()) {
            Some(kept) => kept.map(name),
            None => MapData::from_pin(self.pins.path(name))
                .with_context(|| format!("cannot open the pinned map {name}")),
        }
    }

    fn keep_former_pins(&self) {
        if let Err(error) = self.settle_pins(false) {
            tracing::warn!("the pins of flows are not put back: {error:#}");
        }
    }

    /// Loads everything, filled and ready, without attaching it. With `report` test runs find the decisions.
    fn stage(&self, plan: &Plan<'_>, report: bool) -> Result<(Live, PathMaps)> {
        self.pins.create()?;
        self.unstage()?;
        let words = plan.image.words();
        let size = ruleset_capacity(words.len());
        let ruleset = TableMap::create("RULESET", words, size, &self.pins.path("RULESET"))?;
        let paths = PathMaps::create(&self.pins, plan.paths)?;
        let table_words = u32::try_from(size)?;
        let trace = plan.trace;
        let pins = plan.pins;
        let (flows, carried) = self.shape_for(pins)?;
        let mappings = self.mappings_for(plan.mappings)?;
        let options = Options {
            trace,
            report,
            pins: pins.is_some(),
            flows,
            mappings: mappings.shape,
            translates: plan.mappings.is_some(),
            interfaces: u32::try_from(plan.lans.len())?.max(1),
        };
        let mut programs = Vec::with_capacity(plan.lans.len());
        for lan in plan.lans {
            programs.push(
                Programs::load(lan, &self.pins, table_words, options)
                    .with_context(|| format!("cannot load the programs for {}", lan.name))?,
            );
        }
        let live = Live {
            programs,
            ruleset,
            kept: None,
        };
        let mut paths = PathMaps::open(&self.pins, paths, plan.paths)?;
        let mut lans: DevMapHash<MapData> = open_map(&self.pins.path("LANS"))?.try_into()?;
        for lan in plan.lans.iter().filter(|lan| lan.takes_replies) {
            lans.insert(lan.index, lan.index, None, 0)
                .with_context(|| format!("replies cannot be redirected to {}", lan.name))?;
        }
        let mut lans: HashMap<MapData, u32, u32> =
            open_map(&self.pins.path("TC_LANS"))?.try_into()?;
        let takes_translated = |lan: &&LanPlan| plan.mappings.is_some() && !lan.is_egress;
        for lan in plan.lans.iter().filter(takes_translated) {
            lans.insert(lan.index, lan.index, 0)
                .with_context(|| format!("replies cannot be sent to {}", lan.name))?;
        }
        self.make_ready(mappings)?;
        let table = self.carry_over(flows, &carried)?;
        table.keep_all(&(plan.pinned)());
        if pins.is_some() {
            paths.view = Some(TrafficView::open(&self.pins, table)?);
        }
        Ok((live, paths))
    }

    /// Removes the pins by which the loader was given the maps; the programs hold the maps now.
    fn unstage(&self) -> Result<()> {
        let mut staged = MAPS.iter().filter(|map| !LASTING_MAPS.contains(map));
        staged.try_for_each(|map| self.pins.remove(map))
    }

    /// Replaces the ruleset in one atomic switch. Returns `false`, and changes nothing, if it does not fit into the
    /// tables of this installation; [`prepare`](Self::prepare) then makes larger ones. Where flows of rulesets before may go on,
    /// what those cover stays covered, until [`cover_only_ruleset`](Self::cover_only_ruleset).
    ///
    /// # Errors
    ///
    /// When the kernel refuses the new table.
    pub fn publish_ruleset(&mut self, image: &mut Image, has_flows_beyond: bool) -> Result<bool> {
        let ruleset = &mut self.live_mut()?.ruleset;
        if image.words().len() > ruleset.size() {
            return Ok(false);
        }
        if has_flows_beyond {
            image.cover_as(&ruleset.read()?);
        }
        ruleset.publish(image.words())?;
        Ok(true)
    }

    /// Has packets that the ruleset in force does not cover pass at once, once no flow of rulesets before is left.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the new table. Then packets are decided as before, only slower.
    pub fn cover_only_ruleset(&mut self) -> Result<()> {
        let mut image = Image::of(self.live_table()?);
        if image.cover_nothing_else() {
            self.live_mut()?.ruleset.publish(image.words())?;
        }
        Ok(())
    }

    /// The words of the ruleset table in force, read back from the kernel.
    ///
    /// # Errors
    ///
    /// When nothing is installed or the table cannot be read.
    pub fn live_table(&self) -> Result<Vec<u32>> {
        self.live
            .as_ref()
            .context("nothing is installed")?
            .ruleset
            .read()
    }

    /// All counters, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// When there are none, or they cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let [reasons, sets, replies, ..] = LASTING_MAPS;
        Counters::read(
            self.lasting_map(reasons)?,
            self.lasting_map(sets)?,
            self.lasting_map(replies)?,
        )
    }

    /// The counters by reason.
    ///
    /// # Errors
    ///
    /// As [`counters`](Self::counters).
    pub fn reasons(&self) -> Result<Vec<(Reason, Count)>> {
        counters::by_reason(self.lasting_map(LASTING_MAPS[0])?)
    }

    /// The size of one ruleset table in bytes.
    pub fn table_bytes(&self) -> u64 {
        self.live
            .as_ref()
            .map_or(0, |live| live.ruleset.size() as u64 * 4)
    }

    /// Takes the logger's ring buffers of all programs, for `--trace`.
    ///
    /// # Errors
    ///
    /// When the programs were loaded without them.
    pub fn trace_logs(&mut self) -> Result<Vec<aya_log::EbpfLogger<&'static dyn log::Log>>> {
        let live = self.live_mut()?;
        let logs = live.programs.iter_mut();
        logs.map(|programs| Ok(aya_log::EbpfLogger::init(programs.ebpf())?))
            .collect()
    }

    /// Detaches every program and removes every pin, also those of an earlier controller. `filters` names the LAN
    /// interfaces, where kernels before 6.6 have a filter.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed; everything that can be removed is.
    pub fn uninstall(mut self, filters: &BTreeSet<String>) -> Result<()> {
        let mut outcome = Ok(());
        for interface in filters {
            outcome = outcome.and(program::remove_filters(interface));
        }
        for name in self.pins.names()? {
            outcome = outcome.and(self.pins.remove(&name));
        }
        outcome = outcome.and(self.pins.remove_other_layouts());
        self.live = None;
        outcome.and(self.pins.remove_directory())
    }

    fn remove_links_except(&self, lans: &[LanPlan]) -> Result<()> {
        let mut wanted: Vec<String> = lans
            .iter()
            .flat_map(|lan| lan.sides().iter().map(|side| lan.pin_at(*side)))
            .collect();
        wanted.extend(
            lans.iter()
                .filter(|lan| lan.xdp.is_some())
                .map(LanPlan::xdp_pin),
        );
        for name in self.pins.names()? {
            if is_link(&name) && !wanted.contains(&name) {
                self.pins.remove(&name)?;
            }
        }
        Ok(())
    }

    fn live_mut(&mut self) -> Result<&mut Live> {
        self.live.as_mut().context("nothing is installed")
    }
}

/// Attaches where nothing is attached yet, which may be refused, before it lets anything be taken over.
fn attach_all(programs: &mut [Programs], pins: &PinDirectory, added: &mut Added) -> Result<()> {
    // Egresses first, for replies of what the others send.
    programs.sort_by_key(|programs| !programs.lan().is_egress);
    for programs in &mut *programs {
        programs.attach_new(pins, added)?;
    }
    programs
        .iter_mut()
        .try_for_each(|programs| programs.take_over(pins))
}

/// Room for an eighth more words than are needed now, up to 64 KiB, in whole pages.
fn ruleset_capacity(words: usize) -> usize {
    const PAGE_WORDS: usize = 1024;
    const MOST: usize = 16 * PAGE_WORDS;
    (words + (words / 8).min(MOST)).next_multiple_of(PAGE_WORDS)
}

fn is_link(name: &str) -> bool {
    name.starts_with("tc-") || name.starts_with("xdp-")
}

fn open_map(path: &Path) -> Result<Map> {
    let data = MapData::from_pin(path).context("cannot open a pinned map")?;
    Ok(Map::from_map_data(data)?)
}
