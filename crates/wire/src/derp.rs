//! Frames between a node and a DERP relay: a type byte, a length as u32 in big endian, and a body.
//!
//! The relay begins with [`Frame::ServerKey`]; the client answers [`Frame::ClientInfo`], the relay [`Frame::ServerInfo`]. The
//! two infos are NaCl boxes, by which each side proves that it holds its key. After that, packets go back and forth.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rand_core::CryptoRngCore;
use serde::{Deserialize, Serialize};

use crate::json;
use crate::key::{BOX_NONCE_LEN, BOX_TAG_LEN, KEY_LEN, NodePrivate, NodePublic};

/// Version of the protocol that is spoken here, for the header `Derp-Version` and the infos.
pub const PROTOCOL_VERSION: u32 = 2;
/// Longest packet.
pub const MAX_PACKET_LEN: usize = 64 * 1024;
/// Longest sealed info.
pub const MAX_INFO_LEN: usize = 256 * 1024;
/// Longest body of all other frames.
pub const MAX_OTHER_LEN: usize = 64 * 1024;
/// Length of type and length.
pub const HEADER_LEN: usize = 5;

const MAGIC: &[u8; 8] = b"DERP\xf0\x9f\x94\x91";

/// Why a frame was refused. The connection is of no use after that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DerpError {
    /// A body that is longer than its type allows.
    #[error("DERP frame of type {kind:#04x} with {len} bytes is too long")]
    TooLong {
        /// Type of the frame.
        kind: u8,
        /// Length of its body.
        len: usize,
    },
    /// A body that is shorter than its type needs.
    #[error("DERP frame of type {kind:#04x} with {len} bytes is too short")]
    TooShort {
        /// Type of the frame.
        kind: u8,
        /// Length of its body.
        len: usize,
    },
    /// A greeting that is not that of a relay.
    #[error("greeting is not that of a DERP relay")]
    Magic,
    /// A body that is no text.
    #[error("DERP frame of type {kind:#04x} is not text")]
    Text {
        /// Type of the frame.
        kind: u8,
    },
    /// An info that is not sealed with the key that it names.
    #[error("DERP info does not open with the key of its sender")]
    Sealed,
    /// An info that is not the expected JSON.
    #[error("DERP info is unreadable")]
    Info,
}

/// Why a peer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerGoneReason {
    /// It was connected to this relay and is no more.
    Disconnected,
    /// It is not connected to this relay.
    NotHere,
    /// Something else.
    Other(u8),
}

impl PeerGoneReason {
    const fn code(self) -> u8 {
        match self {
            Self::Disconnected => 0,
            Self::NotHere => 1,
            Self::Other(code) => code,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }
}

/// A frame. Packets share the memory of the buffer from which they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Greeting of the relay.
    ServerKey(NodePublic),
    /// Who the client is, and a sealed [`ClientInfo`].
    ClientInfo {
        /// Key of the client.
        key: NodePublic,
        /// Nonce and box.
        sealed: Bytes,
    },
    /// A sealed [`ServerInfo`].
    ServerInfo {
        /// Nonce and box.
        sealed: Bytes,
    },
    /// From client to relay: a packet for `to`.
    SendPacket {
        /// For whom it is.
        to: NodePublic,
        /// The packet.
        packet: Bytes,
    },
    /// From relay to client: a packet from `from`.
    RecvPacket {
        /// From whom it is.
        from: NodePublic,
        /// The packet.
        packet: Bytes,
    },
    /// The relay is alive.
    KeepAlive,
    /// Whether the relay is the client's home.
    NotePreferred(bool),
    /// A peer is not at this relay.
    PeerGone {
        /// The peer.
        peer: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// Asks for a [`Frame::Pong`] with the same bytes.
    Ping([u8; 8]),
    /// Answer to a [`Frame::Ping`].
    Pong([u8; 8]),
    /// What is wrong with the client's connection; empty: nothing any more.
    Health(String),
    /// The relay is about to restart. Both times are in whole milliseconds, at most u32::MAX.
    Restarting {
        /// How long to wait before the client connects again.
        reconnect_in: Duration,
        /// How long to go on trying.
        try_for: Duration,
    },
    /// A frame that is not known here, or that only relays of one region use among themselves. To be ignored.
    Unknown(u8),
}

mod kind {
    pub(super) const SERVER_KEY: u8 = 0x01;
    pub(super) const CLIENT_INFO: u8 = 0x02;
    pub(super) const SERVER_INFO: u8 = 0x03;
    pub(super) const SEND_PACKET: u8 = 0x04;
    pub(super) const RECV_PACKET: u8 = 0x05;
    pub(super) const KEEP_ALIVE: u8 = 0x06;
    pub(super) const NOTE_PREFERRED: u8 = 0x07;
    pub(super) const PEER_GONE: u8 = 0x08;
    pub(super) const PING: u8 = 0x12;
    pub(super) const PONG: u8 = 0x13;
    pub(super) const HEALTH: u8 = 0x14;
    pub(super) const RESTARTING: u8 = 0x15;
}

/// The longest body that a frame of type `kind` may have.
const fn max_len(kind: u8) -> usize {
    match kind {
        kind::SEND_PACKET | kind::RECV_PACKET => KEY_LEN + MAX_PACKET_LEN,
        kind::CLIENT_INFO | kind::SERVER_INFO => KEY_LEN + MAX_INFO_LEN,
        _ => MAX_OTHER_LEN,
    }
}

/// A frame that still stands in the buffer into which it was read.
#[derive(Debug)]
pub struct RawFrame<'a> {
    kind: u8,
    body: &'a mut [u8],
}

