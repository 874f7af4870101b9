//! The compiled data path, inside the binary.

use anyhow::{Result, bail};

#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/classifier.o")));

/// The eBPF object file.
///
/// # Errors
///
/// When this binary was built without one.
pub fn object() -> Result<&'static [u8]> {
    if OBJECT.0.is_empty() {
        bail!(
            "this breakout was built without its eBPF object, because no eBPF toolchain was set up. \
             Build it with `cargo xtask build`, or set the toolchain up with `cargo xtask setup` and build again"
        );
    }
    Ok(&OBJECT.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aya_obj::generated::bpf_insn;

    use super::*;

    /// The class of an instruction is in its lowest bits: 0 to 3 are loads and stores.
    const CLASS: u8 = 7;
    const LOAD: u8 = 1;
    const STORES: [u8; 2] = [2, 3];
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    const CALL: u8 = 0x85;
    const FRAME: u8 = 10;
    /// The kind of a call that stays within the object (`BPF_PSEUDO_CALL`).
    const OWN: u8 = 1;

    /// How far down a function's stack reaches, in bytes.
    fn depth(instructions: &[bpf_insn]) -> i32 {
        let mut copies = [false; 16];
        let mut deepest = 0;
        for instruction in instructions {
            let (to, from) = (instruction.dst_reg(), instruction.src_reg());
            let reaches = match instruction.code {
                code if code & CLASS == LOAD && from == FRAME => i32::from(instruction.off),
                code if STORES.contains(&(code & CLASS)) && to == FRAME => {
                    i32::from(instruction.off)
                }
                ADD if copies[usize::from(to)] => instruction.imm,
                _ => 0,
            };
            deepest = deepest.min(reaches);
            copies[usize::from(to)] = instruction.code == MOVE && from == FRAME;
        }
        -deepest
    }

    /// Kernels before 6.8 count the stack of each function in steps of 32 bytes, and allow 512 for a chain of calls
    /// (Linux, `check_max_stack_depth`). Later ones count less, so that they would not tell.
    #[test]
    fn the_stack_is_within_what_old_kernels_allow() {
        let Ok(bytes) = object() else { return };
        let object = aya_obj::Object::parse(bytes).unwrap();
        let functions = object.functions.values();
        let depths: BTreeMap<String, (i32, bool)> = functions
            .map(|function| {
                let calls = function
                    .instructions
                    .iter()
                    .any(|instruction| instruction.code == CALL && instruction.src_reg() == OWN);
                let depth = (depth(&function.instructions) + 31) / 32 * 32;
                (function.name.clone(), (depth, calls))
            })
            .collect();
        eprintln!("{depths:?}");
        let is_leaf = |(_, calls): &&(i32, bool)| !calls;
        let below = depths
            .values()
            .filter(is_leaf)
            .map(|(depth, _)| *depth)
            .max();
        for (name, (depth, calls)) in &depths {
            let whole = depth + if *calls { below.unwrap_or(0) } else { 0 };
            assert!(whole <= 512, "{name}: {whole} bytes of {depths:?}");
        }
        assert!(depths.len() > 4 && below > Some(0), "{depths:?}");
    }
}
