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

    /// Returns how far down a function's stack reaches, in bytes.
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

    /// Returns how deep the stack is at most from the function on that starts with an instruction of a linked program, in which the
    /// functions stand one behind the other.
    fn linked_depth(program: &[bpf_insn], start: usize) -> i32 {
        let calls = |step: &bpf_insn| step.code == CALL && step.src_reg() == OWN;
        let target = |(at, step): (usize, &bpf_insn)| {
            usize::try_from(i64::try_from(at).unwrap() + 1 + i64::from(step.imm)).unwrap()
        };
        let all_calls = program.iter().enumerate().filter(|(_, step)| calls(step));
        let mut starts: Vec<usize> = all_calls.map(target).chain([program.len()]).collect();
        starts.sort_unstable();
        let end = starts.into_iter().find(|other| *other > start).unwrap();
        let called = program.iter().enumerate().take(end).skip(start);
        let below = called
            .filter(|(_, step)| calls(step))
            .map(|call| linked_depth(program, target(call)));
        // No function's frame is empty.
        let own = (depth(&program[start..end]).max(1) + 31) / 32 * 32;
        own + below.max().unwrap_or(0)
    }

    /// Kernels before 6.8 count the stack of each function in steps of 32 bytes, and allow 512 for a chain of calls
    /// (Linux, `check_max_stack_depth`). Later ones count less, so that they would not tell.
    #[test]
    fn the_stack_is_within_what_old_kernels_allow() {
        let Ok(bytes) = object() else { return };
        let mut object = aya_obj::Object::parse(bytes).unwrap();
        let sections = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        let names: Vec<String> = object.programs.keys().cloned().collect();
        // Puts behind each program what it calls.
        object.relocate_calls(&sections).unwrap();
        let mut deepest = 0;
        for name in names {
            let program = &object.programs[&name];
            let linked = &object.functions[&program.function_key()];
            let whole = linked_depth(&linked.instructions, 0);
            println!("{name}: {whole} bytes");
            assert!(whole <= 512, "{name}: {whole} bytes");
            deepest = deepest.max(whole);
        }
        // Nothing at all would be a mistake of the count.
        assert!(deepest > 400, "the deepest has {deepest} bytes");
    }
}
