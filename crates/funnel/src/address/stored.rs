//! The certificate in the data directory: what it says of itself.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tailwharf_node::acme::RenewalWindow;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A certificate that the coordinator can be started with, be it expired.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    begins: Timestamp,
    expires: Timestamp,
    /// By which its authority knows it (RFC 9773, 4.1).
    pub(super) renewal_id: Option<String>,
}

impl Stored {
    /// Reads a chain and its key; `None` if there are not both, or the certificate is for another name.
    pub(super) fn read(pem: &[u8], name: &str) -> Option<Self> {
        PrivateKeyDer::from_pem_slice(pem).ok()?;
        let leaf = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
        let (_, certificate) = X509Certificate::from_der(&leaf).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let is_ours = |general: &GeneralName<'_>| matches!(general, GeneralName::DNSName(dns) if dns.eq_ignore_ascii_case(name));
        if !names.value.general_names.iter().any(is_ours) {
            return None;
        }
        let validity = certificate.validity();
        Some(Self {
            begins: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
            expires: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
            renewal_id: renewal_id(&certificate),
        })
    }

    /// When to renew: in the middle of the time that the authority suggests, at the latest when two thirds of its life are over.
    pub(super) fn renew_at(&self, window: Option<RenewalWindow>) -> Timestamp {
        let own = between(self.begins, self.expires, 2, 3);
        window.map_or(own, |window| between(window.start, window.end, 1, 2).min(own))
    }
}

/// The moment at which so many parts of a time are over.
fn between(start: Timestamp, end: Timestamp, parts: i64, of: i64) -> Timestamp {
    let seconds = start.as_second() + (end.as_second() - start.as_second()) / of * parts;
    Timestamp::from_second(seconds).unwrap_or(end)
}

fn renewal_id(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut extensions = certificate.extensions().iter();
    let authority = extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
        _ => None,
    })?;
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    Some([encode(authority.0), encode(certificate.raw_serial())].join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> String {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        format!("{}{}", made.signing_key.serialize_pem(), made.cert.pem())
    }

    #[test]
    fn a_file_without_key_or_for_another_name_is_none() {
        let pem = made("hub.example.com");
        assert!(Stored::read(pem.as_bytes(), "HUB.example.com").is_some());
        assert_eq!(Stored::read(pem.as_bytes(), "other.example.com"), None);
        let (_, chain) = pem.split_once("-----END PRIVATE KEY-----\n").unwrap();
        assert_eq!(Stored::read(chain.as_bytes(), "hub.example.com"), None);
        assert_eq!(Stored::read(b"", "hub.example.com"), None);
    }

    #[test]
    fn the_authority_may_want_it_sooner_and_not_later() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let stored = Stored {
            begins: at("2026-01-01T00:00:00Z"),
            expires: at("2026-03-31T00:00:00Z"),
            renewal_id: None,
        };
        let window = |start, end| {
            Some(RenewalWindow {
                start: at(start),
                end: at(end),
            })
        };
        assert_eq!(stored.renew_at(None), at("2026-03-01T08:00:00Z"));
        let sooner = window("2026-02-01T00:00:00Z", "2026-02-03T00:00:00Z");
        assert_eq!(stored.renew_at(sooner), at("2026-02-02T00:00:00Z"));
        let later = window("2026-03-29T00:00:00Z", "2026-03-30T00:00:00Z");
        assert_eq!(stored.renew_at(later), at("2026-03-01T08:00:00Z"));
    }
}
