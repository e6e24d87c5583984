//! A certificate from files of the administrator, which are looked at while the proxy runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::sleep;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// PEM files: the certificate with those above it, and its key. They are read again when they change.
    Files {
        /// The certificates.
        chain: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// One for the device's name, which whoever hosts the device keeps.
    Device {
        /// Directory of the ACME server; the usual one if there is none.
        directory: Option<String>,
    },
}

/// A certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The content is not a certificate with its key.
    #[error("it is not a certificate with its key in PEM: {0}")]
    Content(String),
}

/// Shows the newest certificate.
#[derive(Debug, Default)]
pub(crate) struct Shown(RwLock<Option<Arc<CertifiedKey>>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shown {
    fn show(&self, chain: &[u8], key: &[u8]) -> Result<(), CertificateError> {
        let content = |error: &dyn std::fmt::Display| CertificateError::Content(error.to_string());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| content(&error))?;
        if chain.is_empty() {
            return Err(CertificateError::Content("there is no certificate".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| content(&error))?;
        let key = CertifiedKey::from_der(chain, key, &tailwharf_tls::provider())
            .map_err(|error| content(&error))?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
        Ok(())
    }
}

/// Shows what is in files, for as long as it is polled.
pub(crate) async fn follow_files(shown: &Shown, chain: &Path, key: &Path) {
    let mut last = None;
    loop {
        match (read(chain), read(key)) {
            (Ok(chain), Ok(key)) if last.as_ref() != Some(&(chain.clone(), key.clone())) => {
                match shown.show(&chain, &key) {
                    Ok(()) => tracing::info!("the certificate is read"),
                    Err(error) => tracing::warn!(%error, "the certificate cannot be used; the old one stays"),
                }
                last = Some((chain, key));
            }
            (Ok(_), Ok(_)) => {}
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the certificate cannot be read"
                );
            }
        }
        sleep(LOOK).await;
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::File {
        path: path.to_owned(),
        source,
    })
}
