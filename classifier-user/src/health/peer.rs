//! Verification of the peer of a TLS probe: the server that was asked for, or somebody in its place, such as a captive portal.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Time that certificates may take to be read.
const PATIENCE: Duration = Duration::from_secs(5);

/// Settings of TLS, and the certificates that are trusted.
#[derive(Clone)]
pub(crate) struct Trust {
    /// Accepts the certificates of hosts by name.
    by_name: Arc<ClientConfig>,
    /// Accepts no certificate.
    blind: Arc<ClientConfig>,
}

impl Trust {
    /// Trusts Mozilla's root certificates alone.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub(super) fn built_in() -> Result<Self> {
        Self::of(built_in_roots())
    }

    /// Trusts Mozilla's root certificates, those of the system, and those of a PEM file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or has no certificate.
    pub(crate) fn read(ca_file: Option<&Path>) -> Result<Self> {
        let mut roots = built_in_roots();
        // A gateway may have none, or only the company's; what cannot be read there is the system's matter.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Self::with_file(roots, ca_file)
    }

    /// Trusts Mozilla's root certificates and those of a PEM file. The system's may have that of a device that intercepts TLS.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read or has no certificate.
    pub(crate) fn without_system(ca_file: Option<&Path>) -> Result<Self> {
        Self::with_file(built_in_roots(), ca_file)
    }

    fn with_file(mut roots: RootCertStore, ca_file: Option<&Path>) -> Result<Self> {
        if let Some(file) = ca_file {
            let tried = || format!("[health] ca_file {}", file.display());
            let certificates = CertificateDer::pem_file_iter(file)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("cannot read the {}", tried()))?;
            let (added, _) = roots.add_parsable_certificates(certificates);
            ensure!(added > 0, "{} has no certificate", tried());
        }
        Self::of(roots)
    }

    fn of(roots: RootCertStore) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
        };
        let blind = builder()?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let verifier = AtAnyTime::new(roots, Arc::clone(&provider))?;
        let by_name = builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Trust {
            by_name: Arc::new(by_name),
            blind: Arc::new(blind),
        })
    }

    /// The settings for a connection to a host, and whether they check its certificate. Public certificates name hosts, so that of an
    /// address is not checked.
    pub(super) fn config(&self, name: &ServerName<'_>) -> (Arc<ClientConfig>, bool) {
        match name {
            ServerName::DnsName(_) => (Arc::clone(&self.by_name), true),
            _ => (Arc::clone(&self.blind), false),
        }
    }
}

/// Reads certificates beside the runtime, which fail-over shares. Those `before`, or those that are built in, take the place of what
/// cannot be read.
pub(super) async fn read_beside(ca_file: Option<PathBuf>, before: Option<Trust>) -> Option<Trust> {
    let read = spawn_blocking(move || Trust::read(ca_file.as_deref()));
    let read = match timeout(PATIENCE, read).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(anyhow!("certificates cannot be read within {PATIENCE:?}")),
    };
    read.inspect_err(|error| {
        tracing::error!("probes verify certificates by fewer authorities: {error:#}");
    })
    .ok()
    .or(before)
    .or_else(|| Trust::built_in().ok())
}

fn built_in_roots() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// Checks that certificates can be read from the file that `[health] ca_file` names.
///
/// # Errors
///
/// When it cannot be read or has no certificate.
pub fn check_ca_file(file: Option<&Path>) -> Result<()> {
    Trust::read(file).map(drop)
}

/// Verifies the issuer and the name of a certificate, and accepts it outside its validity: a gateway may have booted in 1970.
#[derive(Debug)]
struct AtAnyTime(Arc<WebPkiServerVerifier>);

impl AtAnyTime {
    fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Self> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        Ok(AtAnyTime(
            verifier
                .build()
                .context("cannot use the root certificates")?,
        ))
    }
}

impl ServerCertVerifier for AtAnyTime {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        const HOUR: u64 = 3600;
        let at = |time| {
            self.0
                .verify_server_cert(end_entity, intermediates, name, ocsp, time)
        };
        let seconds = |time: u64| UnixTime::since_unix_epoch(Duration::from_secs(time));
        let mut result = at(now);
        // Each certificate of a chain has times of its own.
        for _ in 0..=intermediates.len() {
            let time = match &result {
                Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    not_before,
                    ..
                })) => not_before.as_secs().saturating_add(HOUR),
                Err(Error::InvalidCertificate(CertificateError::ExpiredContext {
                    not_after,
                    ..
                })) => not_after.as_secs().saturating_sub(HOUR),
                _ => break,
            };
            result = at(seconds(time));
        }
        result
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    use super::*;

    /// An authority, and a certificate by it for front.example from the first day of one year to that of another.
    fn issue(from: i32, to: i32) -> (CertificateDer<'static>, CertificateDer<'static>) {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = parameters.self_signed(&key).unwrap();
        let issuer = Issuer::new(parameters, key);
        let mut parameters = CertificateParams::new(vec!["front.example".to_owned()]).unwrap();
        parameters.not_before = date_time_ymd(from, 1, 1);
        parameters.not_after = date_time_ymd(to, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        (authority.der().clone(), certificate.der().clone())
    }

    fn verify(
        authority: CertificateDer<'static>,
        certificate: &CertificateDer<'_>,
        name: &str,
    ) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = AtAnyTime::new(roots, provider).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_764_000_000));
        verifier
            .verify_server_cert(certificate, &[], &name, &[], now)
            .map(drop)
    }

    #[test]
    fn issuer_and_name_count_and_the_clock_does_not() {
        for (from, to) in [(2020, 2040), (2020, 2021), (2039, 2040)] {
            let (authority, certificate) = issue(from, to);
            verify(authority.clone(), &certificate, "front.example").unwrap();
            let (stranger, _) = issue(from, to);
            for (authority, name) in [(stranger, "front.example"), (authority, "portal.example")] {
                let verified = verify(authority, &certificate, name);
                assert!(
                    matches!(verified, Err(Error::InvalidCertificate(_))),
                    "{from} {name}: {verified:?}"
                );
            }
        }
    }

    #[test]
    fn the_file_of_certificates_is_checked() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let error = |file: &Path| format!("{:#}", check_ca_file(Some(file)).unwrap_err());
        assert!(error(&file).starts_with("cannot read the [health] ca_file"));
        std::fs::write(&file, "no certificate").unwrap();
        assert!(error(&file).ends_with("ca.pem has no certificate"));
    }
}
