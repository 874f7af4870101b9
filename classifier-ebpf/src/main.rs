//! Breakout's data path: two entry points on each LAN interface.
//!
//! `breakout_xdp` forwards the packets of steered traffic itself to egresses in redirect mode, and leaves the rest to
//! `breakout_tc` (TC ingress), which forwards to those that XDP does not send to, and marks all others, so that the kernel routes
//! them by the egress's own table.
//! `breakout_reply` on an egress interface forwards what comes back to the LAN. All ask the same function of the same
//! tables; see `breakout-common`.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod count;
mod decide;
mod flows;
mod globals;
mod maps;
mod object;
mod opaque;
mod path;
mod reader;
mod reply;
mod ruleset;
mod tc;
mod xdp;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    object::refuse();
}
