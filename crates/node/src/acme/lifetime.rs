//! What a certificate says of its own time and its authority, and when it is to be renewed.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::RenewalWindow;

/// When a certificate is good, and by which its authority knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lifetime {
    /// From when it is good.
    pub begins: Timestamp,
    /// Until when it is good.
    pub expires: Timestamp,
    /// By which its authority knows it for renewal information (RFC 9773, 4.1).
    pub renewal_id: Option<String>,
    /// Where in the time that its authority suggests it is renewed, from 0 to 1: spreads the certificates of many.
    share: f64,
}

impl Lifetime {
    /// Reads it from the certificate itself, the first of a chain; `None` when it is no X.509 certificate.
    #[must_use]
    pub fn read(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let validity = certificate.validity();
        let last = certificate.raw_serial().last().copied().unwrap_or_default();
        Some(Self {
            begins: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
            expires: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
            renewal_id: renewal_id(&certificate),
            share: f64::from(last) / 256.0,
        })
    }

    /// When to renew: at a moment of the time that the authority suggests, at the latest when two thirds of its life are over.
    #[must_use]
    pub fn renew_at(&self, window: Option<RenewalWindow>) -> Timestamp {
        let own = between(self.begins, self.expires, 2.0 / 3.0);
        window.map_or(own, |window| {
            between(window.start, window.end, self.share).min(own)
        })
    }
}

/// The moment at which `share` of a time is over.
fn between(start: Timestamp, end: Timestamp, share: f64) -> Timestamp {
    let length = Duration::from_secs(u64::try_from(end.as_second() - start.as_second()).unwrap_or(0));
    start.saturating_add(length.mul_f64(share)).unwrap_or(end)
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

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_authority_may_want_it_sooner_and_not_later() {
        let lifetime = Lifetime {
            begins: at("2026-01-01T00:00:00Z"),
            expires: at("2026-03-31T00:00:00Z"),
            renewal_id: None,
            share: 0.25,
        };
        let window = |start, end| {
            Some(RenewalWindow {
                start: at(start),
                end: at(end),
            })
        };
        assert_eq!(lifetime.renew_at(None), at("2026-03-01T08:00:00Z"));
        let sooner = window("2026-02-01T00:00:00Z", "2026-02-05T00:00:00Z");
        assert_eq!(lifetime.renew_at(sooner), at("2026-02-02T00:00:00Z"));
        let later = window("2026-03-29T00:00:00Z", "2026-03-30T00:00:00Z");
        assert_eq!(lifetime.renew_at(later), at("2026-03-01T08:00:00Z"));
        let backwards = window("2026-02-03T00:00:00Z", "2026-02-01T00:00:00Z");
        assert_eq!(lifetime.renew_at(backwards), at("2026-02-03T00:00:00Z"));
    }

    #[test]
    fn a_certificate_tells_its_time_and_anything_else_nothing() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 3, 31);
        params.serial_number = Some(vec![1, 64].into());
        let lifetime = Lifetime::read(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(lifetime.begins, at("2026-01-01T00:00:00Z"));
        assert_eq!(lifetime.expires, at("2026-03-31T00:00:00Z"));
        assert!((lifetime.share - 0.25).abs() < f64::EPSILON);
        assert_eq!(
            Lifetime::read(&CertificateDer::from(vec![0x30, 3, 1, 1, 1])),
            None
        );
    }
}
