//! The MAC addresses of next hops, from the kernel's neighbour table.

use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Links, is_errno};

/// Neighbour entry of the kernel.
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

impl Neighbour {
    /// By the state (`NUD_*`) and the address in a message about an entry.
    pub(super) fn of_state(state: u16, mac: Option<[u8; 6]>) -> Self {
        match NeighbourState::from(state) {
            NeighbourState::Failed => Neighbour::Failed,
            state if is_valid(state) => Neighbour::Known(mac),
            _ => Neighbour::Unknown,
        }
    }
}

impl Links {
    /// Returns what the kernel knows of a neighbour.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn neighbour(&self, index: u32, address: IpAddr) -> Result<Neighbour> {
        let mut message = NeighbourMessage::default();
        message.header.family = family_of(address);
        message.header.ifindex = index;
        let destination = match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message
            .attributes
            .push(NeighbourAttribute::Destination(destination));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message));
        request.header.flags = NLM_F_REQUEST;
        let failed = || format!("cannot look up the neighbour {address}");
        // One entry by its address (Linux 5.0), and not the table, which a neighbouring host can fill.
        let mut answers = self.handle.clone().request(request).with_context(failed)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => {
                    return Ok(of_entry(&entry));
                }
                NetlinkPayload::Error(error) => {
                    let error = rtnetlink::Error::NetlinkError(error);
                    // The interface may have gone since it was looked at.
                    return match is_errno(&error, libc::ENOENT) || is_errno(&error, libc::ENODEV) {
                        true => Ok(Neighbour::Unknown),
                        false => Err(error).with_context(failed),
                    };
                }
                _ => {}
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

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn of_entry(entry: &NeighbourMessage) -> Neighbour {
    let mut attributes = entry.attributes.iter();
    let mac = attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Some(bytes.as_slice().try_into().ok()),
        _ => None,
    });
    Neighbour::of_state(entry.header.state.into(), mac.flatten())
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
