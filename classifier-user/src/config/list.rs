//! `[list]`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OneOrMany, Share, Span};
use crate::list::Instance;

/// Microsoft's web service.
pub const SERVICE: &str = "https://endpoints.office.com";
/// The name of the source that is the built-in list alone.
const BUILT_IN: &str = "builtin";

/// `[list]`: which of Microsoft's lists are used, and how they are followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListConfig {
    /// Worldwide, China, USGovDoD or USGovGCCHigh, or several of them; case does not matter.
    pub instance: OneOrMany<String>,
    /// The web service or a mirror of it (a URL), a file that is watched (a path), or `builtin`.
    pub source: String,
    /// True if a source without TLS (`http://`) may be used: anybody on the way there can change the lists.
    pub insecure: bool,
    /// A response of the web service that is used as it is, instead of a source.
    pub file: Option<PathBuf>,
    /// Certificates to trust besides the system's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// The URL of the proxy to fetch through; without it that of the environment's `https_proxy`, if any.
    pub proxy: Option<String>,
    /// The interface to fetch by; without it the one that the routes lead to.
    pub interface: Option<String>,
    /// Interval at which the version is asked for: not below an hour from Microsoft's own service.
    pub interval: Span,
    /// Only these service areas; all without.
    pub service_areas: OneOrMany<String>,
    /// The tenant's name, for names in URLs.
    pub tenant: Option<String>,
    /// True if IPv6 prefixes are asked for.
    pub ipv6: bool,
    /// `auto` applies lists that pass validation at once; `manual` has them wait for `breakout apply`.
    pub apply: Apply,
    /// Time for which prefixes and ports that Microsoft has withdrawn are still steered.
    pub grace: Span,
    /// Number of lists, and of rulesets, that are kept.
    pub keep: usize,
    /// From what age on a list counts as stale.
    pub stale_after: Span,
    /// The largest share of the addresses that are steered, or of the addresses and ports of a set, that may go at once.
    pub max_removed: Share,
    /// Treatment of a list that steers networks which are not known to be Microsoft's: `refuse` it, or `allow` it, as for a
    /// mirror with a list of its own.
    pub unknown_networks: UnknownNetworks,
    /// The shortest IPv4 prefix that is believed.
    pub shortest_v4: u8,
    /// The shortest IPv6 prefix that is believed.
    pub shortest_v6: u8,
}

/// Treatment of a list that passes validation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Apply {
    /// It is applied at once.
    #[default]
    Auto,
    /// It waits for `breakout apply`.
    Manual,
}

/// Treatment of a list that steers networks which are not known to be Microsoft's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownNetworks {
    /// It is refused.
    #[default]
    Refuse,
    /// It is told of only.
    Allow,
}

/// Source of lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListSource {
    /// The web service or a mirror, by its base URL without a slash at the end.
    Service(String),
    /// A file that is watched.
    Watched(PathBuf),
    /// A file that is used as it is.
    Fixed(PathBuf),
    /// Built-in list.
    BuiltIn,
}

impl Default for ListConfig {
    fn default() -> Self {
        ListConfig {
            instance: OneOrMany(vec!["worldwide".to_owned()]),
            source: SERVICE.to_owned(),
            insecure: false,
            file: None,
            ca_file: None,
            proxy: None,
            interface: None,
            interval: Span::hours(1),
            service_areas: OneOrMany::default(),
            tenant: None,
            ipv6: true,
            apply: Apply::Auto,
            grace: Span::hours(7 * 24),
            keep: 20,
            stale_after: Span::hours(7 * 24),
            max_removed: Share::percent(40),
            unknown_networks: UnknownNetworks::Refuse,
            shortest_v4: 10,
            shortest_v6: 28,
        }
    }
}

impl ListConfig {
    /// The instances.
    pub fn instances(&self) -> Vec<Instance> {
        let names = self.instance.iter();
        names.filter_map(|name| Instance::from_name(name)).collect()
    }

    /// Returns where the lists come from.
    pub fn list_source(&self) -> ListSource {
        if let Some(file) = &self.file {
            return ListSource::Fixed(file.clone());
        }
        if ["https", "http"]
            .iter()
            .any(|scheme| self.has_scheme(scheme))
        {
            return ListSource::Service(self.source.trim_end_matches('/').to_owned());
        }
        if self.source == BUILT_IN {
            return ListSource::BuiltIn;
        }
        ListSource::Watched(self.source.clone().into())
    }

    /// Returns whether the source is a URL with this scheme, whose case does not matter (RFC 3986, section 3.1).
    fn has_scheme(&self, scheme: &str) -> bool {
        let found = self.source.split_once("://");
        found.is_some_and(|(found, _)| found.eq_ignore_ascii_case(scheme))
    }

    /// Returns whether lists are fetched without TLS.
    pub fn is_plain(&self) -> bool {
        self.file.is_none() && self.has_scheme("http")
    }

    pub(super) fn resolve_paths(&mut self, base: &Path) {
        for file in [&mut self.file, &mut self.ca_file].into_iter().flatten() {
            *file = base.join(&*file);
        }
        if let ListSource::Watched(file) = self.list_source() {
            self.source = base.join(file).display().to_string();
        }
    }
}
