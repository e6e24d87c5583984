//! The early payload: a little JSON that a server may send before HTTP/2 begins.

use bytes::{Buf, BufMut, BytesMut};

use super::NoiseError;
use crate::json;
use crate::tailcfg::EarlyNoise;

/// Largest early payload that is accepted.
pub const MAX_EARLY_PAYLOAD_LEN: usize = 64 * 1024;

const EARLY_MAGIC: &[u8; 5] = b"\xff\xff\xffTS";

/// What stands at the begin of the server's plaintext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Early {
    /// Not enough bytes to tell.
    Incomplete,
    /// No early payload: HTTP/2 begins at once. Nothing was taken.
    Absent,
    /// The early payload, which was taken off the buffer.
    Payload(EarlyNoise),
}

impl Early {
    /// Looks for the early payload at the begin of the decrypted stream `buf`.
    ///
    /// # Errors
    /// When there is one that is too long or unreadable.
    pub fn decode(buf: &mut BytesMut) -> Result<Self, NoiseError> {
        const HEADER: usize = EARLY_MAGIC.len() + 4;
        let common = buf.len().min(EARLY_MAGIC.len());
        if buf[..common] != EARLY_MAGIC[..common] {
            return Ok(Self::Absent);
        }
        let Some(header) = buf.first_chunk::<HEADER>() else {
            return Ok(Self::Incomplete);
        };
        let len = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) as usize;
        if len > MAX_EARLY_PAYLOAD_LEN {
            return Err(NoiseError::EarlyPayloadLength(len));
        }
        if buf.len() < HEADER + len {
            return Ok(Self::Incomplete);
        }
        buf.advance(HEADER);
        json::from_slice(&buf.split_to(len))
            .map(Self::Payload)
            .map_err(NoiseError::EarlyPayload)
    }
}

/// The early payload in the form in which a server sends it.
#[must_use]
pub fn encode_early(early: &EarlyNoise) -> Vec<u8> {
    let json = json::to_vec(early).unwrap_or_default();
    let mut out = EARLY_MAGIC.to_vec();
    out.put_u32(json.len() as u32);
    out.extend_from_slice(&json);
    out
}
