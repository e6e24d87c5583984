//! The relay's key and its self-signed certificate. Both are kept in one file of the data directory, so that they stay the
//! same over restarts: clients know the key and pin the certificate.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rand::rngs::OsRng;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tailwharf_wire::key::NodePrivate;

const FILE_NAME: &str = "relay.json";
/// A certificate is valid for this many years. It is pinned, so there is nothing to be won by a short life.
const VALID_YEARS: i32 = 10;
/// A certificate that ends sooner is replaced at the start: no process is to live longer than its certificate.
const LEAST_VALID_DAYS: i32 = 365;

/// Why the relay has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is damaged.
    #[error("{path} is damaged; restore it, or remove it to give the relay a new key")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No certificate can be made for the host name.
    #[error("cannot make a certificate for the host name {hostname:?}; use a DNS name or an IP address")]
    Certificate {
        /// The host name.
        hostname: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// The relay's key and certificate.
pub(crate) struct Identity {
    pub(crate) key: NodePrivate,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) certificate_key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Loads the identity from `data_dir`, or makes what is missing of it and stores that.
    ///
    /// The key stays for ever. The certificate is made anew when `hostname` is not the one that it names, or when it ends
    /// within a year. Blocks on files.
    pub(crate) fn load_or_create(data_dir: &Path, hostname: &str) -> Result<Self, IdentityError> {
        let path = data_dir.join(FILE_NAME);
        let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let stored = Stored::read(&path)?;
        let stored = match stored {
            Some(stored) if stored.certificate.fits(hostname, today) => stored,
            older => {
                let key = older.map_or_else(|| NodePrivate::generate(&mut OsRng), |stored| stored.key);
                let stored = Stored {
                    key,
                    certificate: StoredCertificate::create(hostname, today)?,
                };
                stored.write(&path)?;
                stored
            }
        };
        Ok(Self {
            key: stored.key,
            certificate: CertificateDer::from(stored.certificate.der),
            certificate_key: PrivatePkcs8KeyDer::from(stored.certificate.key).into(),
        })
    }

    /// The certificate in the form in which a DERP map pins it.
    pub(crate) fn pin(&self) -> String {
        let hash = digest(&SHA256, &self.certificate);
        hash.as_ref()
            .iter()
            .fold("sha256-raw:".to_owned(), |pin, byte| format!("{pin}{byte:02x}"))
    }
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    key: NodePrivate,
    certificate: StoredCertificate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCertificate {
    hostname: String,
    not_after: Date,
    #[serde(with = "der")]
    der: Vec<u8>,
    #[serde(with = "der")]
    key: Vec<u8>,
}

impl Stored {
    fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(IdentityError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| IdentityError::Damaged {
                path: path.to_owned(),
                source,
            })
    }

    /// Replaces the file as a whole: after a crash, either the old or the new content is there.
    fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |source| IdentityError::Write {
            path: path.to_owned(),
            source,
        };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        let new = path.with_extension("json.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        fs::rename(&new, path).map_err(failed)
    }
}

impl StoredCertificate {
    fn create(hostname: &str, today: Date) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Certificate {
            hostname: hostname.to_owned(),
            source,
        };
        // A client's clock may be behind by some hours.
        let not_before = today.saturating_sub(1.day());
        let not_after = today.saturating_add(VALID_YEARS.years());
        let mut params = CertificateParams::new(vec![hostname.to_owned()]).map_err(failed)?;
        let midnight = |date: Date| {
            rcgen::date_time_ymd(
                date.year().into(),
                date.month().unsigned_abs(),
                date.day().unsigned_abs(),
            )
        };
        params.not_before = midnight(not_before);
        params.not_after = midnight(not_after);
        params.distinguished_name.push(DnType::CommonName, hostname);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            hostname: hostname.to_owned(),
            not_after,
            der: certificate.der().to_vec(),
            key: key.serialize_der(),
        })
    }

    fn fits(&self, hostname: &str, today: Date) -> bool {
        self.hostname == hostname && self.not_after > today.saturating_add(LEAST_VALID_DAYS.days())
    }
}

/// The address that `hostname` is, if it is one.
pub(crate) fn as_address(hostname: &str) -> Option<IpAddr> {
    hostname.parse().ok()
}

mod der {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(der: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(der))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn stays_the_same_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path(), "derp.example.com").unwrap();
        let again = Identity::load_or_create(dir.path(), "derp.example.com").unwrap();
        assert_eq!(first.key.public(), again.key.public());
        assert_eq!(first.pin(), again.pin());
        assert_eq!(first.pin().len(), "sha256-raw:".len() + 64);
        let mode = fs::metadata(dir.path().join(FILE_NAME))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_new_host_name_gives_a_new_certificate_and_keeps_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path(), "derp.example.com").unwrap();
        let moved = Identity::load_or_create(dir.path(), "192.0.2.1").unwrap();
        assert_eq!(first.key.public(), moved.key.public());
        assert_ne!(first.pin(), moved.pin());
    }

    #[test]
    fn a_certificate_is_replaced_a_year_before_it_ends() {
        let made = jiff::civil::date(2026, 11, 22);
        let certificate = StoredCertificate::create("h", made).unwrap();
        assert!(certificate.fits("h", made));
        assert!(!certificate.fits("other", made));
        assert!(certificate.fits("h", jiff::civil::date(2035, 11, 20)));
        assert!(!certificate.fits("h", jiff::civil::date(2035, 11, 24)));
    }

    #[test]
    fn a_damaged_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, "{").unwrap();
        let error = Identity::load_or_create(dir.path(), "h").err().unwrap();
        assert!(matches!(error, IdentityError::Damaged { .. }));
        assert_eq!(fs::read(&path).unwrap(), b"{");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = Identity::load_or_create(Path::new("/nonexistent"), "h")
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "cannot write /nonexistent/relay.json");
    }
}
