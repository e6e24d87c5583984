//! ts2021: the Noise handshake between a node and its control server, and the records after it.
//!
//! The pattern is `Noise_IK_25519_ChaChaPoly_BLAKE2s` with empty handshake payloads. The machine key is the initiator's static
//! key; the server's is known from `GET /key`. The prologue holds the client's capability version, which the first frame also
//! carries in clear, so both sides know that it was not changed.
//!
//! In the IK pattern every handshake key seals exactly one message, so all handshake nonces are zero. Records count from zero
//! in each direction, in big endian, unlike Noise's own transport messages.

mod early;
mod handshake;

use bytes::{Buf, BufMut, BytesMut};
use ring::aead::{Aad, LessSafeKey, Nonce};

pub use self::early::{Early, MAX_EARLY_PAYLOAD_LEN, encode_early};
pub use self::handshake::{Accepted, INITIATION_LEN, Initiator, RESPONSE_LEN, respond};
use crate::json::JsonError;

/// Largest frame with its header.
pub const MAX_FRAME_LEN: usize = 4096;
/// Most plaintext in one record.
pub const MAX_PLAINTEXT_LEN: usize = MAX_FRAME_LEN - HEADER_LEN - TAG_LEN;

const HEADER_LEN: usize = 3;
const TAG_LEN: usize = 16;

/// Why a handshake or a record was refused.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// A frame of another type than the one that belongs here.
    #[error("unexpected Noise frame of type {0}")]
    UnexpectedFrame(u8),
    /// A frame whose length its type does not allow.
    #[error("Noise frame of type {kind} with a length of {len} bytes")]
    Length {
        /// Type of the frame.
        kind: u8,
        /// Length of its body.
        len: usize,
    },
    /// A message that does not open: wrong key, changed on its way, or out of order.
    #[error("Noise message does not open with the key of this connection")]
    Decrypt,
    /// A public key with which no secret can be agreed.
    #[error("Noise peer sent a key of low order")]
    LowOrderKey,
    /// The other side refused and said why.
    #[error("the other side refused the connection: {0}")]
    Refused(String),
    /// More plaintext than fits into one record.
    #[error("{0} bytes do not fit into one Noise record")]
    TooLong(usize),
    /// All nonces of this direction are used.
    #[error("Noise connection has used all its nonces")]
    Exhausted,
    /// An early payload above [`MAX_EARLY_PAYLOAD_LEN`].
    #[error("early payload of {0} bytes is too long")]
    EarlyPayloadLength(usize),
    /// An early payload that is not the expected JSON.
    #[error("early payload is unreadable")]
    EarlyPayload(#[source] JsonError),
}

/// Types of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// The server's answer to the initiation.
    Response,
    /// The other side refuses; the body is a text.
    Error,
    /// Encrypted data.
    Record,
}

impl FrameKind {
    const INITIATION: u8 = 1;

    const fn code(self) -> u8 {
        match self {
            Self::Response => 2,
            Self::Error => 3,
            Self::Record => 4,
        }
    }
}

/// A frame with the common header. The initiation has a header of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Type of the frame.
    pub kind: FrameKind,
    /// What follows the header.
    pub body: BytesMut,
}

impl Frame {
    /// Takes the first frame off `buf`. `None`: it is not complete yet.
    ///
    /// # Errors
    /// When the type or the length is not allowed. The connection is of no use then.
    pub fn decode(buf: &mut BytesMut) -> Result<Option<Self>, NoiseError> {
        let Some(&[kind, high, low]) = buf.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        let kind = match kind {
            2 => FrameKind::Response,
            3 => FrameKind::Error,
            4 => FrameKind::Record,
            other => return Err(NoiseError::UnexpectedFrame(other)),
        };
        if len > MAX_FRAME_LEN - HEADER_LEN {
            return Err(NoiseError::Length {
                kind: kind.code(),
                len,
            });
        }
        if buf.len() < HEADER_LEN + len {
            return Ok(None);
        }
        buf.advance(HEADER_LEN);
        Ok(Some(Self {
            kind,
            body: buf.split_to(len),
        }))
    }