impl<'a> RawFrame<'a> {
    /// Takes the first frame off `buf`. `None`: it is not complete yet, and `buf` stays as it is.
    ///
    /// # Errors
    /// When the frame is longer than its type allows.
    pub fn split_off(buf: &mut &'a mut [u8]) -> Result<Option<Self>, DerpError> {
        let Some((kind, len)) = header(buf)? else {
            return Ok(None);
        };
        if buf.len() < HEADER_LEN + len {
            return Ok(None);
        }
        let (frame, rest) = std::mem::take(buf).split_at_mut(HEADER_LEN + len);
        *buf = rest;
        let body = &mut frame[HEADER_LEN..];
        Ok(Some(Self { kind, body }))
    }

    /// Receiver and packet of a [`Frame::SendPacket`]. `None`: it is another frame.
    #[must_use]
    pub fn send_packet(&mut self) -> Option<(NodePublic, &mut [u8])> {
        self.packet(kind::SEND_PACKET)
    }

    /// Sender and packet of a [`Frame::RecvPacket`]. `None`: it is another frame.
    #[must_use]
    pub fn recv_packet(&mut self) -> Option<(NodePublic, &mut [u8])> {
        self.packet(kind::RECV_PACKET)
    }

    fn packet(&mut self, kind: u8) -> Option<(NodePublic, &mut [u8])> {
        if self.kind != kind {
            return None;
        }
        let (key, packet) = self.body.split_first_chunk_mut::<KEY_LEN>()?;
        Some((NodePublic::from_bytes(*key), packet))
    }

    /// The frame, with memory of its own.
    ///
    /// # Errors
    /// When it is shorter than its type allows.
    pub fn to_frame(&self) -> Result<Frame, DerpError> {
        Frame::from_body(self.kind, Bytes::copy_from_slice(self.body))
    }
}

/// Type and length of the first frame in `buf`, as soon as both are there.
fn header(buf: &[u8]) -> Result<Option<(u8, usize)>, DerpError> {
    let Some(&[kind, l0, l1, l2, l3]) = buf.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    if len > max_len(kind) {
        return Err(DerpError::TooLong { kind, len });
    }
    Ok(Some((kind, len)))
}

impl Frame {
    /// Takes the first frame off `buf`. `None`: it is not complete yet.
    ///
    /// # Errors
    /// When the frame is longer or shorter than its type allows.
    pub fn decode(buf: &mut BytesMut) -> Result<Option<Self>, DerpError> {
        let Some((kind, len)) = header(buf)? else {
            return Ok(None);
        };
        if buf.len() < HEADER_LEN + len {
            return Ok(None);
        }
        buf.advance(HEADER_LEN);
        Self::from_body(kind, buf.split_to(len).freeze()).map(Some)
    }

