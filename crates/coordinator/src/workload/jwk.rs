//! The keys that an issuer publishes: JWK sets (RFC 7517).

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

/// Keys of one issuer that are looked at. Clusters have one or two.
const KEY_LIMIT: usize = 32;

/// How a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rs256,
    Es256,
    Es384,
}

impl Algorithm {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "ES384" => Some(Self::Es384),
            _ => None,
        }
    }
}

/// One public key. Its kind fixes the algorithm: what a token says about that is compared, never followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    id: Option<String>,
    material: Material,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    /// An uncompressed point.
    P384(Vec<u8>),
}

/// The keys of an issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeySet(Vec<Key>);

#[derive(Deserialize)]
struct SetText {
    keys: Vec<KeyText>,
}

#[derive(Deserialize)]
struct KeyText {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

impl KeySet {
    /// Reads a JWK set. Keys of kinds that are not known are left out, as RFC 7517 (section 5) asks.
    ///
    /// # Errors
    /// What is wrong with the text, if it is not a JWK set.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let text: SetText = serde_json::from_slice(json)?;
        let keys = text.keys.into_iter().take(KEY_LIMIT);
        Ok(Self(keys.filter_map(Key::read).collect()))
    }

    /// Whether a key has this id.
    pub(crate) fn has(&self, id: Option<&str>) -> bool {
        self.0.iter().any(|key| id.is_none() || key.id.as_deref() == id)
    }

    /// The keys by which a token with this key id and algorithm can be signed.
    pub(crate) fn candidates<'s>(
        &'s self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'s Key> {
        self.0
            .iter()
            .filter(move |key| (id.is_none() || key.id.as_deref() == id) && key.algorithm() == algorithm)
    }
}

impl Key {
    fn read(text: KeyText) -> Option<Self> {
        if text.usage.is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |field: &str| BASE64_URL_SAFE_NO_PAD.decode(field.trim_end_matches('=')).ok();
        let point = |length: usize| {
            let (x, y) = (bytes(&text.x)?, bytes(&text.y)?);
            (x.len() == length && y.len() == length).then(|| [vec![4], x, y].concat())
        };
        let material = match (text.kty.as_str(), text.crv.as_str()) {
            ("RSA", _) => Material::Rsa {
                modulus: bytes(&text.n)?,
                exponent: bytes(&text.e)?,
            },
            ("EC", "P-256") => Material::P256(point(32)?),
            ("EC", "P-384") => Material::P384(point(48)?),
            _ => return None,
        };
        Some(Self {
            id: text.kid,
            material,
        })
    }

    fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::P256(_) => Algorithm::Es256,
            Material::P384(_) => Algorithm::Es384,
        }
    }

    /// Whether the key made the signature.
    pub(crate) fn verifies(&self, message: &[u8], by: &[u8]) -> bool {
        match &self.material {
            Material::Rsa { modulus, exponent } => RsaPublicKeyComponents {
                n: modulus,
                e: exponent,
            }
            .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, by)
            .is_ok(),
            Material::P256(point) => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                .verify(message, by)
                .is_ok(),
            Material::P384(point) => UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                .verify(message, by)
                .is_ok(),
        }
    }
}
