//! The certificate in the data directory.

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tailwharf_node::acme::Lifetime;

/// The lifetime of a certificate that the coordinator can be started with, be it expired; `None` if there are not both chain and key, or it is for another
/// name.
pub(super) fn read(pem: &[u8], name: &str) -> Option<Lifetime> {
    PrivateKeyDer::from_pem_slice(pem).ok()?;
    let leaf = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
    let server = ServerName::try_from(name).ok()?;
    verify_server_name(&ParsedCertificate::try_from(&leaf).ok()?, &server).ok()?;
    Lifetime::read(&leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_key_or_for_another_name_is_none() {
        let made = rcgen::generate_simple_self_signed(vec!["hub.example.com".to_owned()]).unwrap();
        let (key, chain) = (made.signing_key.serialize_pem(), made.cert.pem());
        let pem = [key.as_str(), &chain].concat();
        assert!(read(pem.as_bytes(), "HUB.example.com").is_some());
        assert_eq!(read(pem.as_bytes(), "other.example.com"), None);
        assert_eq!(read(chain.as_bytes(), "hub.example.com"), None);
        assert_eq!(read(key.as_bytes(), "hub.example.com"), None);
        assert_eq!(read(b"", "hub.example.com"), None);
    }
}
