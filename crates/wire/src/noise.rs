//! ts2021: the Noise handshake between a node and its control server, and the records after it.
//!
//! The pattern is `Noise_IK_25519_ChaChaPoly_BLAKE2s` with empty handshake payloads. The machine key is the initiator's static
//! key; the server's is known from `GET /key`. The prologue holds the client's capability version, which the first frame also
//! carries in clear, so both sides know that it was not changed.
//!
//! In the IK pattern every handshake key seals exactly one message, so all handshake nonces are zero. Records count from zero
//! in each direction, in big endian, unlike Noise's own transport messages.

use blake2::{Blake2s256, Digest};
use bytes::{Buf, BufMut, BytesMut};
use hmac::{Mac, SimpleHmac};
use rand_core::CryptoRngCore;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::json::{self, JsonError};
use crate::key::{KEY_LEN, MachinePrivate, MachinePublic};
use crate::tailcfg::EarlyNoise;

/// Length of the first frame, from the client.
pub const INITIATION_LEN: usize = 101;
/// Length of the second frame, from the server.
pub const RESPONSE_LEN: usize = 51;
/// Largest frame with its header.
pub const MAX_FRAME_LEN: usize = 4096;
/// Most plaintext in one record.
pub const MAX_PLAINTEXT_LEN: usize = MAX_FRAME_LEN - HEADER_LEN - TAG_LEN;
/// Largest early payload that is accepted.
pub const MAX_EARLY_PAYLOAD_LEN: usize = 64 * 1024;

const PROTOCOL: &[u8] = b"Noise_IK_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &str = "Tailscale Control Protocol v";
const HEADER_LEN: usize = 3;
const INITIATION_HEADER_LEN: usize = 5;
const TAG_LEN: usize = 16;
const EARLY_MAGIC: &[u8; 5] = b"\xff\xff\xffTS";

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

/// The state of a handshake: running hash and chaining key.
struct Symmetric {
    hash: [u8; 32],
    chain: Zeroizing<[u8; 32]>,
}

impl Symmetric {
    fn new(prologue: &[u8], responder: &MachinePublic) -> Self {
        let start = Blake2s256::digest(PROTOCOL);
        let mut state = Self {
            hash: start.into(),
            chain: Zeroizing::new(start.into()),
        };
        state.mix_hash(prologue);
        state.mix_hash(responder.as_bytes());
        state
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = Blake2s256::new()
            .chain_update(self.hash)
            .chain_update(data)
            .finalize()
            .into();
    }

    /// Mixes the secret of a key agreement into the chaining key and returns the key for the next message.
    fn mix_dh(&mut self, own: &StaticSecret, peer: &PublicKey) -> Result<LessSafeKey, NoiseError> {
        let secret = own.diffie_hellman(peer);
        if !secret.was_contributory() {
            return Err(NoiseError::LowOrderKey);
        }
        let [chain, key] = hkdf(&self.chain, secret.as_bytes());
        self.chain = chain;
        Ok(cipher(&key))
    }

    fn seal(&mut self, key: &LessSafeKey, message: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let mut sealed = message.to_vec();
        key.seal_in_place_append_tag(record_nonce(0), Aad::from(self.hash), &mut sealed)
            .map_err(|_| NoiseError::TooLong(message.len()))?;
        self.mix_hash(&sealed);
        Ok(sealed)
    }

    fn open(&mut self, key: &LessSafeKey, sealed: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let mut message = sealed.to_vec();
        let len = key
            .open_in_place(record_nonce(0), Aad::from(self.hash), &mut message)
            .map_err(|_| NoiseError::Decrypt)?
            .len();
        message.truncate(len);
        self.mix_hash(sealed);
        Ok(message)
    }

    /// The keys of the records: initiator to responder, then the other way.
    fn split(&self) -> [LessSafeKey; 2] {
        hkdf(&self.chain, &[]).map(|key| cipher(&key))
    }
}

