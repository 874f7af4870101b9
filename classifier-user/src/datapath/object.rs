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
