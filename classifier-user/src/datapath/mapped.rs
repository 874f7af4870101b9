//! An array map in this process's memory.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The words of an array map (`BPF_F_MMAPABLE`), which the programs and this process change at once.
pub(super) struct MappedWords {
    start: NonNull<AtomicU64>,
    words: usize,
    bytes: NonZeroUsize,
}

// SAFETY: the memory belongs to this value alone as far as this process's allocator and threads go; what is in it is only
// used atomically.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps an array whose values have so many words.
    pub(super) fn new(map: &MapData, words_of_value: u32) -> Result<Self> {
        let info = map.info()?;
        let words = words_of_value as usize * info.max_entries() as usize;
        let bytes = NonZeroUsize::new(words * 8)
            .filter(|_| info.value_size() == words_of_value * 8)
            .context("a map of flows has another layout")?;
        // SAFETY: the kernel chooses a place that nothing else uses.
        let start = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        };
        let start = start.map_err(io::Error::from);
        let start = start.context("cannot map the memory of a map of flows")?;
        Ok(MappedWords {
            start: start.cast(),
            words,
            bytes,
        })
    }

    /// All words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `bytes` bytes, which are `words` words, and starts with a page; it is there until this is
        // dropped. An AtomicU64 may be anything, and others use the memory atomically as well.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: it is the whole mapping, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}
