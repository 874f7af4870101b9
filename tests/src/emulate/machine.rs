//! The instruction set of RFC 9669, as far as the programs use it.

use anyhow::{Context, Result, bail, ensure};
use aya_obj::generated::bpf_insn;

use super::maps::Maps;

/// More than any program here executes.
const MOST: u64 = 1_000_000;
/// What a function's frame has, in bytes.
const FRAME: usize = 512;
/// How deep calls go (Linux, `MAX_CALL_FRAMES`).
const DEPTH: usize = 8;

/// Helpers by their numbers in Linux.
mod helper {
    pub(super) const LOOKUP: i32 = 1;
    pub(super) const UPDATE: i32 = 2;
    pub(super) const DELETE: i32 = 3;
    pub(super) const KTIME: i32 = 5;
    pub(super) const PULL_DATA: i32 = 39;
    pub(super) const REDIRECT_MAP: i32 = 51;
    pub(super) const JIFFIES: i32 = 118;
    pub(super) const ADJUST_META: i32 = 54;
}

/// `-EOPNOTSUPP`.
const NOT_SUPPORTED: u64 = 95u64.wrapping_neg();

/// `XDP_REDIRECT`.
const XDP_REDIRECT: u64 = 4;

/// The time at which everything happens, in jiffies.
const JIFFIES: u64 = 1 << 20;

/// Memory and registers.
pub(super) struct Machine {
    maps: Maps,
    packet: u64,
    context: u64,
    stack: u64,
}

/// Where a call returns to.
struct Caller {
    at: usize,
    saved: [u64; 4],
}

impl Machine {
    pub(super) fn new(mut maps: Maps) -> Self {
        let context = maps.memory.add(Vec::new());
        let stack = maps.memory.add(vec![0; FRAME * DEPTH]);
        Machine {
            maps,
            packet: 1 << 28,
            context,
            stack,
        }
    }

    /// Puts a frame into memory. Returns its start and end.
    pub(super) fn set_packet(&mut self, frame: &[u8]) -> Result<(u32, u32)> {
        *self.maps.memory.region(self.packet) = frame.to_vec();
        let start = u32::try_from(self.packet)?;
        Ok((start, start + u32::try_from(frame.len())?))
    }

    pub(super) fn packet(&mut self) -> &[u8] {
        self.maps.memory.region(self.packet)
    }

    /// Runs a program to its end. Returns what it returned, and how many instructions it executed.
    pub(super) fn run(&mut self, code: &[bpf_insn], fields: &[u8]) -> Result<(u32, u64)> {
        *self.maps.memory.region(self.context) = fields.to_vec();
        let mut registers = [0u64; 11];
        registers[1] = self.context;
        registers[10] = self.stack + FRAME as u64;
        let mut callers: Vec<Caller> = Vec::new();
        let mut executed = 0;
        let mut at = 0;
        loop {
            let step = code.get(at).context("the program has no end")?;
            executed += 1;
            ensure!(executed < MOST, "the program does not end");
            at += 1;
            match step.code {
                // A call within the program.
                0x85 if step.src_reg() == 1 => {
                    ensure!(callers.len() + 1 < DEPTH, "calls go too deep");
                    let saved = [6, 7, 8, 9].map(|register: usize| registers[register]);
                    callers.push(Caller { at, saved });
                    registers[10] += FRAME as u64;
                    at = jump(at, i64::from(step.imm))?;
                }
                0x85 => {
                    let [_, a, b, c, ..] = registers;
                    registers[0] = self.call(step.imm, a, b, c)?;
                }
                0x95 => match callers.pop() {
                    Some(caller) => {
                        at = caller.at;
                        registers[10] -= FRAME as u64;
                        registers[6..10].copy_from_slice(&caller.saved);
                    }
                    None => return Ok(((registers[0] & 0xffff_ffff) as u32, executed)),
                },
                0x18 => {
                    let next = code.get(at).context("half an instruction")?;
                    registers[usize::from(step.dst_reg())] = self.constant(step, next)?;
                    at += 1;
                }
                _ if step.code & 7 <= 3 => self.access(step, &mut registers)?,
                _ if matches!(step.code & 7, 4 | 7) => calculate(step, &mut registers)?,
                _ => {
                    if let Some(distance) = branch(step, &registers)? {
                        at = jump(at, distance)?;
                    }
                }
            }
        }
    }

