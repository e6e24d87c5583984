//! The Secrets in which people keep certificates for their own domains: those that an Ingress names are watched, one by one, and no others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watch_object};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tailwharf_plan::ingress::{CertificateFacts, CertificateSecret};
use tokio_util::task::AbortOnDropHandle;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::cache::ObjectKey;
use crate::world::{Key, World};

/// Keys of a Secret of type `kubernetes.io/tls`.
pub(crate) const CERTIFICATE: &str = "tls.crt";
pub(crate) const PRIVATE_KEY: &str = "tls.key";
/// Longest certificate chain or key that is read, in bytes.
const MAX_PEM: usize = 128 * 1024;
/// Most names of one certificate that are kept.
const MAX_NAMES: usize = 256;
/// Hex digits of a digest.
const DIGEST: usize = 16;

/// The Secrets that Ingresses name.
#[derive(Default)]
pub(crate) struct Certificates(Mutex<HashMap<ObjectKey, Watched>>);

struct Watched {
    state: CertificateSecret,
    /// The Ingresses that name it.
    users: BTreeSet<ObjectKey>,
    _watch: AbortOnDropHandle<()>,
}

impl Certificates {
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is now known of a Secret. Returns the Ingresses to which that is news.
    fn set(&self, key: &ObjectKey, state: CertificateSecret) -> BTreeSet<ObjectKey> {
        match self.lock().get_mut(key) {
            Some(watched) if watched.state != state => {
                watched.state = state;
                watched.users.clone()
            }
            _ => BTreeSet::new(),
        }
    }
}

impl World {
    /// What is known of the Secrets that an Ingress names. From now on these are watched for it, and no others.
    pub(crate) fn certificates(
        self: &Arc<Self>,
        client: &Client,
        ingress: &ObjectKey,
        names: &BTreeSet<&str>,
    ) -> BTreeMap<String, CertificateSecret> {
        let mut all = self.exposing.certificates.lock();
        all.retain(|key, watched| {
            if key.namespace != ingress.namespace || !names.contains(key.name.as_str()) {
                watched.users.remove(ingress);
            }
            !watched.users.is_empty()
        });
        let mut states = BTreeMap::new();
        for name in names {
            let key = ObjectKey::new(ingress.namespace.as_str(), *name);
            let watched = all.entry(key.clone()).or_insert_with(|| Watched {
                state: CertificateSecret::Pending,
                users: BTreeSet::new(),
                _watch: AbortOnDropHandle::new(tokio::spawn(follow(self.clone(), client.clone(), key))),
            });
            watched.users.insert(ingress.clone());
            states.insert((*name).to_owned(), watched.state.clone());
        }
        states
    }
}

/// Follows one Secret until the task is dropped.
async fn follow(world: Arc<World>, client: Client, key: ObjectKey) {
    let api: Api<Secret> = Api::namespaced(client, &key.namespace);
    let mut versions = std::pin::pin!(watch_object(api, &key.name).default_backoff());
    while let Some(version) = versions.next().await {
        let state = match version {
            Ok(Some(secret)) => read(&secret),
            Ok(None) => CertificateSecret::Missing,
            Err(error) if is_forbidden(&error) => CertificateSecret::Forbidden,
            Err(error) => {
                tracing::debug!(secret = %key, error = %error, "the watch of a certificate broke; starting it again");
                continue;
            }
        };
        for ingress in world.exposing.certificates.set(&key, state) {
            world.queue.add(Key::Ingress(ingress));
        }
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 403,
        _ => false,
    }
}

/// Looks at a Secret: whether it holds a certificate and its key, and for what.
fn read(secret: &Secret) -> CertificateSecret {
    facts(secret).map_or_else(
        |fault| CertificateSecret::Invalid(fault.to_string()),
        CertificateSecret::Good,
    )
}

