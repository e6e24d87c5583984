//! Seals: a signature over a recording that is complete, so that what was changed, cut or put in another one's place afterwards shows.
//!
//! The seal of `NAME.cast` is `NAME.seal` beside it. Whoever has the key can seal anything: keep it where those who can write the recordings cannot read it.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What seals are called.
pub(crate) const ENDING: &str = "seal";
/// Longest seal.
const MAX_LEN: u64 = 4096;

/// The key of seals cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Its file cannot be read or written.
    #[error("the key of seals in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no Ed25519 key in PKCS #8; remove it to get a new one", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// A public key is none.
    #[error("{0:?} is no key of seals; it is 64 hexadecimal digits, which the recorder tells when it starts")]
    Public(String),
}

/// The key with which recordings are sealed.
#[derive(Debug)]
pub struct SealKey(Ed25519KeyPair);

impl SealKey {
    /// Reads the key from a file, or makes one there.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File {
            path: path.to_owned(),
            source,
        };
        let content = || KeyError::Content {
            path: path.to_owned(),
        };
        let document = match fs::read(path) {
            Ok(document) => document,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| content())?;
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(failed)?;
                file.write_all(document.as_ref()).map_err(failed)?;
                document.as_ref().to_vec()
            }
            Err(error) => return Err(failed(error)),
        };
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&document).map_err(|_| content())?;
        Ok(Self(pair))
    }

    /// The part that tells seals of this key from others.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key().as_ref().to_vec())
    }

    /// Seals what a recording holds.
    pub(crate) fn seal(
        &self,
        recording: &str,
        bytes: u64,
        digest: Sha256,
        ended: jiff::Timestamp,
    ) -> Vec<u8> {
        let mut seal = Seal {
            version: 1,
            recording: recording.to_owned(),
            bytes,
            sha256: hex::encode(digest.finalize()),
            ended: ended.to_string(),
            signature: String::new(),
        };
        seal.signature = hex::encode(self.0.sign(seal.signed().as_bytes()));
        // Serialization of these types cannot fail.
        serde_json::to_vec(&seal).unwrap_or_default()
    }
}

/// A key by which seals are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl std::str::FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match hex::decode(text) {
            Ok(bytes) if bytes.len() == 32 => Ok(Self(bytes)),
            _ => Err(KeyError::Public(text.to_owned())),
        }
    }
}

/// What is beside a recording.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    version: u8,
    recording: String,
    bytes: u64,
    sha256: String,
    ended: String,
    #[serde(default)]
    signature: String,
}

impl Seal {
    /// What is signed. No field but the last may have a line feed in it, so that two seals are never the same text.
    fn signed(&self) -> String {
        format!(
            "tailwharf recording {}\n{}\n{}\n{}\n{}",
            self.version, self.bytes, self.sha256, self.recording, self.ended
        )
    }
}

/// What a seal says of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is what was recorded.
    Whole,
    /// It has no seal: it is under way, or its recorder ended before it did.
    Unsealed,
    /// The seal is by another key, or for another recording, or was changed.
    Forged,
    /// It is not what was sealed.
    Changed,
}

impl Verdict {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Unsealed => "not sealed: it is under way, or its recorder ended before it did",
            Self::Forged => "its seal is by another key, is that of another recording, or was changed",
            Self::Changed => "changed after it was sealed",
        }
    }
}

