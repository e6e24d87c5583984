//! The root key, and what it signs.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    CrlDistributionPoint, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PublicKeyData, RevocationReason, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::book::Revoked;
use crate::jws::Jwk;
use crate::orders::Name;
use crate::problem::{Kind, Problem};
use crate::{CaError, file};

const FILE_NAME: &str = "ca.json";
const DAY: u64 = 24 * 60 * 60;
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * DAY);
const LEAF_LIFE: Duration = Duration::from_secs(90 * DAY);
/// Clients are to renew when a third of the life is left, within two days.
const RENEW_BEFORE_END: Duration = Duration::from_secs(30 * DAY);
const RENEWAL_WINDOW: Duration = Duration::from_secs(2 * DAY);
/// A client's clock may be behind.
const BACKDATED: Duration = Duration::from_secs(60 * 60);
const CRL_LIFE: Duration = Duration::from_secs(7 * DAY);

/// Random bytes of a serial number.
pub(crate) const SERIAL_RANDOM: usize = 10;

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    suffix: String,
    #[serde(default)]
    short_names: bool,
    certificate: String,
    key: String,
}

/// The root. Its certificate is constrained to the tailnet's names, so that whoever trusts it trusts it for nothing else; but for one that certifies
/// short names, too, since no constraint can say "names without a dot".
pub(crate) struct Authority {
    suffix: String,
    short_names: bool,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    key_id: Vec<u8>,
}

impl Authority {
    /// Loads the root, or makes one for the names below `suffix`, and with `short_names` for their first labels. Blocks on files.
    pub(crate) fn load_or_create(
        data_dir: &Path,
        suffix: &str,
        short_names: bool,
        now: Timestamp,
    ) -> Result<Self, CaError> {
        let path = data_dir.join(FILE_NAME);
        let stored: Option<Stored> = file::read(&path)?;
        let stored = match stored {
            Some(stored) if stored.suffix == suffix && stored.short_names == short_names => stored,
            _ => {
                let stored = create(suffix, short_names, now).map_err(CaError::Root)?;
                file::write(&path, &stored)?;
                stored
            }
        };
        let decode = |text: &str| {
            BASE64_STANDARD
                .decode(text)
                .map_err(|_| CaError::Root(rcgen::Error::CouldNotParseCertificate))
        };
        let certificate = CertificateDer::from(decode(&stored.certificate)?);
        let der = PrivatePkcs8KeyDer::from(decode(&stored.key)?);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(CaError::Root)?;
        let key_id = CertificateParams::default().key_identifier(&key);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Root)?;
        Ok(Self {
            suffix: stored.suffix,
            short_names,
            certificate,
            issuer,
            key_id,
        })
    }

    /// The root certificate, to install where it is to be trusted.
    pub(crate) fn root_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// Signs a request that asks for exactly `names`; the chain as PEM, the root last. Who has a name has its short form, too, which is added.
    pub(crate) fn issue<'a>(
        &self,
        request: &[u8],
        names: impl Iterator<Item = &'a Name>,
        account: &Jwk,
        crl: String,
        random: [u8; SERIAL_RANDOM],
        now: Timestamp,
    ) -> Result<String, Problem> {
        let bad = |what: String| Problem::new(Kind::BadCsr, what);
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|error| bad(format!("the certificate request cannot be read: {error}")))?;
        let mut wanted: Vec<String> = names.map(Name::text).collect();
        let mut asked = Vec::new();
        for name in &request.params.subject_alt_names {
            match name {
                SanType::DnsName(name) => asked.push(name.as_str().to_ascii_lowercase()),
                _ => {
                    return Err(bad(
                        "the certificate request has a name that is not a DNS name".to_owned()
                    ));
                }
            }
        }
        wanted.sort();
        asked.sort();
        asked.dedup();
        if wanted != asked {
            return Err(bad(format!(
                "the certificate request is for {asked:?}, the order for {wanted:?}"
            )));
        }
        if account
            .point()?
            .is_some_and(|point| point == request.public_key.der_bytes())
        {
            return Err(bad(
                "the certificate's key is the account's: make another".to_owned()
            ));
        }
        let not_after = seconds(now) + LEAF_LIFE.as_secs();
        let short = wanted.iter().filter_map(|name| self.short(name));
        let certified: Vec<String> = wanted.iter().cloned().chain(short).collect();
        let mut params = CertificateParams::new(certified).map_err(|error| bad(error.to_string()))?;
        if let Some(first) = wanted.iter().find(|name| name.len() <= 64) {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, first.as_str());
        }
        params.serial_number = Some(SerialNumber::from_slice(&serial(not_after, random)));
        params.not_before = date(seconds(now).saturating_sub(BACKDATED.as_secs()));
        params.not_after = date(not_after);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![crl] }];
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|error| {
                tracing::error!(%error, "a certificate could not be signed");
                Problem::internal()
            })?;
        Ok(certificate.pem() + &self.root_pem())
    }

    /// The name by which devices of the tailnet ask for `name` beside it, if that is to be certified.
    fn short(&self, name: &str) -> Option<String> {
        let label = name.strip_suffix(&self.suffix)?.strip_suffix('.')?;
        (self.short_names && !label.contains('.')).then(|| label.to_owned())
    }

    /// What a certificate of ours says; the problem says why it is none.
    pub(crate) fn read(&self, certificate: &[u8]) -> Result<Issued, Problem> {
        let not_ours = || Problem::malformed("this is not a certificate of this authority");
        let (_, root) =
            x509_parser::parse_x509_certificate(&self.certificate).map_err(|_| Problem::internal())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| not_ours())?;
        parsed
            .verify_signature(Some(root.public_key()))
            .map_err(|_| not_ours())?;
        let serial = parsed.raw_serial().to_vec();
        Ok(Issued {
            ends: end_of(&serial).ok_or_else(not_ours)?,
            key: parsed.public_key().subject_public_key.data.to_vec(),
            serial,
        })
    }

    /// When a certificate is to be renewed (RFC 9773), by its ARI identifier.
    pub(crate) fn renewal_window(
        &self,
        id: &str,
        revoked: &[Revoked],
    ) -> Result<(Timestamp, Timestamp), Problem> {
        let unknown = || Problem::not_found("certificate");
        let (authority, serial) = id.split_once('.').ok_or_else(unknown)?;
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| unknown());
        let serial = decode(serial)?;
        if decode(authority)? != self.key_id {
            return Err(unknown());
        }
        if let Some(revoked) = revoked.iter().find(|revoked| revoked.serial == serial) {
            let before = revoked
                .at
                .saturating_sub(RENEWAL_WINDOW)
                .unwrap_or(Timestamp::UNIX_EPOCH);
            return Ok((before, revoked.at));
        }
        let ends = end_of(&serial).ok_or_else(unknown)?;
        let start = ends.saturating_sub(RENEW_BEFORE_END).map_err(|_| unknown())?;
        Ok((
            start,
            start.saturating_add(RENEWAL_WINDOW).map_err(|_| unknown())?,
        ))
    }

    /// The list of revoked certificates, DER.
    pub(crate) fn revocations(&self, revoked: &[Revoked], now: Timestamp) -> Result<Vec<u8>, rcgen::Error> {
        let entry = |revoked: &Revoked| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&revoked.serial),
            revocation_time: date(seconds(revoked.at)),
            reason_code: reason(revoked.reason)
                .filter(|reason| !matches!(reason, RevocationReason::Unspecified)),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date(seconds(now)),
            next_update: date(seconds(now) + CRL_LIFE.as_secs()),
            crl_number: SerialNumber::from(seconds(now)),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.der().to_vec())
    }
}

