//! Path discovery between nodes: small sealed messages beside the WireGuard packets, over UDP and over DERP.
//!
//! A packet is a magic, the sender's disco key, a nonce, and a NaCl box of: type, version 0, body.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::BufMut;
use rand_core::CryptoRngCore;

use crate::key::{BOX_NONCE_LEN, BOX_TAG_LEN, DiscoPublic, KEY_LEN, NodePublic, SharedBox};

/// What every packet begins with.
pub const MAGIC: &[u8; 6] = b"TS\xf0\x9f\x92\xac";
/// Most endpoints that are read from one [`Message::CallMeMaybe`].
pub const MAX_ENDPOINTS: usize = 64;

const NONCE_AT: usize = MAGIC.len() + KEY_LEN;
const BOX_AT: usize = NONCE_AT + BOX_NONCE_LEN;
const MESSAGE_AT: usize = BOX_AT + BOX_TAG_LEN;
const ENDPOINT_LEN: usize = 18;

const TYPE_PING: u8 = 1;
const TYPE_PONG: u8 = 2;
const TYPE_CALL_ME_MAYBE: u8 = 3;

/// Why a packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiscoError {
    /// It is not a disco packet.
    #[error("not a disco packet")]
    NotDisco,
    /// It was not sealed with the sender's key for us.
    #[error("disco packet does not open with the key of its sender")]
    Sealed,
    /// It is shorter than its type needs.
    #[error("disco message of type {0} is too short")]
    TooShort(u8),
}

/// Ties an answer to a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TxId(pub [u8; 12]);

impl TxId {
    /// A new id.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        let mut bytes = [0; 12];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Asks for a [`Message::Pong`] on the same path.
    Ping {
        /// Ties the answer to this.
        tx_id: TxId,
        /// The sender's node key, which the receiver checks against the disco key. Zero: not told.
        node_key: NodePublic,
        /// How many zeros follow, to probe the path's MTU.
        padding: usize,
    },
    /// Answers a [`Message::Ping`].
    Pong {
        /// The ping's id.
        tx_id: TxId,
        /// From where the ping came. An unspecified address over DERP.
        src: SocketAddr,
    },
    /// Asks the receiver, over DERP, to ping the sender at these endpoints.
    CallMeMaybe {
        /// Where the sender may be reached.
        endpoints: Vec<SocketAddr>,
    },
    /// A message that is not known here. To be ignored.
    Unknown(u8),
}

/// The sender's key, if `packet` looks like a disco packet.
#[must_use]
pub fn sender(packet: &[u8]) -> Option<DiscoPublic> {
    let rest = packet.strip_prefix(MAGIC)?;
    if packet.len() < MESSAGE_AT {
        return None;
    }
    rest.first_chunk::<KEY_LEN>()
        .map(|key| DiscoPublic::from_bytes(*key))
}

impl Message {
    /// Opens `packet` in place with the box shared with its [`sender`].
    ///
    /// # Errors
    /// When the packet is not sealed with that box, or is malformed. The content of `packet` is undefined then.
    pub fn open(packet: &mut [u8], shared: &SharedBox) -> Result<Self, DiscoError> {
        if sender(packet).is_none() {
            return Err(DiscoError::NotDisco);
        }
        let (header, sealed) = packet.split_at_mut(BOX_AT);
        let nonce = header[NONCE_AT..]
            .first_chunk::<BOX_NONCE_LEN>()
            .ok_or(DiscoError::NotDisco)?;
        let message = shared
            .open_in_place(nonce, sealed)
            .map_err(|_| DiscoError::Sealed)?;
        Self::decode(message)
    }

    /// Reads the content of an opened box.
    ///
    /// # Errors
    /// When it is shorter than its type needs.
    pub fn decode(message: &[u8]) -> Result<Self, DiscoError> {
        let Some((&[kind, version], body)) = message.split_first_chunk::<2>() else {
            return Err(DiscoError::TooShort(message.first().copied().unwrap_or_default()));
        };
        let too_short = DiscoError::TooShort(kind);
        match kind {
            TYPE_PING => {
                let (tx_id, rest) = body.split_first_chunk::<12>().ok_or(too_short)?;
                let (node_key, padding) = match rest.split_first_chunk::<KEY_LEN>() {
                    Some((key, padding)) => (NodePublic::from_bytes(*key), padding.len()),
                    None => (NodePublic::default(), rest.len()),
                };
                Ok(Self::Ping {
                    tx_id: TxId(*tx_id),
                    node_key,
                    padding,
                })
            }
            TYPE_PONG => {
                let (tx_id, rest) = body.split_first_chunk::<12>().ok_or(too_short)?;
                let src = rest.first_chunk::<ENDPOINT_LEN>().ok_or(too_short)?;
                Ok(Self::Pong {
                    tx_id: TxId(*tx_id),
                    src: endpoint(src),
                })
            }
            TYPE_CALL_ME_MAYBE if version == 0 => {
                let endpoints = body
                    .as_chunks::<ENDPOINT_LEN>()
                    .0
                    .iter()
                    .take(MAX_ENDPOINTS)
                    .map(endpoint)
                    .collect();
                Ok(Self::CallMeMaybe { endpoints })
            }
            other => Ok(Self::Unknown(other)),
        }
    }

    /// Appends this message to `out` as it stands inside the box. [`Message::Unknown`] becomes a message without a body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ping {
                tx_id,
                node_key,
                padding,
            } => {
                out.extend_from_slice(&[TYPE_PING, 0]);
                out.extend_from_slice(&tx_id.0);
                if !node_key.is_zero() {
                    out.extend_from_slice(node_key.as_bytes());
                }
                out.put_bytes(0, *padding);
            }
            Self::Pong { tx_id, src } => {
                out.extend_from_slice(&[TYPE_PONG, 0]);
                out.extend_from_slice(&tx_id.0);
                put_endpoint(out, *src);
            }
            Self::CallMeMaybe { endpoints } => {
                out.extend_from_slice(&[TYPE_CALL_ME_MAYBE, 0]);
                for endpoint in endpoints {
                    put_endpoint(out, *endpoint);
                }
            }
            Self::Unknown(kind) => out.extend_from_slice(&[*kind, 0]),
        }
    }

    /// Appends a packet with this message to `out`: sealed with `shared`, from the node with the disco key `from`.
    ///
    /// # Errors
    /// When the message is longer than the cipher allows, which no message is.
    pub fn seal(
        &self,
        from: &DiscoPublic,
        shared: &SharedBox,
        rng: &mut impl CryptoRngCore,
        out: &mut Vec<u8>,
    ) -> Result<(), DiscoError> {
        let start = out.len();
        let mut nonce = [0; BOX_NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(from.as_bytes());
        out.extend_from_slice(&nonce);
        out.put_bytes(0, BOX_TAG_LEN);
        self.encode(out);
        let (header, message) = out[start..].split_at_mut(MESSAGE_AT);
        let tag = shared
            .seal_in_place(&nonce, message)
            .map_err(|_| DiscoError::Sealed)?;
        header[BOX_AT..].copy_from_slice(&tag);
        Ok(())
    }
}

fn endpoint(bytes: &[u8; ENDPOINT_LEN]) -> SocketAddr {
    let [ip @ .., p0, p1] = *bytes;
    SocketAddr::new(
        Ipv6Addr::from_octets(ip).to_canonical(),
        u16::from_be_bytes([p0, p1]),
    )
}

fn put_endpoint(out: &mut Vec<u8>, endpoint: SocketAddr) {
    let ip = match endpoint.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&endpoint.port().to_be_bytes());
}
