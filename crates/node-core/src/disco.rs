//! Path discovery: answers pings, sends those that were asked for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use rand_core::CryptoRngCore;
use tailwharf_wire::disco::{Message, TxId, sender};
use tailwharf_wire::key::{DiscoPrivate, DiscoPublic, NodePublic, SharedBox};

use crate::event::PingError;
use crate::limit::Limiter;
use crate::netmap::{Netmap, Peer};
use crate::outbox::Outbox;
use crate::paths::Path;

/// Peers whose shared box is kept; making one costs a Diffie-Hellman exchange.
const MAX_BOXES: usize = 16;

/// How many packets are looked at in one second: each costs as much as a handshake. A thousand active peers need 700.
const MAX_PER_SECOND: u32 = 1500;

/// By this address, with the region as the port, official nodes name a relay where an address of a peer is expected.
const RELAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 3, 3, 40);

/// Our side of path discovery.
pub(crate) struct Disco {
    key: DiscoPrivate,
    public: DiscoPublic,
    node_key: NodePublic,
    /// Boxes shared with the peers that were last heard of, newest last.
    boxes: Vec<(DiscoPublic, SharedBox)>,
    /// Which packets may be opened: by UDP, where anybody may be the sender, and through relays, which know theirs. A flood of one kind leaves the
    /// other its room.
    by_udp: Limiter,
    by_relay: Limiter,
}

/// What a disco packet means to the rest of the core.
#[derive(Debug)]
pub(crate) enum Heard {
    /// This peer is alive, and asked for a pong, which was sent.
    Ping(Arc<Peer>),
    /// This peer answered a ping.
    Pong {
        /// Whose answer it is.
        from: DiscoPublic,
        /// Which ping.
        tx_id: TxId,
        /// Where the peer saw it come from.
        seen_as: SocketAddr,
    },
    /// This peer would like to be pinged at these addresses.
    CallMeMaybe(Arc<Peer>, Vec<SocketAddr>),
}

impl Disco {
    /// Takes the new identity of this node.
    pub(crate) fn set_node_key(&mut self, node_key: NodePublic) {
        self.node_key = node_key;
    }

    pub(crate) fn new(key: DiscoPrivate, node_key: NodePublic) -> Self {
        Self {
            public: key.public(),
            key,
            node_key,
            boxes: Vec::new(),
            by_udp: Limiter::new(MAX_PER_SECOND),
            by_relay: Limiter::new(MAX_PER_SECOND),
        }
    }

    /// Takes a disco packet from `path`. Packets of unknown senders and those that do not open are dropped.
    pub(crate) fn handle(
        &mut self,
        packet: &mut [u8],
        path: Path,
        netmap: &Netmap,
        outbox: &mut Outbox,
        rng: &mut impl CryptoRngCore,
        now: Instant,
    ) -> Option<Heard> {
        let from = sender(packet)?;
        let mut peer = match path {
            Path::Derp { peer, .. } => netmap.peer_by_key(&peer).filter(|peer| peer.disco == from)?,
            Path::Udp(_) => netmap.peers_by_disco(&from).next()?,
        };
        let limiter = match path {
            Path::Udp(_) => &mut self.by_udp,
            Path::Derp { .. } => &mut self.by_relay,
        };
        if !limiter.allow(now) {
            return None;
        }
        let message = Message::open(packet, self.shared(from)).ok()?;
        match message {
            Message::Ping { tx_id, node_key, .. } => {
                if !node_key.is_zero() && node_key != peer.key {
                    // Nothing keeps a node from telling the control server a disco key that is not its own.
                    peer = netmap.peers_by_disco(&from).find(|peer| peer.key == node_key)?;
                    if matches!(path, Path::Derp { .. }) {
                        return None;
                    }
                }
                let src = match path {
                    Path::Udp(address) => address,
                    Path::Derp { region, .. } => {
                        SocketAddr::from((RELAY_ADDRESS, u16::try_from(region.0).unwrap_or(0)))
                    }
                };
                self.send(&Message::Pong { tx_id, src }, from, path, outbox, rng);
                Some(Heard::Ping(Arc::clone(peer)))
            }
            Message::Pong { tx_id, src } => Some(Heard::Pong {
                from,
                tx_id,
                seen_as: src,
            }),
            Message::CallMeMaybe { endpoints } => match path {
                Path::Derp { .. } => Some(Heard::CallMeMaybe(Arc::clone(peer), endpoints)),
                Path::Udp(_) => None,
            },
            Message::Unknown(_) => None,
        }
    }