/// What matters of a certificate that this authority signed.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) serial: Vec<u8>,
    pub(crate) ends: Timestamp,
    /// The bytes of its public key.
    pub(crate) key: Vec<u8>,
}

/// The reason of a revocation (RFC 5280, section 5.3.1); `None` for numbers that a client may not give.
pub(crate) const fn reason(number: u8) -> Option<RevocationReason> {
    Some(match number {
        0 => RevocationReason::Unspecified,
        1 => RevocationReason::KeyCompromise,
        3 => RevocationReason::AffiliationChanged,
        4 => RevocationReason::Superseded,
        5 => RevocationReason::CessationOfOperation,
        9 => RevocationReason::PrivilegeWithdrawn,
        _ => return None,
    })
}

fn create(suffix: &str, short_names: bool, now: Timestamp) -> Result<Stored, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Private CA of {suffix}"));
    params.not_before = date(seconds(now).saturating_sub(BACKDATED.as_secs()));
    params.not_after = date(seconds(now) + ROOT_LIFE.as_secs());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = (!short_names).then(|| NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(suffix.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let certificate = params.self_signed(&key)?;
    Ok(Stored {
        suffix: suffix.to_owned(),
        short_names,
        certificate: BASE64_STANDARD.encode(certificate.der()),
        key: BASE64_STANDARD.encode(key.serialize_der()),
    })
}

/// A serial number that tells when its certificate ends, so that no list of certificates is needed to say when to renew.
fn serial(not_after: u64, random: [u8; SERIAL_RANDOM]) -> [u8; 6 + SERIAL_RANDOM] {
    let mut serial = [1; 6 + SERIAL_RANDOM];
    serial[1..6].copy_from_slice(&not_after.to_be_bytes()[3..]);
    serial[6..].copy_from_slice(&random);
    serial
}

/// When the certificate with this serial number ends, if it is one of ours.
fn end_of(serial: &[u8]) -> Option<Timestamp> {
    let [1, end @ ..] = serial else { return None };
    if end.len() != 5 + SERIAL_RANDOM {
        return None;
    }
    let seconds = end
        .get(..5)?
        .iter()
        .fold(0, |sum, byte| sum << 8 | i64::from(*byte));
    Timestamp::from_second(seconds).ok()
}

fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or(0)
}

fn date(seconds: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}
