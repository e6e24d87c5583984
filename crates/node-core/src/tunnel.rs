//! The tunnel: packets to peers and from peers, by WireGuard sessions that exist only for peers that talk.

mod handshakes;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailwharf_wire::key::{NodePrivate, NodePublic};

use self::handshakes::Handshake;
use crate::buffers::BufferPool;
use crate::core::Counters;
use crate::event::Event;
use crate::netmap::{Netmap, Peer};
use crate::outbox::Outbox;
use crate::paths::{Path, Paths};
use crate::session::{INITIATION_LEN, Identity, Message, OVERHEAD, Opened, Session, Tick};

/// How often a session looks at the clock while it is used. WireGuard's timers count 5, 10, 120 seconds.
const TICK: Duration = Duration::from_secs(1);
/// How often it does when nothing was said for [`QUIET_AFTER`].
const QUIET_TICK: Duration = Duration::from_secs(20);
/// Longer than a keep-alive (10 s) and a retry after silence (15 s) take.
const QUIET_AFTER: Duration = Duration::from_secs(30);
/// When a session without data is dropped. Keys end after 180 s, so the peer has nothing left of it either.
const IDLE_AFTER: Duration = Duration::from_secs(190);
/// Session numbers have 24 bits.
const INDEX_MASK: u32 = 0x00ff_ffff;

/// All sessions of a node, with the ways to its peers.
pub(crate) struct Tunnel {
    pub(crate) netmap: Netmap,
    pub(crate) paths: Paths,
    pub(crate) outbox: Outbox,
    pub(crate) events: VecDeque<Event>,
    pub(crate) counters: Counters,
    accept_routes: bool,
    identity: Identity,
    sessions: HashMap<NodePublic, Entry>,
    indices: HashMap<u32, NodePublic>,
    next_index: u32,
    ticks: BinaryHeap<Reverse<(Instant, u32)>>,
    /// When handshakes want to be looked at.
    agenda: BinaryHeap<Reverse<(Instant, u32)>>,
    held: VecDeque<Held>,
}

struct Entry {
    session: Session,
    index: u32,
    peer: Arc<Peer>,
    /// When data last went either way.
    used: Instant,
    handshake: Handshake,
    /// Whether the shell was told that this peer is active.
    announced: bool,
}

struct Held {
    peer: NodePublic,
    datagram: Box<[u8]>,
    path: Path,
    until: Instant,
}

impl Tunnel {
    pub(crate) fn new(
        node_key: &NodePrivate,
        buffers: Arc<BufferPool>,
        accept_routes: bool,
        direct: bool,
        first_index: u32,
    ) -> Self {
        Self {
            netmap: Netmap::default(),
            paths: Paths::new(direct),
            outbox: Outbox::new(buffers),
            events: VecDeque::new(),
            counters: Counters::default(),
            accept_routes,
            identity: Identity::new(node_key),
            sessions: HashMap::new(),
            indices: HashMap::new(),
            next_index: first_index & INDEX_MASK,
            ticks: BinaryHeap::new(),
            agenda: BinaryHeap::new(),
            held: VecDeque::new(),
        }
    }

    /// Takes a new identity. Sessions and what was kept belong to the old one.
    pub(crate) fn set_node_key(&mut self, node_key: &NodePrivate) {
        self.identity = Identity::new(node_key);
        self.sessions.clear();
        self.indices.clear();
        self.ticks.clear();
        self.agenda.clear();
        self.held.clear();
    }

    /// The peer to which packets for `address` go.
    pub(crate) fn route(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.netmap
            .route(address, self.accept_routes)
            .filter(|peer| !peer.expired)
    }

    /// Sends an IP packet to whoever has its destination.
    pub(crate) fn send(&mut self, packet: &[u8], destination: IpAddr, now: Instant) {
        let Some(peer) = self.route(destination).cloned() else {
            self.counters.no_route += 1;
            return;
        };
        self.send_to(&peer, packet, now);
    }

