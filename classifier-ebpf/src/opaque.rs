//! Keeps a checked value in the register that was checked.

/// Returns `value`, which the compiler then knows nothing about.
///
/// LLVM likes to compute a value once for a bounds check and again for the access. The verifier follows
/// registers, not values, and rejects the second one as unchecked.
#[inline(always)]
pub(crate) fn opaque(value: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: the instruction copies a register onto itself; it touches neither memory nor stack. It is there
        // because the kernel refuses two line records for one instruction, which an empty assembly causes.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}
