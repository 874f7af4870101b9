//! The compiled ruleset asked in the kernel, thousands of questions in one call, by programs that have no other use.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader};
use breakout_common::constants::Constants;
use breakout_common::question::{QUESTIONS, Question, QuestionWords, address_to_words};
use breakout_common::table::Destination;
use ipnet::IpNet;

use super::bpffs::PinDirectory;
use super::program::program;
use super::ruleset_capacity;
use super::sys::WordMap;
use super::tables::TableMap;
use crate::ruleset::Image;

/// A frame with room for the longest question.
const FRAME: [u8; 96] = [0; 96];
/// The maps that are made here rather than by the loader.
const MAPS: [&str; 3] = ["RULESET", "ASKED", "ANSWERS"];

/// Programs that ask a table, loaded but not attached.
pub struct Asker {
    pub(super) ebpf: Ebpf,
    ruleset: TableMap,
    asked: WordMap,
    answers: WordMap,
}

impl Asker {
    /// Loads an object that has the programs of `classifier-ebpf/src/bench`, with a table.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn load(object: &[u8], image: &Image) -> Result<Self> {
        Self::load_for_traffic(object, image, &[])
    }

    /// Loads the object with the bytes of its global `TRAFFIC`, if there are any.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn load_for_traffic(object: &[u8], image: &Image, traffic: &[u8]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = PathBuf::from(format!("asker-{}-{number}", std::process::id()));
        let pins = PinDirectory::open(&name)?;
        pins.create()?;
        let loaded = load(object, image, traffic, &pins);
        for map in MAPS {
            pins.remove(map)?;
        }
        pins.remove_directory()?;
        loaded
    }

    /// Replaces the table as [`DataPath::publish_ruleset`](super::DataPath::publish_ruleset) does.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, or it does not fit.
    pub fn publish(&mut self, image: &Image) -> Result<()> {
        self.ruleset.publish(image.words())
    }

    /// Another table in the kernel, as large as the data path would make it. Nothing asks it; it is there to be weighed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn table_like(&self, image: &Image) -> Result<impl Sized + use<>> {
        let words = image.words();
        let table = WordMap::create("RULESET", ruleset_capacity(words.len()))?;
        table.write(words)?;
        Ok(table)
    }

    /// Asks all questions through the header walk and the decision. There are always [`QUESTIONS`], so they are repeated
    /// as often as it takes. The answers are words as
    /// [`Decision::to_word`](breakout_common::verdict::Decision::to_word) makes them.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn ask(&mut self, questions: &[Question]) -> Result<Vec<u32>> {
        ensure!(!questions.is_empty(), "there are no questions");
        let words = questions.iter().cycle().take(QUESTIONS);
        let words: Vec<u32> = words.flat_map(Question::to_words).collect();
        self.asked.write(&words)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&FRAME);
        options.repeat = u32::try_from(QUESTIONS)?;
        self.xdp("ask")?
            .test_run(options)
            .context("the test run of ask failed")?;
        Ok(self.answers.read()?)
    }

    /// Sets the destinations that the programs for [`time`](Self::time) ask about, all of one family and repeated as
    /// often as it takes.
    ///
    /// # Errors
    ///
    /// When there are none, or the kernel refuses them.
    pub fn set_destinations(&mut self, destinations: &[Destination]) -> Result<()> {
        ensure!(!destinations.is_empty(), "there are no destinations");
        let mut words = Vec::with_capacity(QUESTIONS * 4);
        for destination in destinations.iter().cycle().take(QUESTIONS) {
            let address = address_to_words(*destination);
            let length = if destination.is_v6() { 4 } else { 1 };
            words.extend(&address[..length]);
        }
        Ok(self.asked.write(&words)?)
    }

    /// Returns how long one run of a TC program takes, averaged over many.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn time(&mut self, name: &str, runs: u32) -> Result<Duration> {
        let tc: &mut SchedClassifier = program(&mut self.ebpf, name)?;
        if tc.fd().is_err() {
            tc.load()?;
        }
        time(tc, &FRAME, runs)
    }

    /// Returns how long one run of an XDP program on a frame takes, averaged over many.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn time_xdp(&mut self, name: &str, frame: &[u8], runs: u32) -> Result<Duration> {
        time(self.xdp(name)?, frame, runs)
    }

    /// An XDP program, which is loaded when it is first wanted.
    pub(super) fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let xdp: &mut Xdp = program(&mut self.ebpf, name)?;
        if xdp.fd().is_err() {
            xdp.load().with_context(|| format!("cannot load {name}"))?;
        }
        Ok(xdp)
    }

    /// Puts prefixes into the kernel's own tries, the peers of the table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one.
    pub fn fill_tries(&mut self, prefixes: &[(IpNet, u32)]) -> Result<()> {
        self.fill_trie("LPM_V4", prefixes, |prefix| match prefix {
            IpNet::V4(net) => Some(net.network().octets()),
            IpNet::V6(_) => None,
        })?;
        self.fill_trie("LPM_V6", prefixes, |prefix| match prefix {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some(net.network().octets()),
        })
    }

    /// Puts those prefixes into a trie that have a network of its width.
    fn fill_trie<const N: usize>(
        &mut self,
        name: &str,
        prefixes: &[(IpNet, u32)],
        network: impl Fn(&IpNet) -> Option<[u8; N]>,
    ) -> Result<()> {
        let map = self.ebpf.map_mut(name);
        let mut trie: LpmTrie<_, [u8; N], u32> =
            map.context("the object has no tries")?.try_into()?;
        for (prefix, value) in prefixes {
            if let Some(network) = network(prefix) {
                let key = Key::new(u32::from(prefix.prefix_len()), network);
                trie.insert(&key, value, 0)?;
            }
        }
        Ok(())
    }
}

/// Returns how long one run of a program on a frame takes, averaged over many.
pub(super) fn time<'a, P>(program: &P, frame: &'a [u8], runs: u32) -> Result<Duration>
where
    P: TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.repeat = runs;
    Ok(program
        .test_run(options)
        .context("the test run failed")?
        .duration)
}

fn load(object: &[u8], image: &Image, traffic: &[u8], pins: &PinDirectory) -> Result<Asker> {
    let words = image.words();
    let size = ruleset_capacity(words.len());
    let ruleset = TableMap::create("RULESET", words, size, &pins.path("RULESET"))?;
    let words = QUESTIONS * size_of::<QuestionWords>() / 4;
    let asked = WordMap::create("ASKED", words)?;
    asked.map().pin(pins.path("ASKED"))?;
    let answers = WordMap::create("ANSWERS", QUESTIONS)?;
    answers.map().pin(pins.path("ANSWERS"))?;
    let constants = Constants {
        table_words: u32::try_from(size)?,
        ..Constants::UNSET
    };
    let constants = constants.to_bytes();
    let mut loader = EbpfLoader::new();
    loader.override_global("CONSTANTS", &constants, true);
    if !traffic.is_empty() {
        loader.override_global("TRAFFIC", traffic, true);
    }
    for map in MAPS {
        loader.map_pin_path(map, pins.path(map));
    }
    let ebpf = loader.load(object).context("cannot load the eBPF object")?;
    Ok(Asker {
        ebpf,
        ruleset,
        asked,
        answers,
    })
}
