//! Programs for tests and benchmarks: they ask the data path's own functions many questions in one call, make and count
//! packets, and do the same work in other ways. They are no part of the `breakout` binary.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod ask;
mod forward;
#[path = "../globals.rs"]
#[expect(dead_code, reason = "only the table's size and the zero are used here")]
mod globals;
mod lookup;
#[path = "../object.rs"]
mod object;
#[path = "../opaque.rs"]
mod opaque;
mod questions;
#[path = "../reader.rs"]
#[expect(dead_code, reason = "no packet here has a tag beside its bytes")]
mod reader;
#[path = "../ruleset.rs"]
mod ruleset;
mod traffic;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    object::refuse();
}