    /// Sends an IP packet to this peer.
    pub(crate) fn send_to(&mut self, peer: &Arc<Peer>, packet: &[u8], now: Instant) {
        self.paths.used(peer, now);
        let ways = self.paths.ways(peer, now);
        let Some(surest) = ways.surest() else {
            self.counters.no_route += 1;
            return;
        };
        self.prepare(peer, now);
        let Some(entry) = self.sessions.get_mut(&peer.key) else {
            return;
        };
        entry.used = now;
        self.counters.packets_out += 1;
        let session = &mut entry.session;
        if session.is_established() {
            let room = (packet.len() + OVERHEAD).max(INITIATION_LEN);
            self.outbox.push_ways(ways, room, |out| session.seal(packet, out));
        } else {
            self.send_later(&peer.key, packet, surest, now);
        }
    }

    /// Takes a WireGuard message. If it holds an IP packet that its sender may send, the packet is then at the start of `plain`.
    pub(crate) fn receive(
        &mut self,
        datagram: &[u8],
        path: Path,
        plain: &mut Vec<u8>,
        now: Instant,
    ) -> Option<(Arc<Peer>, usize)> {
        make_room(plain, datagram.len());
        match self.identity.identify(datagram, path, now) {
            Message::Initiation(key) => {
                self.initiation(&key, datagram, path, now);
                None
            }
            Message::Indexed { index, data } => {
                let Some(key) = self.indices.get(&index).copied() else {
                    self.unknown_session(path, data, now);
                    return None;
                };
                self.open(&key, datagram, path, plain, now)
            }
            Message::Cookie(reply) => {
                self.outbox.push(path, &reply);
                None
            }
            Message::Invalid => {
                self.counters.invalid += 1;
                None
            }
        }
    }

    fn open(
        &mut self,
        key: &NodePublic,
        datagram: &[u8],
        path: Path,
        plain: &mut [u8],
        now: Instant,
    ) -> Option<(Arc<Peer>, usize)> {
        self.refresh(key, now);
        let entry = self.sessions.get_mut(key)?;
        let opened = entry.session.open(datagram, path, plain);
        let result = match opened {
            Opened::Invalid => {
                self.counters.invalid += 1;
                return None;
            }
            Opened::Nothing => None,
            Opened::Send(length) => {
                self.outbox.push(path, &plain[..length]);
                None
            }
            Opened::Packet(length) => {
                entry.used = now;
                self.counters.packets_in += 1;
                self.paths.used(&entry.peer, now);
                Some((Arc::clone(&entry.peer), length))
            }
        };
        self.paths.heard(&entry.peer, path, now);
        self.heard(key, datagram, now);
        let entry = self.sessions.get_mut(key)?;
        let is_waiting = !entry.announced || entry.session.has_queued();
        if is_waiting && entry.session.is_established() {
            if !entry.announced {
                entry.announced = true;
                self.events.push_back(Event::PeerActive {
                    peer: Arc::clone(&entry.peer),
                    path,
                });
            }
            while entry.session.has_queued() {
                let session = &mut entry.session;
                // Room for the largest packet that can be waiting.
                self.outbox
                    .push_with(path, crate::packet::INNER_MTU + OVERHEAD, |out| {
                        session.flush(out)
                    });
            }
        }
        result
    }

    /// Makes a peer's session if there is none, and brings its idea of the time up to date.
    fn prepare(&mut self, peer: &Arc<Peer>, now: Instant) {
        self.refresh(&peer.key, now);
        if self.sessions.contains_key(&peer.key) {
            return;
        }
        let mut index = self.next_index;
        while self.indices.contains_key(&index) {
            index = (index + 1) & INDEX_MASK;
        }
        self.next_index = (index + 1) & INDEX_MASK;
        self.indices.insert(index, peer.key);
        self.ticks.push(Reverse((now + TICK, index)));
        let entry = Entry {
            session: Session::new(&self.identity, &peer.key, index, now),
            index,
            peer: Arc::clone(peer),
            used: now,
            handshake: Handshake::default(),
            announced: false,
        };
        self.sessions.insert(peer.key, entry);
    }

