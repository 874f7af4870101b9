//! Interfaces with a MAC address of their own on another one, as keepalived makes for VRRP (`use_vmac`).

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::{Interface, Links};

impl Links {
    /// The macvlan interfaces on an interface.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn macvlans_on(&self, interface: &Interface) -> Result<Vec<Interface>> {
        let mut links = self.handle.link().get().execute();
        let mut names = Vec::new();
        while let Some(link) = links
            .try_next()
            .await
            .context("cannot list the interfaces")?
        {
            names.extend(macvlan_on(&link, interface.index));
        }
        let mut found = Vec::new();
        for name in names {
            found.extend(self.interface(&name).await?);
        }
        Ok(found)
    }
}

/// The name of an interface, if it is a macvlan on the one with this index.
fn macvlan_on(link: &LinkMessage, index: u32) -> Option<String> {
    let mut name = None;
    let (mut is_on_it, mut is_macvlan, mut is_of_here) = (false, false, true);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(own) => name = Some(own.clone()),
            LinkAttribute::Link(lower) => is_on_it = *lower == index,
            // The index is of another network namespace then.
            LinkAttribute::LinkNetNsId(_) => is_of_here = false,
            LinkAttribute::LinkInfo(about) => {
                is_macvlan = about.contains(&LinkInfo::Kind(InfoKind::MacVlan));
            }
            _ => {}
        }
    }
    name.filter(|_| is_on_it && is_macvlan && is_of_here)
}
