//! The clsact qdisc, which kernels before 6.6 need for TC programs.

use anyhow::{Context, Result};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle};

use super::{Links, is_errno};

impl Links {
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
