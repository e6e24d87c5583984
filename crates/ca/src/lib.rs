//! The tailnet's private certificate authority.
//!
//! An ACME server (RFC 8555) with renewal information (RFC 9773) for the names of one tailnet. The proof that a client
//! controls a name is the TXT record which the client's node had the control server set (`/machine/set-dns`); no DNS
//! server takes part, so that it works without the Internet. The root certificate is constrained to the tailnet's names, unless it is to certify
//! their short forms.

#![forbid(unsafe_code)]

mod authority;
mod book;
mod file;
mod jws;
mod nonces;
mod orders;
mod problem;
mod service;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use jiff::Timestamp;

use crate::service::Service;

/// Where proofs are looked up.
pub trait TxtRecords: Send + Sync + 'static {
    /// The values of the TXT records at `name`, which has no dot at its end.
    fn txt(&self, name: &str) -> Vec<String>;
}

/// What a [`CertificateAuthority`] needs to know.
#[derive(Clone, Debug)]
pub struct CaConfig {
    /// The address of the server that the routes are part of, such as `https://control.example.com`.
    pub server_url: String,
    /// Names below this domain are certified.
    pub suffix: String,
    /// A certificate for a name right below the suffix also holds its first label, by which devices of the tailnet ask for it. A root that may do so is
    /// trusted for all names; changing this makes a new root.
    pub short_names: bool,
    /// Where root key and accounts are kept.
    pub data_dir: PathBuf,
}

/// Why the authority does not start, or a change is refused.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is damaged.
    #[error("{} is damaged; restore it from a backup, or remove it to begin with a new one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The root cannot be made or read.
    #[error("the root certificate cannot be made or read")]
    Root(#[source] rcgen::Error),
}

/// The running authority. Clones share it.
#[derive(Clone)]
pub struct CertificateAuthority(Arc<Service>);

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Opens the authority in its data directory, with a new root if there is none for these names. Blocks on files.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is damaged.
    pub fn open(
        config: &CaConfig,
        records: Arc<dyn TxtRecords>,
        clock: fn() -> Timestamp,
    ) -> Result<Self, CaError> {
        Service::open(config, records, clock).map(|service| Self(Arc::new(service)))
    }

    /// Its routes, all below `/acme/`; the directory is `/acme/directory`.
    pub fn router(&self) -> Router {
        service::router(self.0.clone())
    }

    /// The root certificate as PEM, to install where these names are to be trusted.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.0.root_pem()
    }
}