    fn constant(&self, step: &bpf_insn, next: &bpf_insn) -> Result<u64> {
        let number = u64::from(step.imm.cast_unsigned());
        let high = u64::from(next.imm.cast_unsigned());
        Ok(match step.src_reg() {
            0 => high << 32 | number,
            1 => Maps::handle(number),
            2 => self.maps.value_address(usize::try_from(number)?)? + high,
            other => bail!("a constant of kind {other}"),
        })
    }

    fn call(&mut self, number: i32, a: u64, b: u64, c: u64) -> Result<u64> {
        match number {
            helper::LOOKUP => self.maps.lookup(a, b),
            helper::UPDATE => self.maps.update(a, b, c),
            helper::DELETE => self.maps.delete(a, b),
            helper::KTIME => Ok(JIFFIES * 1_000_000),
            helper::JIFFIES => Ok(JIFFIES),
            // All that there is can be read.
            helper::PULL_DATA => Ok(0),
            helper::REDIRECT_MAP => Ok(XDP_REDIRECT),
            // As of a driver without room for metadata.
            helper::ADJUST_META => Ok(NOT_SUPPORTED),
            other => bail!("the emulator has no helper {other}"),
        }
    }

    /// Loads and stores.
    fn access(&mut self, step: &bpf_insn, registers: &mut [u64; 11]) -> Result<()> {
        let size = [4, 2, 1, 8][usize::from(step.code >> 3 & 3)];
        let (to, from) = (usize::from(step.dst_reg()), usize::from(step.src_reg()));
        let is_load = step.code & 7 == 1;
        let base = registers[if is_load { from } else { to }];
        let bytes = self
            .maps
            .memory
            .at(base.wrapping_add_signed(step.off.into()), size)?;
        let mut value = [0; 8];
        value[..size].copy_from_slice(bytes);
        let before = u64::from_ne_bytes(value);
        match (step.code & 7, step.code >> 5) {
            (1, 3) => registers[to] = before,
            (2, 3) => bytes.copy_from_slice(&i64::from(step.imm).to_ne_bytes()[..size]),
            (3, 3) => bytes.copy_from_slice(&registers[from].to_ne_bytes()[..size]),
            (3, 6) => {
                let operand = registers[from];
                let after = match step.imm & 0xff {
                    0x00 | 0x01 => before.wrapping_add(operand),
                    0xe1 => operand,
                    0xf1 if before == registers[0] => operand,
                    0xf1 => before,
                    other => bail!("an atomic operation {other:#x}"),
                };
                bytes.copy_from_slice(&after.to_ne_bytes()[..size]);
                match step.imm & 0xff {
                    0xf1 => registers[0] = before,
                    kind if kind & 1 != 0 => registers[from] = before,
                    _ => {}
                }
            }
            _ => bail!("an access {:#x}", step.code),
        }
        Ok(())
    }
}

fn jump(at: usize, distance: i64) -> Result<usize> {
    let target = i64::try_from(at)? + distance;
    usize::try_from(target).context("a jump out of the program")
}

fn operand(step: &bpf_insn, registers: &[u64; 11]) -> u64 {
    if step.code & 8 == 0 {
        i64::from(step.imm).cast_unsigned()
    } else {
        registers[usize::from(step.src_reg())]
    }
}