/// Noise's HKDF with two outputs.
fn hkdf(chain: &[u8; 32], input: &[u8]) -> [Zeroizing<[u8; 32]>; 2] {
    let secret = Zeroizing::new(hmac(chain, &[input]));
    let first = Zeroizing::new(hmac(&secret, &[&[1]]));
    let second = Zeroizing::new(hmac(&secret, &[&*first, &[2]]));
    [first, second]
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = <SimpleHmac<Blake2s256> as hmac::digest::KeyInit>::new(&block.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(unbound(key))
}

#[expect(
    clippy::expect_used,
    reason = "the only failure is a key of another length, which the type rules out"
)]
fn unbound(key: &[u8; 32]) -> UnboundKey {
    UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes")
}

fn record_nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn prologue(version: u16) -> Vec<u8> {
    format!("{PROLOGUE}{version}").into_bytes()
}

fn generate_ephemeral(rng: &mut impl CryptoRngCore) -> StaticSecret {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    rng.fill_bytes(&mut *bytes);
    StaticSecret::from(*bytes)
}

fn public(key: &MachinePublic) -> PublicKey {
    PublicKey::from(*key.as_bytes())
}

/// The client's side of a handshake, waiting for the response.
pub struct Initiator {
    state: Symmetric,
    machine: StaticSecret,
    ephemeral: StaticSecret,
}

impl Initiator {
    /// Starts a handshake with the server that has the static key `server`. Returns the first frame to send, which goes into
    /// the header `X-Tailscale-Handshake`.
    ///
    /// # Errors
    /// When `server` is no usable key.
    pub fn new(
        machine: &MachinePrivate,
        server: &MachinePublic,
        version: u16,
        rng: &mut impl CryptoRngCore,
    ) -> Result<(Self, [u8; INITIATION_LEN]), NoiseError> {
        let (initiator, body) = Self::start(
            machine.secret(),
            server,
            &prologue(version),
            generate_ephemeral(rng),
            &[],
        )?;
        let mut frame = [0; INITIATION_LEN];
        frame[..2].copy_from_slice(&version.to_be_bytes());
        frame[2] = FrameKind::INITIATION;
        frame[3..5].copy_from_slice(&((INITIATION_LEN - INITIATION_HEADER_LEN) as u16).to_be_bytes());
        frame[INITIATION_HEADER_LEN..].copy_from_slice(&body);
        Ok((initiator, frame))
    }

    fn start(
        machine: StaticSecret,
        server: &MachinePublic,
        prologue: &[u8],
        ephemeral: StaticSecret,
        payload: &[u8],
    ) -> Result<(Self, Vec<u8>), NoiseError> {
        let mut state = Symmetric::new(prologue, server);
        let ephemeral_public = PublicKey::from(&ephemeral);
        state.mix_hash(ephemeral_public.as_bytes());
        let mut body = ephemeral_public.as_bytes().to_vec();

        let es = state.mix_dh(&ephemeral, &public(server))?;
        body.extend(state.seal(&es, PublicKey::from(&machine).as_bytes())?);
        let ss = state.mix_dh(&machine, &public(server))?;
        body.extend(state.seal(&ss, payload)?);
        Ok((
            Self {
                state,
                machine,
                ephemeral,
            },
            body,
        ))
    }

    /// Finishes the handshake with the server's answer.
    ///
    /// # Errors
    /// When the server refused, or is not the one that holds the key.
    pub fn finish(self, response: &Frame) -> Result<Session, NoiseError> {
        response.expect(FrameKind::Response)?;
        if response.body.len() != RESPONSE_LEN - HEADER_LEN {
            return Err(NoiseError::Length {
                kind: FrameKind::Response.code(),
                len: response.body.len(),
            });
        }
        self.finish_body(&response.body).map(|(session, _)| session)
    }

    fn finish_body(mut self, body: &[u8]) -> Result<(Session, Vec<u8>), NoiseError> {
        let (ephemeral, sealed) = body.split_first_chunk::<KEY_LEN>().ok_or(NoiseError::Length {
            kind: FrameKind::Response.code(),
            len: body.len(),
        })?;
        let peer = PublicKey::from(*ephemeral);
        self.state.mix_hash(ephemeral);
        self.state.mix_dh(&self.ephemeral, &peer)?;
        let se = self.state.mix_dh(&self.machine, &peer)?;
        let payload = self.state.open(&se, sealed)?;
        let [send, receive] = self.state.split();
        Ok((Session::new(send, receive), payload))
    }
}

