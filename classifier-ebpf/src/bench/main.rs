//! Programs for tests and benchmarks: they ask the data path's own functions many questions in one call, make and count
//! packets, and do the same work in other ways. They are no part of the `breakout` binary.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod ask;
mod forward;
#[path = "../globals.rs"]
#[expect(dead_code, reason = "only the table's size and the zero are used here")]
mod globals;
mod lookup;
#[path = "../opaque.rs"]
mod opaque;
mod questions;
#[path = "../reader.rs"]
#[expect(dead_code, reason = "no packet here has a tag beside its bytes")]
mod reader;
#[path = "../ruleset.rs"]
mod ruleset;
mod traffic;

/// The kernel allows some helpers only to programs under the GPL.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program in which this can be reached.
    loop {}
}

/// Lets clippy, rustdoc and the tests see this crate on the host; only the eBPF build is of use.
#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is an eBPF object; build it with: cargo xtask build");
    std::process::exit(2);
}