    /// Sends a ping to `peer` on `path`.
    pub(crate) fn ping(
        &mut self,
        peer: &Peer,
        path: Path,
        outbox: &mut Outbox,
        rng: &mut impl CryptoRngCore,
    ) -> Result<TxId, PingError> {
        if peer.disco.is_zero() {
            return Err(PingError::Unsupported);
        }
        let tx_id = TxId::generate(rng);
        let message = Message::Ping {
            tx_id,
            node_key: self.node_key,
            padding: 0,
        };
        self.send(&message, peer.disco, path, outbox, rng);
        Ok(tx_id)
    }

    /// Tells `peer`, through a relay, where to ping us.
    pub(crate) fn call(
        &mut self,
        peer: &Peer,
        endpoints: Vec<SocketAddr>,
        path: Path,
        outbox: &mut Outbox,
        rng: &mut impl CryptoRngCore,
    ) {
        if !peer.disco.is_zero() {
            self.send(&Message::CallMeMaybe { endpoints }, peer.disco, path, outbox, rng);
        }
    }

    fn send(
        &mut self,
        message: &Message,
        to: DiscoPublic,
        path: Path,
        outbox: &mut Outbox,
        rng: &mut impl CryptoRngCore,
    ) {
        let public = self.public;
        let mut packet = Vec::with_capacity(128);
        if message.seal(&public, self.shared(to), rng, &mut packet).is_ok() {
            outbox.push(path, &packet);
        }
    }

    fn shared(&mut self, with: DiscoPublic) -> &SharedBox {
        let at = match self.boxes.iter().position(|(key, _)| *key == with) {
            Some(at) => at,
            None => {
                if self.boxes.len() == MAX_BOXES {
                    self.boxes.remove(0);
                }
                self.boxes.push((with, self.key.shared(&with)));
                self.boxes.len() - 1
            }
        };
        &self.boxes[at].1
    }

    /// Gives back what is only kept for speed.
    pub(crate) fn release(&mut self) {
        self.boxes = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;
    use tailwharf_wire::key::NodePrivate;
    use tailwharf_wire::tailcfg::{MapResponse, Node, NodeId, RegionId, StableId};

    use super::*;
    use crate::buffers::BufferPool;
    use crate::netmap::Interner;

    #[test]
    fn a_flood_through_a_relay_is_bounded_and_leaves_room_by_udp() {
        let mut rng = ChaCha20Rng::seed_from_u64(7);
        let (ours, theirs) = (NodePrivate::generate(&mut rng), NodePrivate::generate(&mut rng));
        let liar = DiscoPrivate::generate(&mut rng);
        let mut disco = Disco::new(DiscoPrivate::generate(&mut rng), ours.public());
        let node = |id: i64, key: NodePublic, disco_key: DiscoPublic| Node {
            id: NodeId(id),
            stable_id: StableId(format!("n{id}")),
            key,
            disco_key,
            ..Node::default()
        };
        let response = MapResponse {
            node: Some(node(1, ours.public(), disco.public)),
            peers: vec![node(2, theirs.public(), liar.public())],
            ..MapResponse::default()
        };
        let (netmap, errors) = Netmap::default().apply(&response, &Interner::default());
        assert_eq!(errors, []);
        let shared = liar.shared(&disco.public);
        let by_relay = Path::Derp {
            region: RegionId(1),
            peer: theirs.public(),
        };
        let by_udp = Path::Udp(SocketAddr::from(([192, 0, 2, 7], 41641)));
        let (mut outbox, now) = (Outbox::new(BufferPool::new()), Instant::now());
        let mut heard = |path: Path, disco: &mut Disco| {
            let ping = Message::Ping {
                tx_id: TxId::generate(&mut rng),
                node_key: theirs.public(),
                padding: 0,
            };
            let mut packet = Vec::new();
            ping.seal(&liar.public(), &shared, &mut rng, &mut packet).unwrap();
            let heard = disco.handle(&mut packet, path, &netmap, &mut outbox, &mut rng, now);
            usize::from(heard.is_some())
        };
        let most = MAX_PER_SECOND as usize;
        let answered: usize = (0..2 * most).map(|_| heard(by_relay, &mut disco)).sum();
        assert_eq!(answered, most);
        assert_eq!(heard(by_udp, &mut disco), 1);
    }
}
