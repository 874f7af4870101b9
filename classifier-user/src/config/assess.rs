//! `[assess]`.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OneOrMany;
use crate::health::Target;

/// `[assess]`: whom `breakout assess` asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AssessConfig {
    /// The resolver that clients ask. The first one of `/etc/resolv.conf` when absent.
    pub resolver: Option<IpAddr>,
    /// Front doors and relays, as `tls:HOST:PORT` and `turn:HOST:PORT`. When absent, Exchange Online's and Teams' front doors and Teams'
    /// relays. Add the tenant's own SharePoint, as in `tls:contoso.sharepoint.com`.
    #[schemars(with = "Option<Vec<String>>")]
    pub targets: Option<OneOrMany<Target>>,
    /// A server that tells public addresses, as `stun:HOST:PORT`. Without one, relays that tell them are relied on.
    #[schemars(with = "Option<String>")]
    pub stun: Option<Target>,
    /// The URL of a large file to download, best one in the tenant's SharePoint: measures the rate, and the latency under load.
    pub download: Option<String>,
}
