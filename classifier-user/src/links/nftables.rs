//! Being told when somebody removes rules of nftables (linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h).

use std::io;

use anyhow::{Context, Result};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::conntrack::next;

/// The group of messages about changes (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
/// The subsystem of such messages, in the upper byte of their types.
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_DELTABLE`, `NFT_MSG_DELCHAIN` and `NFT_MSG_DELRULE`.
const REMOVALS: [u16; 3] = [2, 5, 8];

/// Tells of removals, whoever makes them.
pub struct Removals {
    socket: TokioSocket,
}

impl Removals {
    /// Subscribes in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// When the kernel has no netfilter, or gives no socket.
    pub fn watch() -> Result<Self> {
        let subscribe = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            socket.socket_mut().add_membership(GROUP)?;
            Ok(socket)
        };
        let socket = subscribe().context("cannot be told of changes of nftables")?;
        Ok(Removals { socket })
    }

    /// Waits for the next removal. May be dropped at any time without losing one.
    pub async fn wait(&mut self) {
        loop {
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => {
                    let mut rest = datagram.as_slice();
                    while let Some((kind, _)) = next(&mut rest) {
                        if kind >> 8 == SUBSYSTEM && REMOVALS.contains(&(kind & 0xff)) {
                            return;
                        }
                    }
                }
                // There were more messages than there is room for, and removals may have been among them.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return,
                Err(error) => {
                    tracing::warn!("changes of nftables are seen late: {error}");
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
