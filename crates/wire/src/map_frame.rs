//! Framing of the answer to a map request: a length as u32 in little endian, then JSON, compressed as one zstd frame if the
//! request asked for that.

use std::borrow::Cow;
use std::io::Read;

use bytes::{Buf, BufMut, BytesMut};

use crate::json::{self, JsonError};
use crate::tailcfg::{MapRequest, MapResponse};

/// Largest message as it is sent.
pub const MAX_FRAME_LEN: usize = 16 * 1024 * 1024;
/// Largest message after decompression.
pub const MAX_JSON_LEN: usize = 64 * 1024 * 1024;

const HEADER_LEN: usize = 4;
/// Maps are written often and read once: the fastest level already takes most of their redundancy.
const ZSTD_LEVEL: i32 = 1;
/// Window of 8 MiB, the least that RFC 8878 wants of every decoder and the most that Go's encoder uses.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;

/// Why a message was refused.
#[derive(Debug, thiserror::Error)]
pub enum MapFrameError {
    /// The message is longer than [`MAX_FRAME_LEN`].
    #[error("map message of {0} bytes is too long")]
    FrameTooLong(usize),
    /// The message is longer than [`MAX_JSON_LEN`] after decompression.
    #[error("map message is longer than {MAX_JSON_LEN} bytes after decompression")]
    JsonTooLong,
    /// The message is no zstd frame, or could not be made one.
    #[error("map message is not a zstd frame")]
    Zstd(#[source] std::io::Error),
    /// The message is not the expected JSON.
    #[error("map message is unreadable")]
    Json(#[source] JsonError),
}

/// How messages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain JSON.
    None,
    /// One zstd frame for each message.
    Zstd,
}

impl Compression {
    /// What `request` asks for.
    #[must_use]
    pub fn of(request: &MapRequest) -> Self {
        if request.compress == "zstd" {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// Encodes `response` with its length before it.
///
/// # Errors
/// When the message is longer than [`MAX_FRAME_LEN`].
pub fn encode(response: &MapResponse, compression: Compression) -> Result<Vec<u8>, MapFrameError> {
    let json = json::to_vec(response).map_err(MapFrameError::Json)?;
    Encoder::new()?.encode_json(&json, compression)
}

/// Frames messages, and keeps what compression needs from one to the next.
pub struct Encoder(zstd::bulk::Compressor<'static>);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder for messages of any stream.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> Result<Self, MapFrameError> {
        let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(MapFrameError::Zstd)?;
        Ok(Self(compressor))
    }

    /// Encodes the JSON of a [`MapResponse`] with its length before it.
    ///
    /// # Errors
    /// When the message is longer than [`MAX_FRAME_LEN`].
    pub fn encode_json(&mut self, json: &[u8], compression: Compression) -> Result<Vec<u8>, MapFrameError> {
        let body = match compression {
            Compression::None => Cow::Borrowed(json),
            Compression::Zstd => self.0.compress(json).map_err(MapFrameError::Zstd)?.into(),
        };
        if body.len() > MAX_FRAME_LEN {
            return Err(MapFrameError::FrameTooLong(body.len()));
        }
        let mut frame = Vec::with_capacity(HEADER_LEN + body.len());
        frame.put_u32_le(body.len() as u32);
        frame.extend_from_slice(&body);
        Ok(frame)
    }
}

/// Takes the first message off `buf`. `None`: it is not complete yet.
///
/// # Errors
/// When the message is too long or unreadable. After a message that is too long the stream is of no use.
pub fn decode(buf: &mut BytesMut, compression: Compression) -> Result<Option<MapResponse>, MapFrameError> {
    match decode_json(buf, compression)? {
        Some(json) => json::from_slice(&json).map(Some).map_err(MapFrameError::Json),
        None => Ok(None),
    }
}

/// Takes the JSON of the first message off `buf`. `None`: it is not complete yet.
///
/// # Errors
/// When the message is too long or is no zstd frame. After a message that is too long the stream is of no use.
pub fn decode_json(buf: &mut BytesMut, compression: Compression) -> Result<Option<Vec<u8>>, MapFrameError> {
    let Some(header) = buf.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*header) as usize;
    if len > MAX_FRAME_LEN {
        return Err(MapFrameError::FrameTooLong(len));
    }
    if buf.len() < HEADER_LEN + len {
        return Ok(None);
    }
    buf.advance(HEADER_LEN);
    let body = buf.split_to(len);
    match compression {
        Compression::None => Ok(Some(body.to_vec())),
        Compression::Zstd => decompress(&body).map(Some),
    }
}

fn decompress(frame: &[u8]) -> Result<Vec<u8>, MapFrameError> {
    let mut decoder = zstd::Decoder::with_buffer(frame)
        .map_err(MapFrameError::Zstd)?
        .single_frame();
    decoder
        .window_log_max(MAX_ZSTD_WINDOW_LOG)
        .map_err(MapFrameError::Zstd)?;
    let mut json = Vec::new();
    decoder
        .take(MAX_JSON_LEN as u64 + 1)
        .read_to_end(&mut json)
        .map_err(MapFrameError::Zstd)?;
    if json.len() > MAX_JSON_LEN {
        return Err(MapFrameError::JsonTooLong);
    }
    Ok(json)
}
