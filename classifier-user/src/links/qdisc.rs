//! The clsact qdisc, which kernels before 6.6 need for TC programs.

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle};

use super::{Links, is_errno};

impl Links {
    /// Returns whether an interface has a TC ingress filter of this priority.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn has_filter(&self, index: u32, of_outgoing: bool, priority: u16) -> Result<bool> {
        let request = self.handle.traffic_filter(index.cast_signed()).get();
        let request = if of_outgoing {
            request.egress()
        } else {
            request.ingress()
        };
        let filters: Vec<_> = match request.execute().try_collect().await {
            // There is no clsact qdisc that could have filters.
            Err(error) if is_errno(&error, libc::EINVAL) => return Ok(false),
            other => other.context("cannot list the TC filters")?,
        };
        // tcm_info: priority in the upper half, protocol in the lower.
        Ok(filters
            .iter()
            .any(|filter| filter.header.info >> 16 == u32::from(priority)))
    }

    /// Removes the clsact qdisc from an interface; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_clsact(&self, index: u32) -> Result<()> {
        let mut request = self.handle.qdisc().del(index.cast_signed());
        let message = request.message_mut();
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle::from(0xffff_0000);
        message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
        match request.execute().await {
            Err(error)
                if is_errno(&error, libc::ENOENT)
                    || is_errno(&error, libc::EINVAL)
                    || is_errno(&error, libc::ENODEV) =>
            {
                Ok(())
            }
            other => other.context("cannot remove the clsact qdisc"),
        }
    }
}
