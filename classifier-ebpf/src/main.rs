//! Breakout's data path: entry points on each LAN interface.
//!
//! `breakout_xdp` sends the plain packets of steered traffic to egresses in redirect mode, and leaves the rest of it to `breakout_tc`
//! (TC ingress). That sends or answers what is left, and where there is no XDP everything, and marks what goes to egresses in route
//! mode, so that the kernel routes that by the egress's own table.
//! `breakout_note` (TC egress of a LAN interface) notes which flows are answered.
//! `breakout_reply` (XDP) on an egress interface forwards what comes back to the LAN, and where flows are translated `breakout_return` (TC
//! ingress) what that leaves. All ask the same function of the same tables; see `breakout-common`.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod answer;
mod bare;
mod clock;
mod count;
mod decide;
mod decided;
mod flows;
mod globals;
mod maps;
mod nat;
mod object;
mod opaque;
mod path;
mod reader;
mod reply;
mod restore;
mod ruleset;
mod synthetic;
mod tc;
mod xdp;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    object::refuse();
}
