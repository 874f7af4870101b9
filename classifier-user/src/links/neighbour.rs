//! The MAC addresses of next hops, from the kernel's neighbour table.

use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState,
};

use super::Links;

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Neighbour {
    /// Nothing yet, or it is being resolved.
    #[default]
    Unknown,
    /// It did not answer.
    Failed,
    /// Its MAC address, which the kernel would send to; none on links without such addresses.
    Known(Option<[u8; 6]>),
}

impl Neighbour {
    /// The MAC address, if it is known.
    pub fn mac(self) -> Option<[u8; 6]> {
        match self {
            Neighbour::Known(mac) => mac,
            Neighbour::Unknown | Neighbour::Failed => None,
        }
    }
}

impl Links {
    /// What the kernel knows of a neighbour.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn neighbour(&self, index: u32, address: IpAddr) -> Result<Neighbour> {
        let family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let request = self.handle.neighbours().get().set_address_family(family);
        let entries: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .context("cannot list the neighbours")?;
        for entry in entries {
            if entry.header.ifindex != index {
                continue;
            }
            let (mut same, mut mac) = (false, None);
            for attribute in &entry.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                        same = address == IpAddr::V4(*v4);
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                        same = address == IpAddr::V6(*v6);
                    }
                    NeighbourAttribute::LinkLayerAddress(bytes) => {
                        mac = bytes.as_slice().try_into().ok();
                    }
                    _ => {}
                }
            }
            if same {
                return Ok(match entry.header.state {
                    NeighbourState::Failed => Neighbour::Failed,
                    state if is_valid(state) => Neighbour::Known(mac),
                    _ => Neighbour::Unknown,
                });
            }
        }
        Ok(Neighbour::Unknown)
    }

    /// Makes the kernel resolve the neighbour, or check it again if its entry is stale, as a packet to it would do.
    /// Redirected packets pass by the kernel, which therefore would let the entry grow old.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn use_neighbour(&self, index: u32, address: IpAddr) -> Result<()> {
        self.handle
            .neighbours()
            .add(index, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .with_context(|| format!("cannot have {address} resolved"))
    }
}

/// The states in which the kernel itself would send to the entry's address (NUD_VALID).
fn is_valid(state: NeighbourState) -> bool {
    matches!(
        state,
        NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Probe
            | NeighbourState::Stale
            | NeighbourState::Delay
    )
}
