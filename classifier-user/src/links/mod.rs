//! Interfaces, addresses, routes, rules and neighbours of this network namespace, by rtnetlink. The one
//! module that names that crate.

mod attributes;
pub mod conntrack;
mod device_counts;
mod gateway;
mod interface;
mod neighbour;
mod nftables;
mod own;
mod probes;
mod protocol;
mod qdisc;
mod routing;
mod solicit;
mod survey;
mod virtual_mac;
mod watch;
mod xdp_features;

use anyhow::{Context, Result};
use rtnetlink::Handle;
use rtnetlink::packet_core::ErrorMessage;

pub use device_counts::DeviceCounts;
pub use gateway::{Gateway, Gateways, NoWayOut};
pub use interface::{Interface, NoRedirect, network_namespace};
pub use neighbour::Neighbour;
pub use nftables::Removals;
pub use probes::{ASSESSED, PROBE_TOS, ProbeWay};
pub use routing::{RouteRule, RoutingOutcome, RoutingPlan};
pub use solicit::{Asker, Solicitor};
pub use survey::{RouteFound, RuleFound};
pub use watch::{Changes, Fact, Facts, Interest};

/// A connection to the kernel's routing.
#[derive(Clone)]
pub struct Links {
    handle: Handle,
    /// Another one, on which the kernel filters what it lists (`NETLINK_GET_STRICT_CHK`, Linux 4.20), so that a large routing
    /// table is not copied for a few routes of it.
    filtering: Handle,
}

impl Links {
    /// Opens a connection for the network namespace of this thread. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        tokio::spawn(connection);
        let (connection, filtering, _) = rtnetlink::new_connection_with_strict_check()
            .context("cannot open a netlink socket for filtered lists")?;
        tokio::spawn(connection);
        Ok(Links { handle, filtering })
    }
}

/// Reads bytes as each kind of netlink message that is parsed here, and forgets what they say: for tests with bytes of any kind.
pub fn read_any(bytes: &[u8]) {
    watch::read_any(bytes);
    conntrack::read_any(bytes);
}

/// Returns whether the kernel answered with this errno.
fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) if code.get() == -errno)
}
