//! One look at the source: whether there is another list, and what it is.

use super::{FetchError, Instance, Service};

/// A list as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The version that the service named.
    pub version: Option<String>,
    /// Source.
    pub source: String,
    /// Query of the request.
    pub query: String,
    /// The answer of `/endpoints`, or the file.
    pub endpoints: Vec<u8>,
    /// The answer of `/changes` since the version that was known, if there was one.
    pub changes: Vec<u8>,
}

/// Asks for the version of an instance's list, and for the list if that is another one than `known`.
///
/// # Errors
///
/// See [`FetchError`].
pub async fn check(
    service: &Service,
    instance: Instance,
    known: Option<&str>,
) -> Result<Option<Fetched>, FetchError> {
    let version = service.version(instance).await?;
    if known == Some(&version) {
        return Ok(None);
    }
    let endpoints = service.endpoints(instance).await?;
    let changes = match known {
        // Without them only the days are missing from which on additions are used.
        Some(known) => service.changes(instance, known).await.unwrap_or_default(),
        None => Vec::new(),
    };
    Ok(Some(Fetched {
        version: Some(version),
        source: service.base().to_owned(),
        query: service.query().to_owned(),
        endpoints,
        changes,
    }))
}