/// Arithmetic of 32 or 64 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "32-bit instructions use the lower halves"
)]
fn calculate(step: &bpf_insn, registers: &mut [u64; 11]) -> Result<()> {
    let is_wide = step.code & 7 == 7;
    let to = usize::from(step.dst_reg());
    let (a, b) = (registers[to], operand(step, registers));
    let (narrow_a, narrow_b) = (a as u32, b as u32);
    let wide_or_narrow = |wide: u64, narrow: u32| if is_wide { wide } else { u64::from(narrow) };
    registers[to] = match step.code >> 4 {
        0x0 => wide_or_narrow(a.wrapping_add(b), narrow_a.wrapping_add(narrow_b)),
        0x1 => wide_or_narrow(a.wrapping_sub(b), narrow_a.wrapping_sub(narrow_b)),
        0x2 => wide_or_narrow(a.wrapping_mul(b), narrow_a.wrapping_mul(narrow_b)),
        0x3 => wide_or_narrow(
            a.checked_div(b).unwrap_or(0),
            narrow_a.checked_div(narrow_b).unwrap_or(0),
        ),
        0x4 => wide_or_narrow(a | b, narrow_a | narrow_b),
        0x5 => wide_or_narrow(a & b, narrow_a & narrow_b),
        0x6 => wide_or_narrow(a.wrapping_shl(narrow_b), narrow_a.wrapping_shl(narrow_b)),
        0x7 => wide_or_narrow(a.wrapping_shr(narrow_b), narrow_a.wrapping_shr(narrow_b)),
        0x8 => wide_or_narrow(a.wrapping_neg(), narrow_a.wrapping_neg()),
        0x9 => wide_or_narrow(
            a.checked_rem(b).unwrap_or(a),
            narrow_a.checked_rem(narrow_b).unwrap_or(narrow_a),
        ),
        0xa => wide_or_narrow(a ^ b, narrow_a ^ narrow_b),
        0xb => wide_or_narrow(b, narrow_b),
        0xc => {
            let (wide, narrow) = (a.cast_signed(), narrow_a.cast_signed());
            wide_or_narrow(
                wide.wrapping_shr(narrow_b).cast_unsigned(),
                narrow.wrapping_shr(narrow_b).cast_unsigned(),
            )
        }
        // To big endian, which is what the programs ask for.
        0xd if step.code == 0xdc || step.code == 0xd7 => match step.imm {
            16 => u64::from((a as u16).swap_bytes()),
            32 => u64::from(narrow_a.swap_bytes()),
            _ => a.swap_bytes(),
        },
        other => bail!("an operation {other:#x}"),
    };
    Ok(())
}

/// How far a branch leads, if it is taken.
#[expect(
    clippy::cast_possible_truncation,
    reason = "32-bit instructions use the lower halves"
)]
fn branch(step: &bpf_insn, registers: &[u64; 11]) -> Result<Option<i64>> {
    let is_wide = step.code & 7 == 5;
    let (mut a, mut b) = (
        registers[usize::from(step.dst_reg())],
        operand(step, registers),
    );
    if !is_wide {
        (a, b) = (u64::from(a as u32), u64::from(b as u32));
    }
    let signed = |value: u64| {
        if is_wide {
            value.cast_signed()
        } else {
            i64::from((value as u32).cast_signed())
        }
    };
    let is_taken = match step.code >> 4 {
        0x0 => true,
        0x1 => a == b,
        0x2 => a > b,
        0x3 => a >= b,
        0x4 => a & b != 0,
        0x5 => a != b,
        0x6 => signed(a) > signed(b),
        0x7 => signed(a) >= signed(b),
        0xa => a < b,
        0xb => a <= b,
        0xc => signed(a) < signed(b),
        0xd => signed(a) <= signed(b),
        other => bail!("a branch {other:#x}"),
    };
    // A long jump of 32 bits has its distance in the other field (Linux 6.6).
    let distance = if step.code == 0x06 {
        i64::from(step.imm)
    } else {
        i64::from(step.off)
    };
    Ok(is_taken.then_some(distance))
}
