//! TLS on either side: which certificate a client is shown, and connections to backends whose certificate is not looked at.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tailwharf_http::Version;
use tailwharf_kube_types::identity::web::HostName;
use tokio::net::TcpStream;

use super::upstream::Io;

/// The certificates of a device, by the name that a client asks for. They change while connections go on.
#[derive(Debug, Default)]
pub(crate) struct Certificates(RwLock<Table>);

#[derive(Debug, Default)]
struct Table {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the asterisk and dot.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
    /// The device's own full name.
    device: Option<String>,
}

impl Certificates {
    /// Shows these certificates from now on. `device` is the device's own full name.
    pub(crate) fn set<'a>(
        &self,
        certificates: impl IntoIterator<Item = (&'a HostName, Arc<CertifiedKey>)>,
        device: Option<&str>,
    ) {
        let mut table = Table {
            device: device.map(str::to_owned),
            ..Table::default()
        };
        for (name, key) in certificates {
            match (name, device) {
                (HostName::Device, Some(device)) => table.exact.insert(device.to_owned(), key),
                (HostName::Device, None) => None,
                (HostName::Exact(name), _) => table.exact.insert(name.clone(), key),
                (HostName::Wildcard(parent), _) => table.wildcards.insert(parent.clone(), key),
            };
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// The certificate for a name. Who names none, as one does who connects to an address, or the device's first label alone, is shown
    /// the device's own.
    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let device = table.device.as_deref();
        let own = |name: &str| device.is_some_and(|device| device.split('.').next() == Some(name));
        let name = match name {
            Some(name) if !own(name) => name,
            _ => device?,
        };
        let wildcard = || table.wildcards.get(name.split_once('.')?.1);
        table.exact.get(name).or_else(wildcard).cloned()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) => self.find(Some(&name.to_ascii_lowercase())),
            None => self.find(None),
        }
    }
}

/// The configuration of a device's TLS server.
///
/// # Errors
/// When the system gives no randomness.
pub(super) fn server_config(certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = Version::ALPN.iter().map(|name| name.to_vec()).collect();
    // Tickets instead of a cache: nothing is kept for clients that do not come back.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// Takes whatever certificate a backend shows, as the Go operator does: most are self-signed, and for names inside of the cluster.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tailwharf_tls::provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tailwharf_tls::provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tailwharf_tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn client_config(protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Puts TLS on a connection to a backend. Tells whether the backend speaks HTTP/2 on it, which `http1` rules out.
pub(super) async fn connect_any(tcp: TcpStream, http1: bool) -> io::Result<(Box<dyn Io>, bool)> {
    static CONFIGS: [OnceLock<Result<Arc<ClientConfig>, rustls::Error>>; 2] = [const { OnceLock::new() }; 2];
    let protocols = if http1 {
        &Version::ALPN[1..]
    } else {
        &Version::ALPN[..]
    };
    let config = CONFIGS[usize::from(http1)]
        .get_or_init(|| client_config(protocols))
        .clone()
        .map_err(io::Error::other)?;
    let name = ServerName::from(tcp.peer_addr()?.ip());
    let stream = tailwharf_tls::connect(tcp, config, name).await?;
    let version2 = Version::of_alpn(stream.alpn()) == Version::Http2;
    Ok((Box::new(stream), version2))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::certificates::Loaded;
    use crate::certificates::tests::certificate;

    fn key(names: &[&str]) -> Arc<CertifiedKey> {
        let (chain, key) = certificate(names);
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        Loaded::read(chain.as_bytes(), key.as_bytes(), names[0], now)
            .unwrap()
            .key
    }

    #[test]
    fn certificates_are_found_by_name() {
        let certificates = Certificates::default();
        let hosts: Vec<HostName> = ["@", "a.example.com", "*.example.com"]
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        let keys = [
            key(&["web.tail1.ts.net"]),
            key(&["a.example.com"]),
            key(&["*.example.com"]),
        ];
        certificates.set(hosts.iter().zip(keys.iter().cloned()), Some("web.tail1.ts.net"));
        let found = |name: Option<&str>| {
            let found = certificates.find(name)?;
            keys.iter().position(|key| Arc::ptr_eq(key, &found))
        };
        assert_eq!(found(Some("web.tail1.ts.net")), Some(0));
        assert_eq!((found(Some("web")), found(None)), (Some(0), Some(0)));
        assert_eq!(found(Some("a.example.com")), Some(1));
        assert_eq!(found(Some("b.example.com")), Some(2));
        assert_eq!(
            (found(Some("x.b.example.com")), found(Some("other"))),
            (None, None)
        );
    }
}