    fn from_body(kind: u8, mut body: Bytes) -> Result<Self, DerpError> {
        let frame = match kind {
            kind::SERVER_KEY => {
                if take::<8>(kind, &mut body)? != *MAGIC {
                    return Err(DerpError::Magic);
                }
                Self::ServerKey(take_key(kind, &mut body)?)
            }
            kind::CLIENT_INFO => Self::ClientInfo {
                key: take_key(kind, &mut body)?,
                sealed: body,
            },
            kind::SERVER_INFO => Self::ServerInfo { sealed: body },
            kind::SEND_PACKET => Self::SendPacket {
                to: take_key(kind, &mut body)?,
                packet: body,
            },
            kind::RECV_PACKET => Self::RecvPacket {
                from: take_key(kind, &mut body)?,
                packet: body,
            },
            kind::KEEP_ALIVE => Self::KeepAlive,
            kind::NOTE_PREFERRED => Self::NotePreferred(take::<1>(kind, &mut body)? != [0]),
            kind::PEER_GONE => Self::PeerGone {
                peer: take_key(kind, &mut body)?,
                // Relays of old sent no reason when a peer disconnected.
                reason: PeerGoneReason::from_code(body.first().copied().unwrap_or_default()),
            },
            kind::PING => Self::Ping(take(kind, &mut body)?),
            kind::PONG => Self::Pong(take(kind, &mut body)?),
            kind::HEALTH => {
                Self::Health(String::from_utf8(body.to_vec()).map_err(|_| DerpError::Text { kind })?)
            }
            kind::RESTARTING => {
                let mut millis = || {
                    take::<4>(kind, &mut body).map(|ms| Duration::from_millis(u32::from_be_bytes(ms).into()))
                };
                Self::Restarting {
                    reconnect_in: millis()?,
                    try_for: millis()?,
                }
            }
            other => Self::Unknown(other),
        };
        Ok(frame)
    }

    /// Appends this frame to `out`. [`Frame::Unknown`] has no form and appends nothing.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::ServerKey(key) => put(out, kind::SERVER_KEY, &[MAGIC, key.as_bytes()]),
            Self::ClientInfo { key, sealed } => put(out, kind::CLIENT_INFO, &[key.as_bytes(), sealed]),
            Self::ServerInfo { sealed } => put(out, kind::SERVER_INFO, &[sealed]),
            Self::SendPacket { to, packet } => encode_send_packet(to, packet, out),
            Self::RecvPacket { from, packet } => put(out, kind::RECV_PACKET, &[from.as_bytes(), packet]),
            Self::KeepAlive => put(out, kind::KEEP_ALIVE, &[]),
            Self::NotePreferred(preferred) => put(out, kind::NOTE_PREFERRED, &[&[u8::from(*preferred)]]),
            Self::PeerGone { peer, reason } => {
                put(out, kind::PEER_GONE, &[peer.as_bytes(), &[reason.code()]]);
            }
            Self::Ping(data) => put(out, kind::PING, &[data]),
            Self::Pong(data) => put(out, kind::PONG, &[data]),
            Self::Health(text) => put(out, kind::HEALTH, &[text.as_bytes()]),
            Self::Restarting {
                reconnect_in,
                try_for,
            } => {
                put(
                    out,
                    kind::RESTARTING,
                    &[&millis(*reconnect_in), &millis(*try_for)],
                );
            }
            Self::Unknown(_) => {}
        }
    }
}

/// Appends a [`Frame::SendPacket`] whose packet is borrowed.
pub fn encode_send_packet(to: &NodePublic, packet: &[u8], out: &mut BytesMut) {
    put(out, kind::SEND_PACKET, &[to.as_bytes(), packet]);
}

/// How long a [`Frame::RecvPacket`] with a packet of `packet_len` bytes is.
#[must_use]
pub const fn recv_packet_len(packet_len: usize) -> usize {
    HEADER_LEN + KEY_LEN + packet_len
}

/// Header and sender of a [`Frame::RecvPacket`] with a packet of `packet_len` bytes, at most [`MAX_PACKET_LEN`]. The packet
/// follows.
#[must_use]
pub fn recv_packet_header(from: &NodePublic, packet_len: usize) -> [u8; HEADER_LEN + KEY_LEN] {
    let mut header = [0; HEADER_LEN + KEY_LEN];
    header[0] = kind::RECV_PACKET;
    header[1..HEADER_LEN].copy_from_slice(&((KEY_LEN + packet_len) as u32).to_be_bytes());
    header[HEADER_LEN..].copy_from_slice(from.as_bytes());
    header
}

fn put(out: &mut BytesMut, kind: u8, parts: &[&[u8]]) {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(HEADER_LEN + len);
    out.put_u8(kind);
    out.put_u32(len as u32);
    for part in parts {
        out.put_slice(part);
    }
}

fn millis(duration: Duration) -> [u8; 4] {
    u32::try_from(duration.as_millis())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
}

