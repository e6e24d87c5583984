//! A certificate as it was read and checked: it can be served.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tailwharf_node::acme::Lifetime;

/// Most certificates of a chain.
const MAX_CHAIN: usize = 10;

/// Why a certificate cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The chain is not PEM, or empty, or too long.
    #[error("the certificate is not PEM of one to {MAX_CHAIN} certificates")]
    Chain,
    /// The key is not PEM, or of a kind that is not known.
    #[error("the private key is not PEM of a key that can be used")]
    Key,
    /// Key and certificate do not belong together.
    #[error("the private key is not that of the certificate")]
    Mismatch,
    /// It is for other names.
    #[error("the certificate is not for {name}")]
    Name {
        /// The name that it should be for.
        name: String,
    },
    /// Its time is over.
    #[error("the certificate has expired at {at}")]
    Expired {
        /// When.
        at: Timestamp,
    },
}

/// A certificate that can be served.
#[derive(Clone)]
pub(crate) struct Loaded {
    /// With its private key.
    pub key: Arc<CertifiedKey>,
    /// When it is good.
    pub lifetime: Lifetime,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("expires", &self.lifetime.expires)
            .finish_non_exhaustive()
    }
}

impl Loaded {
    /// Reads PEM and checks that it can be served under `name`, which may begin with `*.`, at `now`.
    ///
    /// # Errors
    /// [`CertificateError`] says what is wrong.
    pub(crate) fn read(
        chain: &[u8],
        key: &[u8],
        name: &str,
        now: Timestamp,
    ) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .take(MAX_CHAIN + 1)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| CertificateError::Chain)?;
        if chain.len() > MAX_CHAIN {
            return Err(CertificateError::Chain);
        }
        let leaf = chain.first().ok_or(CertificateError::Chain)?.clone();
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::Key)?;
        let certified =
            CertifiedKey::from_der(chain, key, &tailwharf_tls::provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch,
                rustls::Error::InvalidCertificate(_) => CertificateError::Chain,
                _ => CertificateError::Key,
            })?;
        check_name(&leaf, name)?;
        let lifetime = Lifetime::read(&leaf).ok_or(CertificateError::Chain)?;
        if lifetime.expires <= now {
            return Err(CertificateError::Expired { at: lifetime.expires });
        }
        Ok(Self {
            key: Arc::new(certified),
            lifetime,
        })
    }
}

fn check_name(leaf: &CertificateDer<'_>, name: &str) -> Result<(), CertificateError> {
    let wrong = || CertificateError::Name {
        name: name.to_owned(),
    };
    // A certificate for a wildcard is one for whatever label stands in its place.
    let example = name
        .strip_prefix("*.")
        .map_or_else(|| name.to_owned(), |parent| format!("any.{parent}"));
    let server = ServerName::try_from(example.as_str()).map_err(|_| wrong())?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(|_| CertificateError::Chain)?;
    verify_server_name(&parsed, &server).map_err(|_| wrong())
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A self-signed certificate for names, as PEM with its key.
    pub(crate) fn certificate(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn what_is_good_is_read() {
        let (chain, key) = certificate(&["web.example.com", "*.example.org"]);
        for name in ["web.example.com", "*.example.org"] {
            Loaded::read(chain.as_bytes(), key.as_bytes(), name, now()).unwrap();
        }
    }

    #[test]
    fn what_is_bad_says_why() {
        let (chain, key) = certificate(&["web.example.com"]);
        let (_, other) = certificate(&["web.example.com"]);
        let read = |chain: &str, key: &str, name: &str, at: Timestamp| {
            Loaded::read(chain.as_bytes(), key.as_bytes(), name, at).unwrap_err()
        };
        let name = "web.example.com";
        assert_eq!(read("", &key, name, now()), CertificateError::Chain);
        assert_eq!(read("nonsense", &key, name, now()), CertificateError::Chain);
        assert_eq!(read(&chain, "", name, now()), CertificateError::Key);
        assert_eq!(read(&chain, &other, name, now()), CertificateError::Mismatch);
        let wrong = |name: &str| CertificateError::Name {
            name: name.to_owned(),
        };
        assert_eq!(read(&chain, &key, "x.example.com", now()), wrong("x.example.com"));
        assert_eq!(read(&chain, &key, "*.example.com", now()), wrong("*.example.com"));
        let late = Timestamp::from_second(100_000_000_000).unwrap();
        assert!(matches!(
            read(&chain, &key, name, late),
            CertificateError::Expired { .. }
        ));
        assert_eq!(
            read(&chain.repeat(11), &key, name, now()),
            CertificateError::Chain
        );
    }
}
