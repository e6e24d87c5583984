//! The certificate that the proxy shows: from files of the administrator, or by ACME for the device's name. Both are looked after while
//! the proxy runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tailwharf_node::Node;
use tailwharf_node::acme::{AcmeAccount, Certificate};
use tokio::time::sleep;
use url::Url;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Pauses between orders that failed: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));
/// A certificate by ACME is replaced after this: those of public authorities live 90 days, our own at least as long.
const RENEW: Duration = Duration::from_secs(30 * 24 * 3600);

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
    /// An ACME server.
    Acme {
        /// Its directory.
        directory: Url,
        /// A folder that keeps account and certificate over a restart.
        keep: Option<PathBuf>,
    },
}

/// A certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
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
    /// The order failed.
    #[error("the order failed")]
    Order(#[from] tailwharf_node::acme::AcmeError),
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

/// Orders a certificate for `name` again and again, for as long as it is polled.
pub(crate) async fn follow_acme(
    shown: &Shown,
    node: &Node,
    directory: &Url,
    keep: Option<&Path>,
    name: &str,
) {
    let mut pause = RETRY.0;
    let kept = keep.map(|folder| Kept {
        chain: folder.join(format!("{name}.crt")),
        key: folder.join(format!("{name}.key")),
    });
    if let Some(left) = kept.as_ref().and_then(|kept| kept.show(shown)) {
        sleep(left).await;
    }
    loop {
        match order(node, directory, keep, name).await {
            Ok(certificate) => {
                let (chain, key) = (certificate.chain_pem.as_bytes(), certificate.key_pem.as_bytes());
                match shown.show(chain, key) {
                    Ok(()) => tracing::info!(name, "a certificate is here"),
                    Err(error) => tracing::warn!(%error, "the new certificate cannot be used"),
                }
                if let Some(Err(error)) = kept.as_ref().map(|kept| kept.store(&certificate)) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the certificate is not kept over a restart"
                    );
                }
                pause = RETRY.0;
                sleep(RENEW).await;
            }
            Err(error) => {
                tracing::warn!(
                    name,
                    error = &error as &dyn std::error::Error,
                    "there is no certificate; it is ordered again later"
                );
                sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
}

async fn order(
    node: &Node,
    directory: &Url,
    keep: Option<&Path>,
    name: &str,
) -> Result<Certificate, CertificateError> {
    let account = match keep.map(|folder| folder.join("acme-account")) {
        None => AcmeAccount::generate(directory.clone())?,
        Some(path) => match fs::read(&path) {
            Ok(key) => AcmeAccount::from_pkcs8(directory.clone(), &key)?,
            Err(_) => {
                let account = AcmeAccount::generate(directory.clone())?;
                write(&path, account.to_pkcs8())?;
                account
            }
        },
    };
    Ok(node.certificate(&account, name, None).await?)
}

/// The files of a certificate that is kept over a restart.
struct Kept {
    chain: PathBuf,
    key: PathBuf,
}

impl Kept {
    /// Shows what an earlier run has kept; how long it still is good.
    fn show(&self, shown: &Shown) -> Option<Duration> {
        let age = fs::metadata(&self.chain).ok()?.modified().ok()?.elapsed().ok()?;
        let left = RENEW.checked_sub(age)?;
        shown
            .show(&read(&self.chain).ok()?, &read(&self.key).ok()?)
            .ok()?;
        Some(left)
    }

    fn store(&self, certificate: &Certificate) -> Result<(), CertificateError> {
        write(&self.key, certificate.key_pem.as_bytes())?;
        write(&self.chain, certificate.chain_pem.as_bytes())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that only its owner reads.
fn write(path: &Path, content: &[u8]) -> Result<(), CertificateError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let open = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    open.and_then(|mut file| file.write_all(content))
        .map_err(|source| CertificateError::File {
            path: path.to_owned(),
            source,
        })
}
