//! The files by which the proxy and the API server know each other. Both are replaced while the proxy runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderValue;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Most bytes of a token.
const MAX_TOKEN: usize = 16 * 1024;

/// A file that the proxy needs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It cannot be read.
    #[error("cannot read {what} from {}", path.display())]
    Read {
        /// What it holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its content is not what it should be.
    #[error("{} does not hold {what}: {why}", path.display())]
    Content {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The name of the API server is none.
    #[error("{0:?} is neither a host name nor an address")]
    Host(String),
}

/// The proxy's own token.
#[derive(Debug)]
pub(super) struct Token {
    path: PathBuf,
    value: RwLock<HeaderValue>,
}

impl Token {
    pub(super) fn read(path: PathBuf) -> Result<Self, CredentialError> {
        let value = read_token(&path)?;
        Ok(Self {
            path,
            value: RwLock::new(value),
        })
    }

    pub(super) fn value(&self) -> HeaderValue {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again. One that cannot be used changes nothing: it may be in the making.
    pub(super) fn refresh(&self) {
        match read_token(&self.path) {
            Ok(value) => *self.value.write().unwrap_or_else(PoisonError::into_inner) = value,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the old token stays in use"
                );
            }
        }
    }
}

fn read_token(path: &Path) -> Result<HeaderValue, CredentialError> {
    const WHAT: &str = "the token of the service account";
    let text = fs::read_to_string(path).map_err(|source| CredentialError::Read {
        what: WHAT,
        path: path.to_owned(),
        source,
    })?;
    let wrong = |why: &str| CredentialError::Content {
        what: WHAT,
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let token = text.trim();
    if token.is_empty() || token.len() > MAX_TOKEN {
        return Err(wrong("it is empty or too long"));
    }
    let mut value =
        HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| wrong("it has other characters"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// How connections are secured, for each version of HTTP.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    /// Offers HTTP/1.1.
    pub(super) http1: Arc<ClientConfig>,
    /// Offers HTTP/2.
    pub(super) http2: Arc<ClientConfig>,
}

/// The authorities that sign the API server's certificate.
#[derive(Debug)]
pub(super) struct Trust {
    path: PathBuf,
    current: RwLock<(Vec<u8>, Tls)>,
}

impl Trust {
    pub(super) fn read(path: PathBuf) -> Result<Self, CredentialError> {
        let pem = read_pem(&path)?;
        let tls = configure(&path, &pem)?;
        Ok(Self {
            path,
            current: RwLock::new((pem, tls)),
        })
    }

    pub(super) fn tls(&self) -> Tls {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .clone()
    }

    /// Reads the file again; whether its content has changed.
    pub(super) fn refresh(&self) -> bool {
        let read = read_pem(&self.path).and_then(|pem| {
            if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == pem {
                return Ok(None);
            }
            let tls = configure(&self.path, &pem)?;
            Ok(Some((pem, tls)))
        });
        match read {
            Ok(None) => false,
            Ok(Some(new)) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!(file = %self.path.display(), "the API server's certificate authorities have changed");
                true
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the old certificate authorities stay in use"
                );
                false
            }
        }
    }
}

const AUTHORITIES: &str = "certificate authorities of the API server";

fn read_pem(path: &Path) -> Result<Vec<u8>, CredentialError> {
    fs::read(path).map_err(|source| CredentialError::Read {
        what: AUTHORITIES,
        path: path.to_owned(),
        source,
    })
}

fn configure(path: &Path, pem: &[u8]) -> Result<Tls, CredentialError> {
    let wrong = |why: String| CredentialError::Content {
        what: AUTHORITIES,
        path: path.to_owned(),
        why,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("it has no certificate".to_owned()));
    }
    let mut http1 = ClientConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http2 = http1.clone();
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    http2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Tls {
        http1: Arc::new(http1),
        http2: Arc::new(http2),
    })
}
