//! Breakout's data path: two entry points on each LAN interface.
//!
//! `breakout_tc` (TC ingress) marks the packets of steered traffic, so that the kernel routes them by the
//! egress's own table. `breakout_xdp` forwards them itself to egresses in redirect mode and leaves
//! the rest to `breakout_tc`. Both ask the same function of the same tables; see `breakout-common`.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod count;
mod decide;
mod globals;

mod maps;
mod opaque;
mod reader;
mod ruleset;
mod tc;
mod xdp;

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
