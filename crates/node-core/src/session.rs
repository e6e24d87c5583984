//! One WireGuard session, around boringtun.
//!
//! This is the one module that is not pure: boringtun reads the monotonic clock (re-keying, retries), the system clock (the time stamp in initiations) and
//! the system's randomness (ephemeral keys, cookies) on its own. It acts only when called, and callers follow deadlines that were handed in.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use tailwharf_wire::key::{NodePrivate, NodePublic};

use crate::paths::Path;

/// Bytes that a data message adds to a packet.
pub(crate) const OVERHEAD: usize = 32;
/// Bytes of a handshake initiation, the largest message that carries no packet.
pub(crate) const INITIATION_LEN: usize = 148;
/// First byte of a data message.
const DATA_TYPE: u8 = 4;
/// Bytes of a cookie reply.
const COOKIE_LEN: usize = 64;

/// Handshakes per second beyond which senders must first prove by a cookie that they receive at their address. Each is counted where its sender is looked up
/// and again where it is handled, so this is twice the real number: 100 peers may come back in one second after a relay's restart.
const HANDSHAKE_LIMIT: u64 = 200;

/// How stale boringtun's own idea of the time may be when it stamps what it sends and receives. Its timers count seconds.
const STALE_AFTER: Duration = Duration::from_millis(250);

/// Our side of all sessions.
pub(crate) struct Identity {
    private: StaticSecret,
    public: PublicKey,
    limiter: Arc<RateLimiter>,
    limiter_reset: Option<Instant>,
}

/// What a WireGuard message is, as far as can be told without its session.
#[derive(Debug)]
pub(crate) enum Message {
    /// A handshake initiation of this peer.
    Initiation(NodePublic),
    /// What belongs to a session or handshake with this number of ours.
    Indexed(u32),
    /// Not handled under the present load; this answer asks for proof of address.
    Cookie([u8; COOKIE_LEN]),
    /// Not a WireGuard message for us.
    Invalid,
}

impl Identity {
    pub(crate) fn new(node_key: &NodePrivate) -> Self {
        let private = StaticSecret::from(*node_key.as_bytes());
        let public = PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKE_LIMIT));
        Self {
            private,
            public,
            limiter,
            limiter_reset: None,
        }
    }

    /// Looks at a message: checks its outer code, decrypts who an initiation is from.
    pub(crate) fn identify(&mut self, datagram: &[u8], path: Path, now: Instant) -> Message {
        if self
            .limiter_reset
            .is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1))
        {
            self.limiter.reset_count();
            self.limiter_reset = Some(now);
        }
        let mut cookie = [0; COOKIE_LEN];
        match self
            .limiter
            .verify_packet(Some(source_address(path)), datagram, &mut cookie)
        {
            Ok(Packet::HandshakeInit(init)) => match parse_handshake_anon(&self.private, &self.public, &init)
            {
                Ok(half) => Message::Initiation(NodePublic::from_bytes(half.peer_static_public)),
                Err(_) => Message::Invalid,
            },
            // The low byte counts sessions within one peer.
            Ok(Packet::HandshakeResponse(response)) => Message::Indexed(response.receiver_idx >> 8),
            Ok(Packet::PacketCookieReply(reply)) => Message::Indexed(reply.receiver_idx >> 8),
            Ok(Packet::PacketData(data)) => Message::Indexed(data.receiver_idx >> 8),
            Err(TunnResult::WriteToNetwork(_)) => Message::Cookie(cookie),
            Err(_) => Message::Invalid,
        }
    }
}

/// The address by which a sender proves itself under load. A relay vouches for the key of a sender, so for a relayed message the key takes its place.
fn source_address(path: Path) -> IpAddr {
    match path {
        Path::Udp(address) => address.ip(),
        Path::Derp { peer, .. } => {
            let mut half = [0; 16];
            half.copy_from_slice(&peer.as_bytes()[..16]);
            Ipv6Addr::from(half).into()
        }
    }
}

/// The number of ours that a data message bears; `None` for any other message.
pub(crate) fn data_index(datagram: &[u8]) -> Option<u32> {
    let [kind, 0, 0, 0] = *datagram.first_chunk()? else {
        return None;
    };
    let index = u32::from_le_bytes(*datagram.get(4..)?.first_chunk()?);
    // The low byte counts sessions within one peer.
    (kind == DATA_TYPE && datagram.len() >= OVERHEAD).then_some(index >> 8)
}

