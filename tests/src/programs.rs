//! The eBPF programs for tests and benchmarks: `classifier-ebpf/src/bench`.

#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/bench.o")));

/// The eBPF object file; empty if this was built without the eBPF toolchain.
pub fn object() -> &'static [u8] {
    &OBJECT.0
}