    fn drop_session(&mut self, key: &NodePublic) {
        if let Some(entry) = self.sessions.remove(key) {
            self.indices.remove(&entry.index);
        }
        if self.sessions.is_empty() {
            // An idle node holds no tables.
            self.sessions = HashMap::new();
            self.indices = HashMap::new();
            self.ticks = BinaryHeap::new();
            self.agenda = BinaryHeap::new();
        }
    }

    /// Brings a session's own idea of the time up to date before it is used.
    fn refresh(&mut self, key: &NodePublic, now: Instant) {
        if self
            .sessions
            .get(key)
            .is_some_and(|entry| entry.session.is_stale(now))
        {
            self.tick(key, now);
        }
    }

    /// Lets a session look at the clock. It is dropped if it ended.
    fn tick(&mut self, key: &NodePublic, now: Instant) {
        let Some(entry) = self.sessions.get_mut(key) else {
            return;
        };
        let mut message = [0; INITIATION_LEN];
        match entry.session.tick(&mut message, now) {
            Tick::Nothing => {}
            Tick::Send(length) => self.send_ticked(key, &message[..length], now),
            Tick::Expired => self.drop_session(key),
        }
    }

    /// Takes a new netmap. Sessions of peers that are gone or have a new process end; initiations that waited for their peer are answered.
    pub(crate) fn set_netmap(&mut self, netmap: Netmap, now: Instant) {
        let same_peers = self.netmap.same_peers(&netmap);
        self.netmap = netmap;
        if same_peers {
            return;
        }
        let mut ended = Vec::new();
        for (key, entry) in &mut self.sessions {
            let Some(peer) = self.netmap.peer_by_key(key).filter(|peer| !peer.expired) else {
                ended.push(*key);
                continue;
            };
            let fresh = entry.handshake.is_fresh(now);
            let restarted = !entry.peer.disco.is_zero() && peer.disco != entry.peer.disco;
            self.paths.told(peer, restarted, now);
            if restarted && !fresh {
                ended.push(*key);
            } else {
                entry.peer = Arc::clone(peer);
            }
        }
        for key in ended {
            self.drop_session(&key);
            self.paths.forget(&key);
        }
        self.take_held(now);
    }

    /// Peers with a session, those that talked last first.
    pub(crate) fn active_peers(&self) -> Vec<Arc<Peer>> {
        let mut active: Vec<&Entry> = self.sessions.values().filter(|entry| entry.announced).collect();
        active.sort_by_key(|entry| (Reverse(entry.used), entry.index));
        active.into_iter().map(|entry| Arc::clone(&entry.peer)).collect()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// When a session wants to look at the clock, or a handshake to go on.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        let tick = self.ticks.peek().map(|Reverse((at, _))| *at);
        let handshake = self.agenda.peek().map(|Reverse((at, _))| *at);
        tick.into_iter().chain(handshake).min()
    }

    /// When a kept initiation ends.
    pub(crate) fn next_held(&self) -> Option<Instant> {
        self.held.front().map(|held| held.until)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.held.retain(|held| held.until > now);
        if self.held.is_empty() {
            self.held = VecDeque::new();
        }
        self.attend_all(now);
        while let Some(Reverse((at, index))) = self.ticks.peek().copied() {
            if at > now {
                break;
            }
            self.ticks.pop();
            let Some(key) = self.indices.get(&index).copied() else {
                continue;
            };
            self.tick(&key, now);
            let Some(entry) = self.sessions.get(&key) else {
                continue;
            };
            let idle = now.duration_since(entry.used);
            if idle >= IDLE_AFTER {
                self.drop_session(&key);
                self.paths.forget(&key);
            } else {
                self.ticks.push(Reverse((
                    now + if idle >= QUIET_AFTER { QUIET_TICK } else { TICK },
                    index,
                )));
            }
        }
    }
}

/// Makes a buffer large enough for what can come of a message of this length.
fn make_room(buffer: &mut Vec<u8>, length: usize) {
    let room = length.max(INITIATION_LEN);
    if buffer.len() < room {
        buffer.resize(room, 0);
    }
}
