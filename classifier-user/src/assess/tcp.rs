//! Options that a TCP connection agreed on with its peer: devices in the path that change SYNs show here.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

/// Flags of `tcpi_options` (Linux UAPI, `linux/tcp.h`).
const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const WINDOW_SCALE: u8 = 4;
/// The bytes of each segment that timestamps take, with their padding.
const OF_TIMESTAMPS: u32 = 12;

/// Properties of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The largest segment, without options, in bytes.
    pub(super) segment: u32,
    pub(super) has_selective_acks: bool,
    pub(super) has_window_scaling: bool,
}

impl Agreed {
    /// Asks the kernel.
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length =
            libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
        // SAFETY: `info` is writable for `length` bytes, of which the kernel writes at most so many and says how many; the
        // descriptor is that of an open stream.
        let code = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it consists of integers, and was zeroed where the kernel has not written.
        let info = unsafe { info.assume_init() };
        let options = info.tcpi_options;
        let has = |option| options & option != 0;
        let timestamps = if has(TIMESTAMPS) { OF_TIMESTAMPS } else { 0 };
        Ok(Agreed {
            segment: info.tcpi_snd_mss + timestamps,
            has_selective_acks: has(SACK),
            has_window_scaling: has(WINDOW_SCALE),
        })
    }
}
