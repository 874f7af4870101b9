//! Constants that the controller fills in before it loads the programs.
//!
//! They live in frozen read-only data, so the verifier knows their values: it uses them as bounds and
//! removes the branches they switch off.

/// Words of one ruleset table. Every access to a table is checked against this.
#[unsafe(no_mangle)]
static TABLE_WORDS: u32 = 0;
/// Whether each decision is logged (`breakout run --trace`).
#[unsafe(no_mangle)]
static TRACE: u8 = 0;
/// Whether `breakout_tc` counts. It does not where `breakout_xdp` runs before it and has counted already.
#[unsafe(no_mangle)]
static TC_COUNTS: u8 = 1;
/// The LAN interface's MAC address: only frames addressed to it are the gateway's to forward.
#[unsafe(no_mangle)]
static LAN_MAC: [u8; 6] = [0; 6];

macro_rules! loaded {
    ($(#[$doc:meta])* $function:ident, $global:ident, $type:ty) => {
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $function() -> $type {
            // SAFETY: a shared reference to an initialised static is valid to read. The read is volatile because
            // the loader changes the value after compilation, where the compiler would take it as known.
            unsafe { core::ptr::read_volatile(&raw const $global) }
        }
    };
}

loaded!(table_words, TABLE_WORDS, u32);
loaded!(lan_mac, LAN_MAC, [u8; 6]);
loaded!(trace_value, TRACE, u8);
loaded!(tc_counts_value, TC_COUNTS, u8);

#[inline(always)]
pub(crate) fn trace() -> bool {
    trace_value() != 0
}

#[inline(always)]
pub(crate) fn tc_counts() -> bool {
    tc_counts_value() != 0
}
