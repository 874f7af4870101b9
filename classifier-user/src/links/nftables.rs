//! Being told when somebody removes something of an nftables table (linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h).

use std::io;

use anyhow::{Context, Result};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::attributes::find;
use super::conntrack::{GENERIC, HEADER, next};

/// The group of messages about changes (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
/// The subsystem of such messages, in the upper byte of their types.
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_DELTABLE`, `NFT_MSG_DELCHAIN` and `NFT_MSG_DELRULE`, and `NFT_MSG_DESTROYTABLE` and so on (Linux 6.3).
const REMOVALS: [u16; 6] = [2, 5, 8, 26, 27, 28];
/// The attribute that names the table, in each of these messages.
const TABLE: u16 = 1;

/// Tells of removals, whoever makes them.
pub struct Removals {
    socket: TokioSocket,
    /// The table's name, with the zero behind it.
    table: Vec<u8>,
}

impl Removals {
    /// Subscribes to those of a table in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// When the kernel has no netfilter, or gives no socket.
    pub fn watch(table: &str) -> Result<Self> {
        let subscribe = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            socket.socket_mut().add_membership(GROUP)?;
            Ok(socket)
        };
        let socket = subscribe().context("cannot be told of changes of nftables")?;
        let table = [table.as_bytes(), &[0]].concat();
        Ok(Removals { socket, table })
    }

    /// Waits for the next removal. May be dropped at any time without losing one.
    ///
    /// # Errors
    ///
    /// When the kernel tells nothing any more.
    pub async fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => {
                    let mut rest = datagram.as_slice();
                    while let Some((kind, message)) = next(&mut rest) {
                        let is_removal =
                            kind >> 8 == SUBSYSTEM && REMOVALS.contains(&(kind & 0xff));
                        let attributes = message.get(HEADER + GENERIC..).unwrap_or_default();
                        if is_removal && find(attributes, TABLE) == Some(&*self.table) {
                            return Ok(());
                        }
                    }
                }
                // There were more messages than there is room for, and removals may have been among them.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