/// A session, or the attempt at one, with a peer.
pub(crate) struct Session {
    tunn: Box<Tunn>,
    /// When boringtun last looked at the clock.
    ticked: Instant,
    /// Whether packets wait inside for the handshake.
    queued: bool,
    /// Whether data can be sent at once.
    established: bool,
}

/// What came of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// Nothing to do; the message was authentic.
    Nothing,
    /// So many bytes of the buffer are to be sent.
    Send(usize),
    /// So many bytes of the buffer are an IP packet.
    Packet(usize),
    /// The message was not authentic, a repetition, or late.
    Invalid,
}

/// What came of looking at the clock.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tick {
    /// Nothing to do.
    Nothing,
    /// So many bytes of the buffer are to be sent.
    Send(usize),
    /// The session is over and cannot be revived.
    Expired,
}

impl Session {
    /// A session object for `peer` with our number `index` (24 bits).
    pub(crate) fn new(identity: &Identity, peer: &NodePublic, index: u32, now: Instant) -> Self {
        let tunn = Tunn::new(
            identity.private.clone(),
            PublicKey::from(*peer.as_bytes()),
            None,
            None,
            index,
            Some(Arc::clone(&identity.limiter)),
        );
        Self {
            tunn: Box::new(tunn),
            ticked: now,
            queued: false,
            established: false,
        }
    }

    /// Whether data can be sent at once.
    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    /// Asks boringtun, which looks at a clock for the answer.
    fn look_if_established(&mut self) {
        self.established = self.tunn.time_since_last_handshake().is_some();
    }

    /// Whether packets wait inside for the handshake.
    pub(crate) fn has_queued(&self) -> bool {
        self.queued
    }

    /// Whether boringtun should look at the clock before it stamps the next message.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        now.duration_since(self.ticked) >= STALE_AFTER
    }

    /// Seals a packet into `out`, which has room for it plus [`OVERHEAD`] and for an initiation. Without a session the packet waits inside, and what is to be
    /// sent is the initiation, if none is under way.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        if out.len() < (packet.len() + OVERHEAD).max(INITIATION_LEN) {
            return None;
        }
        let length = sent(&self.tunn.encapsulate(packet, out));
        // Anything but a data message means that the packet waits.
        self.queued |= length.is_none() || out.first() != Some(&DATA_TYPE);
        length
    }

    /// Takes a message. `out` has room for it and for an initiation; a packet is then at its start.
    pub(crate) fn open(&mut self, datagram: &[u8], path: Path, out: &mut [u8]) -> Opened {
        let opened = match self.tunn.decapsulate(Some(source_address(path)), datagram, out) {
            TunnResult::Done => Opened::Nothing,
            TunnResult::Err(_) => Opened::Invalid,
            TunnResult::WriteToNetwork(bytes) => Opened::Send(bytes.len()),
            TunnResult::WriteToTunnelV4(packet, _) => Opened::Packet(packet.len()),
            TunnResult::WriteToTunnelV6(packet, _) => Opened::Packet(packet.len()),
        };
        if !self.established {
            self.look_if_established();
        }
        opened
    }

    /// The next packet that waited for the handshake, sealed into `out`. Only with an established session.
    pub(crate) fn flush(&mut self, out: &mut [u8]) -> Option<usize> {
        let length = sent(&self.tunn.decapsulate(None, &[], out));
        self.queued = length.is_some();
        length
    }

    /// Lets boringtun look at the clock.
    pub(crate) fn tick(&mut self, out: &mut [u8], now: Instant) -> Tick {
        self.ticked = now;
        let tick = match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(bytes) => Tick::Send(bytes.len()),
            TunnResult::Err(_) => Tick::Expired,
            _ => Tick::Nothing,
        };
        self.look_if_established();
        tick
    }

    /// Starts a handshake, also if one is under way; the answer to the one before is still taken.
    pub(crate) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        sent(&self.tunn.format_handshake_initiation(out, true))
    }
}

fn sent(result: &TunnResult<'_>) -> Option<usize> {
    if let TunnResult::WriteToNetwork(bytes) = result {
        Some(bytes.len())
    } else {
        None
    }
}
