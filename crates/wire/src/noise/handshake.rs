//! The handshake `Noise_IK_25519_ChaChaPoly_BLAKE2s` with empty payloads.

use blake2::{Blake2s256, Digest};
use hmac::{Mac, SimpleHmac};
use rand_core::CryptoRngCore;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{Frame, FrameKind, HEADER_LEN, NoiseError, Session, TAG_LEN, put_header, record_nonce};
use crate::key::{KEY_LEN, MachinePrivate, MachinePublic};

/// Length of the first frame, from the client.
pub const INITIATION_LEN: usize = 101;
/// Length of the second frame, from the server.
pub const RESPONSE_LEN: usize = 51;

const PROTOCOL: &[u8] = b"Noise_IK_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &str = "Tailscale Control Protocol v";
const INITIATION_HEADER_LEN: usize = 5;

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

#[expect(
    clippy::expect_used,
    reason = "the only failure is a key of another length, which the type rules out"
)]
fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes"))
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

    pub(super) fn start(
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

    pub(super) fn finish_body(mut self, body: &[u8]) -> Result<(Session, Vec<u8>), NoiseError> {
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
    let (answer, _) = respond_body(server, &prologue(version), body, &generate_ephemeral(rng), &[])?;
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

pub(super) struct Answer {
    pub(super) machine: MachinePublic,
    pub(super) body: Vec<u8>,
    pub(super) session: Session,
}

pub(super) fn respond_body(
    server: &MachinePrivate,
    prologue: &[u8],
    initiation: &[u8],
    ephemeral: &StaticSecret,
    payload: &[u8],
) -> Result<(Answer, Vec<u8>), NoiseError> {
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

    let own_public = PublicKey::from(ephemeral);
    state.mix_hash(own_public.as_bytes());
    let mut body = own_public.as_bytes().to_vec();
    state.mix_dh(ephemeral, &peer)?;
    let se = state.mix_dh(ephemeral, &machine_public)?;
    body.extend(state.seal(&se, payload)?);
    let [receive, send] = state.split();
    let machine = MachinePublic::from_bytes(machine);
    Ok((
        Answer {
            machine,
            body,
            session: Session::new(send, receive),
        },
        their_payload,
    ))
}
