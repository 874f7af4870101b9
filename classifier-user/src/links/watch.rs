//! Being told when something changes that a way out depends on.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Links;

/// How long further changes are gathered before the first one is told of. A link that comes up brings dozens.
const GATHER: Duration = Duration::from_millis(20);

/// Tells that interfaces, addresses, routes, rules or neighbours have changed.
pub struct Changes {
    receiver: watch::Receiver<()>,
}

impl Changes {
    /// Waits for the next change. May be dropped at any time without losing one.
    pub async fn wait(&mut self) {
        if self.receiver.changed().await.is_err() {
            // The kernel's messages have ended; the controller still looks at regular times.
            std::future::pending::<()>().await;
        }
    }

    /// Gathers the changes that follow the first one, so that they are followed together.
    pub async fn gather(&mut self) {
        sleep(GATHER).await;
        self.receiver.borrow_and_update();
    }
}

impl Links {
    /// Subscribes to changes in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub fn watch() -> Result<Changes> {
        let (connection, _, mut messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])
        .context("cannot open a netlink socket for changes")?;
        tokio::spawn(connection);
        let (sender, receiver) = watch::channel(());
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                sender.send_replace(());
            }
        });
        Ok(Changes { receiver })
    }
}
