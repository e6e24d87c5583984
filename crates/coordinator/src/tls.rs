//! The certificate of the listener: read from files, and again whenever they change.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::config::TlsFiles;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// What is wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct TlsError {
    what: String,
}

/// The certificate in use. Handshakes take the one of their moment.
pub(crate) struct Certificates {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(
            self.current
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read, or the key is not the certificate's.
    pub(crate) fn open(files: &TlsFiles) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let current = read(files, &provider)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            provider,
            current: RwLock::new(Arc::new(current)),
        }))
    }

    /// Serves connections with them.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError {
                what: error.to_string(),
            })?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Takes up changes of the files until the coordinator stops. Files that are of no use change nothing: whoever replaces both may be half way.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = self.modified().await;
        let rounds = async {
            loop {
                sleep(LOOK).await;
                let now = self.modified().await;
                if now == seen {
                    continue;
                }
                match read(&self.files, &self.provider) {
                    Ok(next) => {
                        seen = now;
                        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
                        tracing::info!(file = %self.files.cert_file.display(), "the certificate was read again");
                    }
                    Err(error) => tracing::warn!(%error, "the certificate stays as it was"),
                }
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    async fn modified(&self) -> [Option<SystemTime>; 2] {
        let at = async |path: &Path| {
            let file = tokio::fs::metadata(path).await;
            file.and_then(|file| file.modified()).ok()
        };
        [at(&self.files.cert_file).await, at(&self.files.key_file).await]
    }
}

fn read(files: &TlsFiles, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let wrong = |path: &Path, error: &dyn fmt::Display| TlsError {
        what: format!("{}: {error}", path.display()),
    };
    let chain = CertificateDer::pem_file_iter(&files.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(&files.cert_file, &error))?;
    if chain.is_empty() {
        return Err(wrong(&files.cert_file, &"it holds no certificate"));
    }
    let key =
        PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| wrong(&files.key_file, &error))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| wrong(&files.key_file, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(files: &TlsFiles, name: &str) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(&files.cert_file, made.cert.pem()).unwrap();
        std::fs::write(&files.key_file, made.signing_key.serialize_pem()).unwrap();
        made.cert.der().to_vec()
    }

    fn in_use(certificates: &Certificates) -> Vec<u8> {
        certificates.current.read().unwrap().cert[0].to_vec()
    }

    #[tokio::test]
    async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert_file: dir.path().join("cert.pem"),
            key_file: dir.path().join("key.pem"),
        };
        let first = write(&files, "a.example");
        let certificates = Certificates::open(&files).unwrap();
        assert_eq!(in_use(&certificates), first);
        let stop = CancellationToken::new();
        tokio::time::pause();
        let watch = tokio::spawn(certificates.clone().watch(stop.clone()));
        sleep(LOOK * 2).await;
        // The chain of one key with the other: half of a replacement.
        let old_key = std::fs::read(&files.key_file).unwrap();
        let second = write(&files, "b.example");
        let new_key = std::fs::read(&files.key_file).unwrap();
        std::fs::write(&files.key_file, old_key).unwrap();
        sleep(LOOK * 2).await;
        assert_eq!(in_use(&certificates), first);
        std::fs::write(&files.key_file, new_key).unwrap();
        let mut rounds = 0;
        while in_use(&certificates) != second {
            rounds += 1;
            assert!(rounds < 100, "the new one is never taken up");
            sleep(LOOK).await;
        }
        stop.cancel();
        watch.await.unwrap();
    }

    #[test]
    fn files_of_no_use_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert_file: dir.path().join("cert.pem"),
            key_file: dir.path().join("key.pem"),
        };
        assert!(
            Certificates::open(&files)
                .unwrap_err()
                .to_string()
                .contains("cert.pem")
        );
        write(&files, "a.example");
        std::fs::write(&files.key_file, "").unwrap();
        assert!(
            Certificates::open(&files)
                .unwrap_err()
                .to_string()
                .contains("key.pem")
        );
        std::fs::write(&files.cert_file, "").unwrap();
        assert!(
            Certificates::open(&files)
                .unwrap_err()
                .to_string()
                .contains("no certificate")
        );
    }
}