fn take<const N: usize>(kind: u8, body: &mut Bytes) -> Result<[u8; N], DerpError> {
    let bytes = *body.first_chunk::<N>().ok_or(DerpError::TooShort {
        kind,
        len: body.len(),
    })?;
    body.advance(N);
    Ok(bytes)
}

fn take_key(kind: u8, body: &mut Bytes) -> Result<NodePublic, DerpError> {
    take(kind, body).map(NodePublic::from_bytes)
}

/// What a client tells the relay about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    /// Version of the protocol.
    pub version: u32,
    /// Whether the client answers pings.
    #[serde(rename = "CanAckPings")]
    pub can_ack_pings: bool,
    /// Whether the client only watches the relay.
    #[serde(rename = "IsProber", skip_serializing_if = "json::is_zero")]
    pub is_prober: bool,
    /// Name of the program, for statistics.
    #[serde(rename = "AppName", skip_serializing_if = "String::is_empty")]
    pub app_name: String,
}

impl ClientInfo {
    /// The frame with this info, from the client with the key `client` to the relay with the key `relay`.
    ///
    /// # Errors
    /// When the info is too long.
    pub fn seal(
        &self,
        client: &NodePrivate,
        relay: &NodePublic,
        rng: &mut impl CryptoRngCore,
    ) -> Result<Frame, DerpError> {
        Ok(Frame::ClientInfo {
            key: client.public(),
            sealed: seal(self, client, relay, rng)?,
        })
    }

    /// Reads the info that the client with the key `client` sent to the relay with the key `relay`.
    ///
    /// # Errors
    /// When the client does not hold its key, or the info is unreadable.
    pub fn open(sealed: &[u8], client: &NodePublic, relay: &NodePrivate) -> Result<Self, DerpError> {
        open(sealed, relay, client)
    }
}

/// What a relay tells a client about its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Version of the protocol.
    pub version: u32,
    /// How many bytes a second the client may send. 0: no limit.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "json::is_zero")]
    pub token_bucket_bytes_per_second: u64,
    /// How many bytes the client may send at once. 0: no limit.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "json::is_zero")]
    pub token_bucket_bytes_burst: u64,
}

impl ServerInfo {
    /// The frame with this info, from the relay with the key `relay` to the client with the key `client`.
    ///
    /// # Errors
    /// When the info is too long.
    pub fn seal(
        &self,
        relay: &NodePrivate,
        client: &NodePublic,
        rng: &mut impl CryptoRngCore,
    ) -> Result<Frame, DerpError> {
        Ok(Frame::ServerInfo {
            sealed: seal(self, relay, client, rng)?,
        })
    }

    /// Reads the info that the relay with the key `relay` sent to the client with the key `client`.
    ///
    /// # Errors
    /// When the relay does not hold its key, or the info is unreadable.
    pub fn open(sealed: &[u8], relay: &NodePublic, client: &NodePrivate) -> Result<Self, DerpError> {
        open(sealed, client, relay)
    }
}

fn seal<T: Serialize>(
    info: &T,
    own: &NodePrivate,
    peer: &NodePublic,
    rng: &mut impl CryptoRngCore,
) -> Result<Bytes, DerpError> {
    const START: usize = BOX_NONCE_LEN + BOX_TAG_LEN;
    let mut nonce = [0; BOX_NONCE_LEN];
    rng.fill_bytes(&mut nonce);
    let mut sealed = vec![0; START];
    sealed.extend(json::to_vec(info).map_err(|_| DerpError::Info)?);
    if sealed.len() > MAX_INFO_LEN {
        return Err(DerpError::TooLong {
            kind: kind::CLIENT_INFO,
            len: sealed.len(),
        });
    }
    let tag = own
        .shared(peer)
        .seal_in_place(&nonce, &mut sealed[START..])
        .map_err(|_| DerpError::Sealed)?;
    sealed[..BOX_NONCE_LEN].copy_from_slice(&nonce);
    sealed[BOX_NONCE_LEN..START].copy_from_slice(&tag);
    Ok(sealed.into())
}

fn open<T: serde::de::DeserializeOwned>(
    sealed: &[u8],
    own: &NodePrivate,
    peer: &NodePublic,
) -> Result<T, DerpError> {
    let (nonce, sealed) = sealed
        .split_first_chunk::<BOX_NONCE_LEN>()
        .ok_or(DerpError::Sealed)?;
    let mut sealed = sealed.to_vec();
    let json = own
        .shared(peer)
        .open_in_place(nonce, &mut sealed)
        .map_err(|_| DerpError::Sealed)?;
    json::from_slice(json).map_err(|_| DerpError::Info)
}