/// Compares a recording with its seal.
///
/// # Errors
/// When the recording cannot be read.
pub(crate) fn verify(path: &Path, name: &str, key: &PublicKey) -> std::io::Result<Verdict> {
    let mut text = Vec::new();
    match fs::File::open(path.with_extension(ENDING)) {
        Ok(file) => {
            file.take(MAX_LEN).read_to_end(&mut text)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Verdict::Unsealed),
        Err(error) => return Err(error),
    }
    let Ok(seal) = serde_json::from_slice::<Seal>(&text) else {
        return Ok(Verdict::Forged);
    };
    let signature = hex::decode(&seal.signature).unwrap_or_default();
    let signed = UnparsedPublicKey::new(&ED25519, &key.0).verify(seal.signed().as_bytes(), &signature);
    if signed.is_err() || seal.recording != name {
        return Ok(Verdict::Forged);
    }
    let mut file = fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            break;
        }
        bytes += length as u64;
        digest.update(&piece[..length]);
    }
    let same = bytes == seal.bytes && hex::encode(digest.finalize()) == seal.sha256;
    Ok(if same { Verdict::Whole } else { Verdict::Changed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Store};

    const HEADER: &[u8] = b"{\"version\":2,\"width\":80,\"height\":24}\n";

    struct Place {
        dir: tempfile::TempDir,
        store: Store,
        key: PublicKey,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let key = SealKey::open(&dir.path().join("key")).unwrap();
            let public = key.public();
            let store = Store::open(&dir.path().join("recordings"), Limits::default()).unwrap();
            Self {
                dir,
                store: store.sealing(key),
                key: public,
            }
        }

        /// A recording of these lines; its name.
        fn record(&self, lines: &[&str], sealed: bool) -> String {
            let known = self.store.list().unwrap();
            let mut writing = self.store.begin(HEADER).unwrap();
            for line in lines {
                writing.write(line.as_bytes()).unwrap();
            }
            if sealed {
                writing.seal().unwrap();
            }
            let mut entries = self.store.list().unwrap();
            entries.retain(|entry| !known.contains(entry));
            entries.remove(0).name
        }

        fn file(&self, name: &str, ending: &str) -> PathBuf {
            self.dir
                .path()
                .join("recordings")
                .join(format!("{name}.{ending}"))
        }

        fn verdict(&self, name: &str) -> Verdict {
            self.store.verify(name, &self.key).unwrap()
        }
    }

    const LINES: [&str; 3] = [
        "[1.0,\"o\",\"a\"]\n",
        "[2.0,\"o\",\"b\"]\n",
        "[3.0,\"o\",\"c\"]\n",
    ];

    #[test]
    fn r_11_what_is_changed_cut_reordered_or_swapped_shows() {
        let place = Place::new();
        let name = place.record(&LINES, true);
        assert_eq!(place.verdict(&name), Verdict::Whole);
        assert_eq!(place.verdict(&format!("{name}.cast")), Verdict::Whole);
        let whole = fs::read(place.file(&name, "cast")).unwrap();
        let text = String::from_utf8(whole.clone()).unwrap();
        let swapped = [std::str::from_utf8(HEADER).unwrap(), LINES[1], LINES[0], LINES[2]].concat();
        for changed in [
            text.replace("\"b\"", "\"x\""),
            text.replace(LINES[2], ""),
            text.replace(LINES[1], ""),
            swapped,
            format!("{text}[4.0,\"o\",\"d\"]\n"),
            String::new(),
        ] {
            fs::write(place.file(&name, "cast"), changed).unwrap();
            assert_eq!(place.verdict(&name), Verdict::Changed);
        }
        fs::write(place.file(&name, "cast"), &whole).unwrap();
        assert_eq!(place.verdict(&name), Verdict::Whole);
        // One recording in the place of another, with its own seal.
        let other = place.record(&LINES[..1], true);
        for ending in ["cast", "seal"] {
            fs::copy(place.file(&other, ending), place.file(&name, ending)).unwrap();
        }
        assert_eq!(place.verdict(&name), Verdict::Forged);
    }

    #[test]
    fn r_11_a_seal_is_of_one_key_and_only_for_what_is_complete() {
        let place = Place::new();
        assert_eq!(place.verdict(&place.record(&LINES, false)), Verdict::Unsealed);
        let name = place.record(&LINES, true);
        let stranger = SealKey::open(&place.dir.path().join("other")).unwrap();
        assert_eq!(
            place.store.verify(&name, &stranger.public()).unwrap(),
            Verdict::Forged
        );
        let seal = fs::read_to_string(place.file(&name, "seal")).unwrap();
        let bytes = fs::metadata(place.file(&name, "cast")).unwrap().len();
        for forged in [
            seal.replace(&bytes.to_string(), "12"),
            "{}".to_owned(),
            "x".to_owned(),
        ] {
            fs::write(place.file(&name, "seal"), forged).unwrap();
            assert_eq!(place.verdict(&name), Verdict::Forged);
        }
        let again = SealKey::open(&place.dir.path().join("key")).unwrap();
        assert_eq!(again.public(), place.key, "the key is kept");
        assert_eq!(
            again.public().to_string().parse::<PublicKey>().unwrap(),
            place.key
        );
        assert!("12".parse::<PublicKey>().is_err());
        fs::write(place.dir.path().join("other"), "no key").unwrap();
        assert!(SealKey::open(&place.dir.path().join("other")).is_err());
    }
}
