//! Parts that every eBPF object needs beside its programs.

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

/// Ends a build for the host, which lets clippy, rustdoc and the tests see the crate; only the eBPF build is of use.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn refuse() -> ! {
    eprintln!("this is an eBPF object; build it with: cargo xtask build");
    std::process::exit(2);
}
