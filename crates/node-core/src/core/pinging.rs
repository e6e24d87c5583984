//! Pings, and the handshakes by which a node that moved here makes itself heard.

use std::net::SocketAddr;
use std::time::Instant;

use rand_core::RngCore;
use tailwharf_wire::tailcfg::{NodeId, StableId};
use tailwharf_wire::tsmp::Message;

use super::Core;
use crate::event::{Event, PingError, PingId, PingKind};
use crate::packet::{write_echo_request, write_tsmp};
use crate::paths::Path;
use crate::pings::Token;

/// What the answer to a ping says besides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) seen_as: Option<SocketAddr>,
    pub(super) peer_api_port: Option<u16>,
}

impl Core {
    /// Starts handshakes with peers that talked to this node before it moved here, so that they need not find out by their timers. Those that the netmap does
    /// not have are left out.
    pub fn wake_peers(&mut self, peers: &[StableId], now: Instant) {
        let keys: Vec<_> = self
            .netmap()
            .peers()
            .filter(|peer| peers.contains(&peer.stable_id))
            .map(|peer| peer.key)
            .collect();
        for key in keys {
            self.tunnel.revive(&key, now);
        }
    }

    /// Pings a peer. The answer is an [`Event::PingReply`], its absence an [`Event::PingTimeout`].
    ///
    /// # Errors
    /// When no way to the peer is known, it does not take this kind of ping, or too many are under way.
    pub fn ping(&mut self, peer: NodeId, kind: PingKind, now: Instant) -> Result<PingId, PingError> {
        self.pings.check_room()?;
        let peer = self.netmap().peer(peer).cloned().ok_or(PingError::NoPath)?;
        let ways = self.tunnel.paths.ways(&peer, now);
        let path = ways.surest().ok_or(PingError::NoPath)?;
        self.tunnel.paths.used(&peer, now);
        if kind == PingKind::Disco {
            let sent = self
                .disco
                .ping(&peer, path, &mut self.tunnel.outbox, &mut self.rng)?;
            return Ok(self.pings.add(Token::Disco(sent), now));
        }
        let to = *peer.addresses.first().ok_or(PingError::Unsupported)?;
        let from = self.netmap().address_like(to).ok_or(PingError::Unsupported)?;
        let mut data = [0; 8];
        self.rng.fill_bytes(&mut data);
        let token = match kind {
            PingKind::Icmp => {
                let [a, b, c, d, ..] = data;
                write_echo_request(&mut self.scratch, from, to, [a, b, c, d]);
                Token::Icmp([a, b, c, d])
            }
            PingKind::Tsmp | PingKind::Disco => {
                let mut body = Vec::with_capacity(9);
                Message::Ping(data).encode(&mut body);
                write_tsmp(&mut self.scratch, from, to, &body);
                Token::Tsmp(data)
            }
        };
        self.tunnel.send_to(&peer, &self.scratch, now);
        Ok(self.pings.add(token, now))
    }

    pub(super) fn handle_pong(&mut self, token: Token, path: Path, told: Told, now: Instant) {
        if let Some((ping, latency)) = self.pings.answered(token, now) {
            self.tunnel.events.push_back(Event::PingReply {
                ping,
                latency,
                path,
                seen_as: told.seen_as,
                peer_api_port: told.peer_api_port.filter(|port| *port != 0),
            });
        }
    }
}
