//! The search for direct paths: disco and STUN messages in, pings and calls out.

use std::net::SocketAddr;
use std::time::Instant;

use tailwharf_wire::stun;
use tailwharf_wire::tailcfg::EndpointType;

use super::Core;
use super::pinging::Told;
use crate::disco::Heard;
use crate::endpoints::NetFacts;
use crate::event::Event;
use crate::paths::{Action, Path, PeerPath};
use crate::pings::Token;
use crate::tunnel::Tunnel;

impl Core {
    /// Takes the addresses of the node's UDP socket: those of the machine's interfaces, with the socket's port. An [`Event::EndpointsChanged`] follows when
    /// that changes what peers should know.
    pub fn set_local_endpoints(&mut self, endpoints: Vec<SocketAddr>, now: Instant) {
        if self.endpoints.set_local(endpoints, now) {
            self.tunnel.events.push_back(Event::EndpointsChanged);
            self.tunnel.paths.own_endpoints_changed(true, now);
        }
    }

    /// Takes addresses outside at which this node can be reached because somebody saw to it, at most 16. Peers are told of them first.
    pub fn set_explicit_endpoints(&mut self, endpoints: Vec<SocketAddr>) {
        self.endpoints.set_explicit(endpoints);
        self.tunnel.events.push_back(Event::EndpointsChanged);
    }

    /// Takes the addresses of the STUN servers to ask, the nearest first.
    pub fn set_stun_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        self.endpoints.set_servers(servers, now);
    }

    /// Where this node may be reached by UDP, and how each address was learned.
    #[must_use]
    pub fn endpoints(&self) -> Vec<(SocketAddr, EndpointType)> {
        self.endpoints.all()
    }

    /// What is known of the network around this node.
    #[must_use]
    pub fn net_facts(&self) -> NetFacts {
        self.endpoints.facts()
    }

    /// Peers with a session and how packets go to them, at most `most`, those that talked last first. An [`Event::PathChanged`] tells when to look again.
    #[must_use]
    pub fn peer_paths(&self, most: usize, now: Instant) -> Vec<PeerPath> {
        let facts = self.endpoints.facts();
        let mut active = self.tunnel.active_peers();
        active.truncate(most);
        let with_path = active.into_iter().map(|peer| {
            let path = self.tunnel.paths.state(&peer, facts, now);
            PeerPath { peer, path }
        });
        with_path.collect()
    }

    pub(super) fn is_stun(path: Path, packet: &[u8]) -> Option<SocketAddr> {
        match path {
            Path::Udp(from) if stun::is_stun(packet) => Some(from),
            _ => None,
        }
    }

    pub(super) fn handle_stun(&mut self, from: SocketAddr, packet: &[u8], now: Instant) {
        if self.endpoints.handle(packet, from) {
            self.tunnel.events.push_back(Event::EndpointsChanged);
            self.tunnel.paths.own_endpoints_changed(false, now);
        }
    }

    pub(super) fn handle_disco(&mut self, path: Path, packet: &mut [u8], now: Instant) {
        let Tunnel { netmap, outbox, .. } = &mut self.tunnel;
        match self
            .disco
            .handle(packet, path, netmap, outbox, &mut self.rng, now)
        {
            Some(Heard::Ping(peer)) => {
                self.tunnel.paths.pinged_by(&peer, path, now);
                self.tunnel.expect(&peer.key, now);
            }
            Some(Heard::CallMeMaybe(peer, endpoints)) => {
                self.tunnel.paths.heard(&peer, path, now);
                let mine = |at: &SocketAddr| netmap_owns(&self.tunnel, at) || self.endpoints.is_own(*at);
                let theirs: Vec<_> = endpoints.into_iter().filter(|at| !mine(at)).collect();
                self.tunnel.paths.called(&peer, &theirs, now);
                self.tunnel.expect(&peer.key, now);
            }
            Some(Heard::Pong { from, tx_id, seen_as }) => {
                let Tunnel { netmap, paths, .. } = &mut self.tunnel;
                let is_from = |key: &_| netmap.peer_by_key(key).is_some_and(|peer| peer.disco == from);
                if !paths.ponged(tx_id, is_from, now) {
                    let told = Told {
                        seen_as: Some(seen_as),
                        ..Told::default()
                    };
                    self.handle_pong(Token::Disco(tx_id), path, told, now);
                }
            }
            None => self.tunnel.counters.invalid += 1,
        }
    }

    /// Says what the search for paths wants to say. Returns whether that was anything.
    pub(super) fn discover(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(action) = self.tunnel.paths.next_action(now) {
            any = true;
            self.endpoints.refresh(now);
            let Tunnel {
                netmap,
                outbox,
                paths,
                ..
            } = &mut self.tunnel;
            match action {
                Action::Ping(key, to) => {
                    if let Some(peer) = netmap.peer_by_key(&key).filter(|peer| !peer.expired)
                        && let Ok(tx_id) = self.disco.ping(peer, Path::Udp(to), outbox, &mut self.rng)
                    {
                        paths.pinged(tx_id, key, to, now);
                    }
                }
                Action::Call(key) => {
                    let endpoints: Vec<_> = self.endpoints.all().into_iter().map(|(at, _)| at).collect();
                    if let Some(peer) = netmap.peer_by_key(&key).filter(|peer| !peer.expired)
                        && let Some(path) = paths.ways(peer, now).relay
                        && !endpoints.is_empty()
                    {
                        self.disco.call(peer, endpoints, path, outbox, &mut self.rng);
                    }
                }
            }
        }
        while let Some(peer) = self.tunnel.paths.next_change() {
            self.tunnel.events.push_back(Event::PathChanged { peer });
        }
        any
    }

    pub(super) fn handle_endpoint_timeout(&mut self, now: Instant) {
        let active = self.tunnel.paths.is_active(now);
        if self
            .endpoints
            .handle_timeout(active, &mut self.tunnel.outbox, &mut self.rng, now)
        {
            self.tunnel.events.push_back(Event::EndpointsChanged);
        }
    }
}

/// Whether an address is inside the tailnet, where no path may lead.
fn netmap_owns(tunnel: &Tunnel, at: &SocketAddr) -> bool {
    tunnel.netmap.addresses().any(|own| own == at.ip()) || tunnel.netmap.peer_by_address(at.ip()).is_some()
}
