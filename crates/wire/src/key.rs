//! Keys and their text forms.
//!
//! A key is 32 bytes. Its text form is a prefix that names the kind, and 64 lower-case hex digits. The public key of 32
//! zero bytes stands for "none", and so does an empty string.

use std::fmt;
use std::str::FromStr;

use crypto_box::SalsaBox;
use rand_core::CryptoRngCore;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;

/// Why a text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text begins with something else than the prefix of this kind of key.
    #[error("expected a key that begins with {expected:?}")]
    Prefix {
        /// The prefix that was expected.
        expected: &'static str,
    },
    /// What follows the prefix is not 64 hex digits.
    #[error("expected 64 hex digits after {prefix:?}")]
    Hex {
        /// The prefix before the digits.
        prefix: &'static str,
    },
}

/// The prefix in the text form of every private key.
const PRIVATE_PREFIX: &str = "privkey:";

fn parse(prefix: &'static str, text: &str) -> Result<[u8; KEY_LEN], KeyError> {
    let digits = text
        .strip_prefix(prefix)
        .ok_or(KeyError::Prefix { expected: prefix })?;
    let mut bytes = [0; KEY_LEN];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| KeyError::Hex { prefix })?;
    Ok(bytes)
}

/// Reads a key from a JSON string, borrowed or owned.
struct KeyVisitor<K>(std::marker::PhantomData<K>, &'static str);

impl<K: FromStr<Err = KeyError>> Visitor<'_> for KeyVisitor<K> {
    type Value = K;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key that begins with {:?}", self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<K, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; KEY_LEN]);

        impl $name {
            /// The prefix of the text form.
            pub const PREFIX: &'static str = $prefix;

            /// The key with these bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
                Self(bytes)
            }

            /// The bytes of the key.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
                &self.0
            }

            /// Whether this is the key of zeros, which stands for "none".
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0 == [0; KEY_LEN]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Self::PREFIX)?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                if text.is_empty() {
                    return Ok(Self::default());
                }
                parse(Self::PREFIX, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(KeyVisitor(std::marker::PhantomData, Self::PREFIX))
            }
        }
    };
}

macro_rules! private_key {
    ($(#[$doc:meta])* $name:ident => $public:ident) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; KEY_LEN]);

        impl $name {
            /// A new key from `rng`.
            #[must_use]
            pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
                let mut bytes = [0; KEY_LEN];
                rng.fill_bytes(&mut bytes);
                let key = Self(x25519_dalek::StaticSecret::from(bytes).to_bytes());
                bytes.zeroize();
                key
            }

            /// The key with these bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
                Self(bytes)
            }

            /// The bytes of the key.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
                &self.0
            }

            /// The public key that belongs to this key.
            #[must_use]
            pub fn public(&self) -> $public {
                $public(PublicKey::from(&self.secret()).to_bytes())
            }

            /// The text form, for storage.
            #[must_use]
            pub fn to_text(&self) -> Zeroizing<String> {
                let mut text = Zeroizing::new(String::with_capacity(PRIVATE_PREFIX.len() + 2 * KEY_LEN));
                text.push_str(PRIVATE_PREFIX);
                for byte in self.0 {
                    for nibble in [byte >> 4, byte & 15] {
                        text.push(char::from_digit(nibble.into(), 16).unwrap_or_default());
                    }
                }
                text
            }

            /// This key in the form that X25519 takes.
            pub(crate) fn secret(&self) -> StaticSecret {
                StaticSecret::from(self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}(redacted)", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                parse(PRIVATE_PREFIX, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.to_text())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(KeyVisitor(std::marker::PhantomData, PRIVATE_PREFIX))
            }
        }
    };
}

public_key! {
    /// Identity of a node: its WireGuard static key and its name at a DERP relay.
    NodePublic, "nodekey:"
}
public_key! {
    /// Identity of a machine or of a control server: a Noise static key.
    MachinePublic, "mkey:"
}
public_key! {
    /// Key of path discovery. A node has a new one at each start.
    DiscoPublic, "discokey:"
}
public_key! {
    /// Challenge that a control server sends in the early payload of a Noise connection.
    ChallengePublic, "chalpub:"
}
public_key! {
    /// Key of tailnet lock. Ed25519, unlike all others.
    NlPublic, "nlpub:"
}

private_key! {
    /// The private half of [`NodePublic`].
    NodePrivate => NodePublic
}
private_key! {
    /// The private half of [`MachinePublic`].
    MachinePrivate => MachinePublic
}
private_key! {
    /// The private half of [`DiscoPublic`].
    DiscoPrivate => DiscoPublic
}
private_key! {
    /// The private half of [`ChallengePublic`].
    ChallengePrivate => ChallengePublic
}

impl NodePrivate {
    /// The NaCl box between this node and `peer`, as DERP's handshake uses it. Costs a Diffie-Hellman exchange.
    #[must_use]
    pub fn shared(&self, peer: &NodePublic) -> SharedBox {
        SharedBox::new(&self.0, peer.as_bytes())
    }
}

impl DiscoPrivate {
    /// The NaCl box between this node and `peer`. Costs a Diffie-Hellman exchange: keep it while the peer talks.
    #[must_use]
    pub fn shared(&self, peer: &DiscoPublic) -> SharedBox {
        SharedBox::new(&self.0, peer.as_bytes())
    }
}

/// A NaCl box (X25519, XSalsa20-Poly1305) between two keys.
pub struct SharedBox(SalsaBox);

/// Length of the nonce of a NaCl box.
pub const BOX_NONCE_LEN: usize = 24;
/// Length of the tag of a NaCl box, which stands before the ciphertext.
pub const BOX_TAG_LEN: usize = 16;

/// A box that was not sealed with these keys and this nonce, or that was changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("box does not open with this key")]
pub struct BoxError;

impl SharedBox {
    fn new(own: &[u8; KEY_LEN], peer: &[u8; KEY_LEN]) -> Self {
        Self(SalsaBox::new(
            &crypto_box::PublicKey::from(*peer),
            &crypto_box::SecretKey::from(*own),
        ))
    }

    /// Encrypts `message` in place and returns the tag.
    ///
    /// # Errors
    /// When `message` is longer than the cipher allows (256 GiB).
    pub fn seal_in_place(
        &self,
        nonce: &[u8; BOX_NONCE_LEN],
        message: &mut [u8],
    ) -> Result<[u8; BOX_TAG_LEN], BoxError> {
        use crypto_box::aead::AeadInPlace;
        let tag = self
            .0
            .encrypt_in_place_detached(nonce.into(), &[], message)
            .map_err(|_| BoxError)?;
        Ok(tag.into())
    }

    /// Decrypts `sealed`, a tag and the ciphertext after it, in place. Returns the message.
    ///
    /// # Errors
    /// When `sealed` is too short or was not sealed by the peer. Its content is undefined then.
    pub fn open_in_place<'a>(
        &self,
        nonce: &[u8; BOX_NONCE_LEN],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], BoxError> {
        use crypto_box::aead::AeadInPlace;
        let (tag, message) = sealed.split_at_mut_checked(BOX_TAG_LEN).ok_or(BoxError)?;
        self.0
            .decrypt_in_place_detached(nonce.into(), &[], message, crypto_box::Tag::from_slice(tag))
            .map_err(|_| BoxError)?;
        Ok(message)
    }
}

impl fmt::Debug for SharedBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedBox(redacted)")
    }
}
