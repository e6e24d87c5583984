//! TLS towards control servers and relays. Configurations are shared by all nodes of the process.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName, ServerName, UnixTime};

use crate::host::HostError;
use crate::sync::lock;

/// What a server must prove in the TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Trust {
    /// A certificate for the name dialled, from a root of the system or the extra CA.
    Roots,
    /// As `Roots`, but for another name than the one dialled.
    RootsForName(DnsName<'static>),
    /// Exactly the certificate with this SHA-256.
    Pinned([u8; 32]),
    /// Nothing: the protocol inside proves who the server is, or the relay map says that this is a test.
    Nothing,
}

/// Pins and names seen before are kept; beyond this many the cache starts over.
const MAX_CACHED: usize = 64;

/// The client configurations of the process, one per kind of trust.
pub(crate) struct TlsConfigs {
    provider: Arc<CryptoProvider>,
    /// `None` on a system without root certificates, which is enough for plain HTTP and pinned relays.
    roots: Option<Arc<WebPkiServerVerifier>>,
    cached: Mutex<HashMap<Trust, Arc<ClientConfig>>>,
}

impl TlsConfigs {
    /// Reads the system's roots and adds those in `extra_ca`, a PEM bundle.
    pub(crate) fn new(extra_ca: Option<&[u8]>) -> Result<Self, HostError> {
        let provider = tailwharf_tls::provider();
        let mut store = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::debug!(%error, "a root certificate of the system was skipped");
        }
        store.add_parsable_certificates(system.certs);
        if let Some(pem) = extra_ca {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                store
                    .add(certificate.map_err(HostError::CaPem)?)
                    .map_err(HostError::CaCertificate)?;
            }
        }
        let roots = match store.is_empty() {
            true => None,
            false => Some(
                WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
                    .build()
                    .map_err(HostError::Verifier)?,
            ),
        };
        Ok(Self {
            provider,
            roots,
            cached: Mutex::default(),
        })
    }

    /// The configuration for one kind of trust.
    pub(crate) fn client(&self, trust: &Trust) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = lock(&self.cached).get(trust) {
            return Ok(config.clone());
        }
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::Roots => self.roots()?,
            Trust::RootsForName(name) => Arc::new(OtherName {
                inner: self.roots()?,
                name: ServerName::DnsName(name.clone()),
            }),
            Trust::Pinned(sha256) => Arc::new(Exactly {
                sha256: Some(*sha256),
                algorithms: self.algorithms(),
            }),
            Trust::Nothing => Arc::new(Exactly {
                sha256: None,
                algorithms: self.algorithms(),
            }),
        };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        // Connections live for days and there is one per node: a ticket store would cost more than it saves.
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        let mut cached = lock(&self.cached);
        if cached.len() >= MAX_CACHED {
            cached.clear();
        }
        cached.insert(trust.clone(), config.clone());
        Ok(config)
    }

    fn roots(&self) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        self.roots.clone().ok_or_else(|| {
            rustls::Error::General(
                "this system has no root certificates; install ca-certificates or give a CA".into(),
            )
        })
    }

    fn algorithms(&self) -> WebPkiSupportedAlgorithms {
        self.provider.signature_verification_algorithms
    }
}

impl fmt::Debug for TlsConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfigs").finish_non_exhaustive()
    }
}

/// Verifies as `inner` does, for another name than the one in the SNI (`DERPNode.CertName`).
#[derive(Debug)]
struct OtherName {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for OtherName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts one certificate by its SHA-256, or any; the server must still prove that it holds the certificate's key.
#[derive(Debug)]
struct Exactly {
    sha256: Option<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let matches = self.sha256.is_none_or(|expected| {
            digest::digest(&digest::SHA256, end_entity).as_ref() == expected.as_slice()
        });
        if matches {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