/// The server's side of a finished handshake.
pub struct Accepted {
    /// The client's capability version.
    pub version: u16,
    /// The client's machine key, which it has proved.
    pub machine: MachinePublic,
    /// The frame to send.
    pub response: [u8; RESPONSE_LEN],
    /// The session after that.
    pub session: Session,
}

/// Answers the first frame of a client.
///
/// # Errors
/// When `initiation` is not a whole initiation frame for the server with the key `server`.
pub fn respond(
    server: &MachinePrivate,
    initiation: &[u8],
    rng: &mut impl CryptoRngCore,
) -> Result<Accepted, NoiseError> {
    let (header, body) =
        initiation
            .split_first_chunk::<INITIATION_HEADER_LEN>()
            .ok_or(NoiseError::Length {
                kind: FrameKind::INITIATION,
                len: initiation.len(),
            })?;
    let [v0, v1, kind, l0, l1] = *header;
    if kind != FrameKind::INITIATION {
        return Err(NoiseError::UnexpectedFrame(kind));
    }
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    if len != INITIATION_LEN - INITIATION_HEADER_LEN || body.len() != len {
        return Err(NoiseError::Length {
            kind,
            len: len.max(body.len()),
        });
    }
    let version = u16::from_be_bytes([v0, v1]);
    let answer = respond_body(server, &prologue(version), body, generate_ephemeral(rng), &[])?;
    let mut response = [0; RESPONSE_LEN];
    put_header(
        &mut response.as_mut_slice(),
        FrameKind::Response,
        RESPONSE_LEN - HEADER_LEN,
    );
    response[HEADER_LEN..].copy_from_slice(&answer.body);
    Ok(Accepted {
        version,
        machine: answer.machine,
        response,
        session: answer.session,
    })
}

struct Answer {
    machine: MachinePublic,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the known answers of the tests have handshake payloads")
    )]
    payload: Vec<u8>,
    body: Vec<u8>,
    session: Session,
}

fn respond_body(
    server: &MachinePrivate,
    prologue: &[u8],
    initiation: &[u8],
    ephemeral: StaticSecret,
    payload: &[u8],
) -> Result<Answer, NoiseError> {
    const SEALED_KEY_LEN: usize = KEY_LEN + TAG_LEN;
    let too_short = || NoiseError::Length {
        kind: FrameKind::INITIATION,
        len: initiation.len(),
    };
    let (peer_ephemeral, rest) = initiation.split_first_chunk::<KEY_LEN>().ok_or_else(too_short)?;
    let (sealed_machine, sealed_payload) =
        rest.split_first_chunk::<SEALED_KEY_LEN>().ok_or_else(too_short)?;

    let secret = server.secret();
    let peer = PublicKey::from(*peer_ephemeral);
    let mut state = Symmetric::new(prologue, &server.public());
    state.mix_hash(peer_ephemeral);
    let es = state.mix_dh(&secret, &peer)?;
    let machine = state.open(&es, sealed_machine)?;
    let machine = <[u8; KEY_LEN]>::try_from(machine.as_slice()).map_err(|_| NoiseError::Decrypt)?;
    let machine_public = PublicKey::from(machine);
    let ss = state.mix_dh(&secret, &machine_public)?;
    let their_payload = state.open(&ss, sealed_payload)?;

    let own_public = PublicKey::from(&ephemeral);
    state.mix_hash(own_public.as_bytes());
    let mut body = own_public.as_bytes().to_vec();
    state.mix_dh(&ephemeral, &peer)?;
    let se = state.mix_dh(&ephemeral, &machine_public)?;
    body.extend(state.seal(&se, payload)?);
    let [receive, send] = state.split();
    Ok(Answer {
        machine: MachinePublic::from_bytes(machine),
        payload: their_payload,
        body,
        session: Session::new(send, receive),
    })
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

fn next_nonce(counter: &mut u64) -> Result<Nonce, NoiseError> {
    if *counter == u64::MAX {
        return Err(NoiseError::Exhausted);
    }
    let nonce = record_nonce(*counter);
    *counter += 1;
    Ok(nonce)
}

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

#[cfg(test)]
mod tests;