/// Why a Secret's certificate cannot be used.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("it has no {0}: put the certificate there, in PEM")]
    Absent(&'static str),
    #[error("{0} has more than {MAX_PEM} bytes")]
    TooLong(&'static str),
    #[error("{0} is not PEM of the kind expected there")]
    NotPem(&'static str),
    #[error("{CERTIFICATE} does not begin with an X.509 certificate")]
    NotACertificate,
    #[error("{PRIVATE_KEY} is of a kind that is not supported: use RSA, ECDSA (P-256, P-384) or Ed25519")]
    KeyKind,
    #[error("{PRIVATE_KEY} is not the key of the certificate in {CERTIFICATE}")]
    KeyMismatch,
    #[error("the certificate in {CERTIFICATE} is for no DNS name")]
    NoNames,
}

fn facts(secret: &Secret) -> Result<CertificateFacts, Fault> {
    let chain = value(secret, CERTIFICATE)?;
    let key = value(secret, PRIVATE_KEY)?;
    let certificates = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Fault::NotPem(CERTIFICATE))?;
    let first = certificates.first().ok_or(Fault::NotPem(CERTIFICATE))?.clone();
    let private = PrivateKeyDer::from_pem_slice(key).map_err(|_| Fault::NotPem(PRIVATE_KEY))?;
    let (_, certificate) = X509Certificate::from_der(&first).map_err(|_| Fault::NotACertificate)?;
    let private = any_supported_type(&private).map_err(|_| Fault::KeyKind)?;
    CertifiedKey::new(certificates, private)
        .keys_match()
        .map_err(|_| Fault::KeyMismatch)?;
    let names = names(&certificate);
    if names.is_empty() {
        return Err(Fault::NoNames);
    }
    let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|_| Fault::NotACertificate);
    let mut digest = Sha256::new();
    digest.update(chain);
    digest.update(key);
    Ok(CertificateFacts {
        resource_version: secret.metadata.resource_version.clone().unwrap_or_default(),
        digest: hex::encode(digest.finalize())[..DIGEST].to_owned(),
        names,
        not_before: time(certificate.validity().not_before.timestamp())?,
        not_after: time(certificate.validity().not_after.timestamp())?,
    })
}

fn value<'a>(secret: &'a Secret, key: &'static str) -> Result<&'a [u8], Fault> {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    match data.map(|value| value.0.as_slice()) {
        None | Some([]) => Err(Fault::Absent(key)),
        Some(value) if value.len() > MAX_PEM => Err(Fault::TooLong(key)),
        Some(value) => Ok(value),
    }
}

/// The DNS names of a certificate, in lower case.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .take(MAX_NAMES)
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn secret(parts: &[(&str, &str)]) -> Secret {
        let data = parts
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret {
            data: Some(data.collect()),
            ..Secret::default()
        }
    }

    fn issue(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_with_its_key_is_good_for_its_names() {
        let (certificate, key) = issue(&["*.example.com", "Example.com"]);
        let found = read(&secret(&[(CERTIFICATE, &certificate), (PRIVATE_KEY, &key)]));
        let CertificateSecret::Good(facts) = found else {
            panic!("{found:?}");
        };
        assert_eq!(facts.names, ["*.example.com", "example.com"]);
        assert_eq!(facts.digest.len(), DIGEST);
        assert!(facts.not_before < facts.not_after);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (certificate, key) = issue(&["example.com"]);
        let (_, other) = issue(&["example.com"]);
        for (parts, expected) in [
            (vec![], "it has no tls.crt"),
            (vec![(CERTIFICATE, certificate.as_str())], "it has no tls.key"),
            (
                vec![(CERTIFICATE, "x"), (PRIVATE_KEY, &key)],
                "tls.crt is not PEM",
            ),
            (
                vec![(CERTIFICATE, &certificate), (PRIVATE_KEY, "x")],
                "tls.key is not PEM",
            ),
            (
                vec![(CERTIFICATE, &certificate), (PRIVATE_KEY, &certificate)],
                "tls.key is not PEM",
            ),
            (
                vec![(CERTIFICATE, &certificate), (PRIVATE_KEY, &other)],
                "not the key of the certificate",
            ),
        ] {
            let CertificateSecret::Invalid(fault) = read(&secret(&parts)) else {
                panic!("{expected}");
            };
            assert!(fault.contains(expected), "{fault}");
        }
    }
}
