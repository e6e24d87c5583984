//! Credentials: how they are made, written, hashed and compared.
//!
//! The text form is `tskey-<kind>-<id>-<secret>`, which is what official clients and tools recognise. The id is public; of the secret only the
//! SHA-256 hash is kept, which is enough for 32 random characters.

use std::fmt;

use rand::{Rng, distributions::Alphanumeric};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::model::CredentialId;

const ID_LENGTH: usize = 12;
const SECRET_LENGTH: usize = 32;

/// What a credential is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// Lets a node join.
    Auth,
    /// The secret of an OAuth client.
    Client,
    /// A token of the API.
    Api,
}

impl CredentialKind {
    fn word(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Client => "client",
            Self::Api => "api",
        }
    }
}

/// The full text of a credential. Shown once, to whom it was made for; never printed by `Debug`, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text, for the one answer that carries it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// SHA-256 of the secret part of a credential, as 64 hex digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(String);

impl SecretHash {
    fn of(secret: &str) -> Self {
        Self(hex::encode(Sha256::digest(secret.as_bytes())))
    }

    /// Whether `secret` is the one that was hashed. Hashes of equal length are compared, so that time tells nothing about the secret.
    pub fn matches(&self, secret: &str) -> bool {
        *self == Self::of(secret)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// A credential, split into its parts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Presented<'a> {
    /// The public part.
    pub id: &'a str,
    /// The secret part.
    pub secret: &'a str,
}

/// Makes a credential: its id, the full text and the hash to keep.
pub fn mint(kind: CredentialKind, rng: &mut impl Rng) -> (CredentialId, Secret, SecretHash) {
    let id = format!("k{}CNTRL", random_text(ID_LENGTH, rng));
    let secret = Zeroizing::new(random_text(SECRET_LENGTH, rng));
    let text = format!("tskey-{}-{id}-{}", kind.word(), *secret);
    (
        CredentialId::from(id.as_str()),
        Secret(Zeroizing::new(text)),
        SecretHash::of(&secret),
    )
}

/// Splits the text of a credential of the given kind; `None` when it has not that form. Parameters behind `?`, which official clients allow
/// behind an auth key, are ignored.
pub fn parse(kind: CredentialKind, text: &str) -> Option<Presented<'_>> {
    let text = text.split_once('?').map_or(text, |(before, _)| before);
    let rest = text
        .strip_prefix("tskey-")?
        .strip_prefix(kind.word())?
        .strip_prefix('-')?;
    let (id, secret) = rest.split_once('-')?;
    (!id.is_empty() && !secret.is_empty()).then_some(Presented { id, secret })
}

/// `length` random letters and digits.
pub(crate) fn random_text(length: usize, rng: &mut impl Rng) -> String {
    rng.sample_iter(Alphanumeric)
        .take(length)
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn what_is_minted_is_parsed_and_matches_only_its_own_secret() {
        let mut rng = StdRng::seed_from_u64(1);
        let (id, secret, hash) = mint(CredentialKind::Auth, &mut rng);
        let (_, other, _) = mint(CredentialKind::Auth, &mut rng);
        let presented = parse(CredentialKind::Auth, secret.reveal()).unwrap();
        assert_eq!(presented.id, &*id.0);
        assert!(hash.matches(presented.secret));
        assert!(!hash.matches(parse(CredentialKind::Auth, other.reveal()).unwrap().secret));
    }

    #[test]
    fn other_kinds_and_other_texts_are_not_parsed() {
        let (_, secret, _) = mint(CredentialKind::Api, &mut StdRng::seed_from_u64(2));
        assert!(parse(CredentialKind::Auth, secret.reveal()).is_none());
        for text in [
            "",
            "tskey",
            "tskey-auth-",
            "tskey-auth-abc",
            "tskey-auth--x",
            "tskey-auth-x-",
        ] {
            assert!(parse(CredentialKind::Auth, text).is_none(), "{text}");
        }
    }

    #[test]
    fn debug_hides_secrets() {
        let (_, secret, hash) = mint(CredentialKind::Auth, &mut StdRng::seed_from_u64(3));
        assert_eq!(format!("{secret:?} {hash:?}"), "Secret(…) SecretHash(…)");
    }
}
