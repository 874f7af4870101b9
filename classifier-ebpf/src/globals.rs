//! Constants that the controller fills in before it loads the programs.
//!
//! They live in frozen read-only data, so the verifier knows their values: it uses them as bounds and
//! removes the branches they switch off.

use core::mem;

use breakout_common::constants::Constants;
use breakout_common::flows::{KeySecret, SetSecret};
use breakout_common::frame::Frame;

#[unsafe(no_mangle)]
static CONSTANTS: Constants = Constants::UNSET;

macro_rules! constant {
    ($field:ident, $type:ty) => {
        #[inline(always)]
        pub(crate) fn $field() -> $type {
            // SAFETY: a field of an initialised static is valid to read. The read is volatile because the loader
            // changes the value after compilation, where the compiler would take it as known.
            unsafe { core::ptr::read_volatile(&raw const CONSTANTS.$field) }
        }
    };
}

constant!(table_words, u32);
constant!(trace, u8);
constant!(tc_counts, u8);
constant!(report, u8);
constant!(lan, u8);
constant!(pins, u8);
constant!(clock_shift, u8);
constant!(flow_mask, u32);
constant!(nat_mask, u32);
constant!(nat_secret, SetSecret);
constant!(nat_tcp_idle, u16);
constant!(nat_udp_idle, u16);
constant!(returns, u8);
constant!(bare, u8);
constant!(lan_mtu, u16);
constant!(lan_v4, [u8; 4]);
constant!(lan_v6, [u8; 16]);

/// The secret of the sets of flows.
#[inline(always)]
pub(crate) fn set_secret() -> SetSecret {
    // SAFETY: as for the constants above.
    unsafe { core::ptr::read_volatile(&raw const CONSTANTS.flow_secret.sets) }
}

/// The secret of keys that are hashes.
#[inline(always)]
pub(crate) fn key_secret() -> KeySecret {
    // SAFETY: as for the constants above.
    unsafe { core::ptr::read_volatile(&raw const CONSTANTS.flow_secret.keys) }
}

/// Returns whether a frame is addressed to the LAN interface.
#[inline(always)]
pub(crate) fn is_to_lan<F: Frame + ?Sized>(frame: &F) -> bool {
    let mac: *const u8 = (&raw const CONSTANTS.lan_mac).cast();
    const { assert!(mem::offset_of!(Constants, lan_mac) % 4 == 0) };
    // SAFETY: as for the constants above; the address is aligned, and six bytes long.
    let (start, end) = unsafe {
        (
            core::ptr::read_volatile(mac.cast::<u32>()),
            core::ptr::read_volatile(mac.add(4).cast::<u16>()),
        )
    };
    frame.read(0).map(u32::from_ne_bytes) == Some(start)
        && frame.read(4).map(u16::from_ne_bytes) == Some(end)
}

/// Always zero. It is not in the frozen data, so the verifier does not know that.
#[unsafe(no_mangle)]
static mut ZERO: u32 = 0;

/// A zero that the verifier takes for any number.
#[inline(always)]
pub(crate) fn zero() -> u32 {
    // SAFETY: nothing ever writes ZERO, so reading it races with nothing. The read is volatile because the compiler
    // knows that, and the verifier shall not.
    unsafe { core::ptr::read_volatile(&raw const ZERO) }
}
