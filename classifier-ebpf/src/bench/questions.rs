//! The questions of a call, one after the other.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use breakout_common::question::{QUESTIONS, QuestionWords};

use crate::opaque::opaque;

/// All questions, as one value.
#[btf_map]
static ASKED: Array<[QuestionWords; QUESTIONS], 1> = Array::new();

/// All answers, by question.
#[btf_map]
static ANSWERS: Array<[u32; QUESTIONS], 1> = Array::new();

/// Number of questions that have been asked in all calls.
#[unsafe(no_mangle)]
static mut POSITION: u32 = 0;

/// The number of the next question, after which `count` are skipped.
#[inline(always)]
pub(crate) fn advance(count: u32) -> u32 {
    // SAFETY: only one test run uses this object at a time, on one CPU, so nothing else writes the position. The
    // accesses are volatile because the value lives on from run to run.
    unsafe {
        let position = core::ptr::read_volatile(&raw const POSITION);
        core::ptr::write_volatile(&raw mut POSITION, position.wrapping_add(count));
        position
    }
}

/// The question with this number, counted round.
#[inline(always)]
pub(crate) fn question(number: u32) -> Option<QuestionWords> {
    let all = ASKED.get(0)?;
    all.get(opaque(number as usize % QUESTIONS)).copied()
}

/// `N` words from a place in the words of all questions that is `number` times as far in, counted round. The benchmarks have
/// only addresses there, so that they do not fill the cache with anything else.
#[inline(always)]
pub(crate) fn address<const N: usize>(number: u32) -> Option<[u32; N]> {
    let all = ASKED.get(0)?.as_flattened();
    let first = opaque(number as usize % QUESTIONS * N);
    all.get(first..first + N)?.first_chunk().copied()
}

/// Notes an answer.
#[inline(always)]
pub(crate) fn answer(number: u32, word: u32) {
    if let Some(all) = ANSWERS.get_ptr_mut(0) {
        let index = opaque(number as usize % QUESTIONS);
        if index < QUESTIONS {
            // SAFETY: the pointer is to the map's one value, of QUESTIONS words, and the index is below that.
            unsafe { (*all)[index] = word };
        }
    }
}