    /// The error that this frame is, if it is none of type `expected`.
    fn expect(&self, expected: FrameKind) -> Result<(), NoiseError> {
        match self.kind {
            kind if kind == expected => Ok(()),
            FrameKind::Error => Err(NoiseError::Refused(
                String::from_utf8_lossy(&self.body).into_owned(),
            )),
            other => Err(NoiseError::UnexpectedFrame(other.code())),
        }
    }
}

/// A frame that refuses the connection for `reason`, in clear. Long reasons are cut.
#[must_use]
pub fn error_frame(reason: &str) -> Vec<u8> {
    let body = &reason.as_bytes()[..reason.floor_char_boundary(MAX_FRAME_LEN - HEADER_LEN)];
    let mut frame = Vec::with_capacity(HEADER_LEN + body.len());
    put_header(&mut frame, FrameKind::Error, body.len());
    frame.extend_from_slice(body);
    frame
}

/// Writes a header. `len` is at most [`MAX_FRAME_LEN`].
fn put_header(out: &mut impl BufMut, kind: FrameKind, len: usize) {
    out.put_u8(kind.code());
    out.put_uint(len as u64, 2);
}

/// Both directions of a connection after the handshake.
pub struct Session {
    /// What this side sends.
    pub sealer: Sealer,
    /// What this side receives.
    pub opener: Opener,
}

impl Session {
    fn new(send: LessSafeKey, receive: LessSafeKey) -> Self {
        Self {
            sealer: Sealer {
                key: send,
                counter: 0,
            },
            opener: Opener {
                key: receive,
                counter: 0,
            },
        }
    }
}

/// The sending direction of a connection.
pub struct Sealer {
    key: LessSafeKey,
    counter: u64,
}

impl Sealer {
    /// Appends one record with `plaintext`, at most [`MAX_PLAINTEXT_LEN`] bytes, to `out`.
    ///
    /// # Errors
    /// When `plaintext` is too long, or after 2^64 - 1 records.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut BytesMut) -> Result<(), NoiseError> {
        if plaintext.len() > MAX_PLAINTEXT_LEN {
            return Err(NoiseError::TooLong(plaintext.len()));
        }
        let nonce = next_nonce(&mut self.counter)?;
        out.reserve(HEADER_LEN + plaintext.len() + TAG_LEN);
        put_header(out, FrameKind::Record, plaintext.len() + TAG_LEN);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut out[start..])
            .map_err(|_| NoiseError::TooLong(plaintext.len()))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// The receiving direction of a connection.
pub struct Opener {
    key: LessSafeKey,
    counter: u64,
}

impl Opener {
    /// Takes the first record off `buf` and decrypts it. `None`: it is not complete yet.
    ///
    /// # Errors
    /// When it is no record, does not open, or the other side ended the connection with a reason.
    pub fn open(&mut self, buf: &mut BytesMut) -> Result<Option<BytesMut>, NoiseError> {
        let Some(frame) = Frame::decode(buf)? else {
            return Ok(None);
        };
        frame.expect(FrameKind::Record)?;
        let mut body = frame.body;
        let nonce = next_nonce(&mut self.counter)?;
        let len = self
            .key
            .open_in_place(nonce, Aad::empty(), &mut body)
            .map_err(|_| NoiseError::Decrypt)?
            .len();
        body.truncate(len);
        Ok(Some(body))
    }
}

fn record_nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn next_nonce(counter: &mut u64) -> Result<Nonce, NoiseError> {
    if *counter == u64::MAX {
        return Err(NoiseError::Exhausted);
    }
    let nonce = record_nonce(*counter);
    *counter += 1;
    Ok(nonce)
}

#[cfg(test)]
mod tests;
