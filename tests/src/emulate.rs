//! The eBPF programs run by an emulator that counts: how many instructions a packet costs, exactly and without noise.
//!
//! What is counted are the instructions of the object, each once when it is executed. What the kernel makes of a call of a
//! helper (it inlines lookups in arrays) is not counted, beyond the call itself.

mod machine;
mod maps;
mod office;

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use machine::Machine;
use maps::Maps;
pub use office::{PACKETS, Packet, executed, executed_for_answer};

/// The object with its maps, ready to run any of its programs.
pub struct Emulator {
    machine: Machine,
    programs: BTreeMap<String, Vec<bpf_insn>>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What the program returned.
    pub code: u32,
    /// The frame as it came out.
    pub frame: Vec<u8>,
    /// How many instructions were executed.
    pub executed: u64,
}

/// Offsets of the fields of `struct xdp_md` and `struct __sk_buff` that programs read (Linux UAPI).
mod context {
    pub(super) const XDP_LEN: usize = 24;
    pub(super) const XDP_DATA: usize = 0;
    pub(super) const XDP_END: usize = 4;
    pub(super) const SKB_LEN: usize = 192;
    pub(super) const SKB_LENGTH: usize = 0;
    pub(super) const SKB_DATA: usize = 76;
    pub(super) const SKB_END: usize = 80;
    pub(super) const SKB_SEGMENTS: usize = 164;
}

impl Emulator {
    /// Prepares an object: its constants, and the values of the only entries of its maps of maps.
    ///
    /// # Errors
    ///
    /// When the object has anything that the emulator does not know.
    pub fn new(object: &[u8], constants: &[u8], inner: &[(&str, &[u32])]) -> Result<Self> {
        let mut object = Object::parse(object)?;
        object.patch_map_data(HashMap::from([("CONSTANTS", (constants, true))]))?;
        let declared: Vec<_> = object
            .maps
            .iter()
            .map(|(name, map)| (name.clone(), map.clone()))
            .collect();
        let sections: HashSet<usize> = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        let numbered = (0..).zip(&declared);
        object.relocate_maps(
            numbered.map(|(fd, (name, map))| (name.as_str(), fd, map)),
            &sections,
        )?;
        object.relocate_calls(&sections)?;
        let mut maps = Maps::default();
        for (name, map) in &declared {
            maps.add(name, map);
        }
        for (name, words) in inner {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            maps.set_inner(name, bytes)?;
        }
        let programs = object.programs.iter().map(|(name, program)| {
            let function = object.functions.get(&program.function_key());
            let function = function.with_context(|| format!("{name} has no code"))?;
            Ok((name.clone(), function.instructions.clone()))
        });
        let programs = programs.collect::<Result<_>>()?;
        let machine = Machine::new(maps);
        Ok(Emulator { machine, programs })
    }

    /// Runs a program on a frame, as XDP or TC would. Maps keep what a run leaves in them.
    ///
    /// # Errors
    ///
    /// When the program does what no verifier would accept.
    pub fn run(&mut self, program: &str, frame: &[u8]) -> Result<Run> {
        let instructions = self.programs.get(program);
        let instructions =
            instructions.with_context(|| format!("there is no program {program}"))?;
        let is_tc = ["breakout_tc", "breakout_note"].contains(&program);
        let (start, end) = self.machine.set_packet(frame)?;
        let mut fields = vec![
            0;
            if is_tc {
                context::SKB_LEN
            } else {
                context::XDP_LEN
            }
        ];
        let mut set =
            |at: usize, value: u32| fields[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        if is_tc {
            set(context::SKB_LENGTH, end - start);
            set(context::SKB_DATA, start);
            set(context::SKB_END, end);
            set(context::SKB_SEGMENTS, 1);
        } else {
            set(context::XDP_DATA, start);
            set(context::XDP_END, end);
        }
        let (code, executed) = self
            .machine
            .run(instructions, &fields)
            .with_context(|| format!("the emulated {program} failed"))?;
        Ok(Run {
            code,
            frame: self.machine.packet().to_vec(),
            executed,
        })
    }
}
