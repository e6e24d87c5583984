//! The tunnel: packets to peers and from peers, by WireGuard sessions that exist only for peers that talk.

mod handshakes;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tailwharf_wire::key::{NodePrivate, NodePublic};
use tailwharf_wire::tailcfg::StableId;

use self::handshakes::Handshake;
use crate::buffers::BufferPool;
use crate::core::Counters;
use crate::event::Event;
use crate::netmap::{Netmap, Peer};
use crate::outbox::Outbox;
use crate::paths::{Path, Paths, Ways};
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
    /// The peer that takes what nobody else has, by its id and, while it is there and offers that, itself.
    exit_node: Option<StableId>,
    exit_peer: Option<Arc<Peer>>,
    identity: Identity,
    /// By our number.
    sessions: HashMap<u32, Entry>,
    by_key: HashMap<NodePublic, u32>,
    next_index: u32,
    ticks: BinaryHeap<Reverse<(Instant, u32)>>,
    /// When handshakes want to be looked at.
    agenda: BinaryHeap<Reverse<(Instant, u32)>>,
    held: VecDeque<Held>,
    /// Where packets went last, as long as it is the same moment.
    last: Option<Last>,
}

struct Entry {
    session: Session,
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

/// What was found out for a packet holds for the next one to the same peer in the same batch.
struct Last {
    now: Instant,
    peer: NodePublic,
    index: u32,
    ways: Ways,
}

/// What became of a data message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// So many bytes are an IP packet.
    Packet(usize),
    /// It holds nothing: the peer keeps the session alive.
    Empty,
    /// It is not authentic, repeated or late.
    Invalid,
}

/// Seals packets for one peer.
pub(crate) struct Sender<'a> {
    tunnel: &'a mut Tunnel,
    index: u32,
    ways: Ways,
    now: Instant,
}

impl Sender<'_> {
    pub(crate) fn send(&mut self, packet: &[u8]) {
        let Tunnel {
            sessions,
            outbox,
            counters,
            ..
        } = &mut *self.tunnel;
        let Some(entry) = sessions.get_mut(&self.index) else {
            return;
        };
        counters.packets_out += 1;
        let session = &mut entry.session;
        if session.is_established() {
            let room = (packet.len() + OVERHEAD).max(INITIATION_LEN);
            outbox.push_ways(self.ways, room, |out| session.seal(packet, out));
        } else if let Some(path) = self.ways.surest() {
            self.tunnel.send_later(self.index, packet, path, self.now);
        }
    }
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
            exit_node: None,
            exit_peer: None,
            identity: Identity::new(node_key),
            sessions: HashMap::new(),
            by_key: HashMap::new(),
            next_index: first_index & INDEX_MASK,
            ticks: BinaryHeap::new(),
            agenda: BinaryHeap::new(),
            held: VecDeque::new(),
            last: None,
        }
    }

    /// Takes a new identity. Sessions and what was kept belong to the old one.
    pub(crate) fn set_node_key(&mut self, node_key: &NodePrivate) {
        self.identity = Identity::new(node_key);
        self.sessions.clear();
        self.last = None;
        self.by_key.clear();
        self.ticks.clear();
        self.agenda.clear();
        self.held.clear();
    }

    /// Whether subnets of peers are used, and which peer takes what nobody else has.
    pub(crate) fn set_routing(&mut self, accept_routes: bool, exit_node: Option<StableId>) {
        self.accept_routes = accept_routes;
        self.exit_node = exit_node;
        self.find_exit();
    }

    fn find_exit(&mut self) {
        self.exit_peer = self.exit_node.as_ref().and_then(|id| {
            let mut peers = self.netmap.peers();
            peers.find(|peer| peer.stable_id == *id).cloned()
        });
    }

    /// The peer to which packets for `address` go.
    pub(crate) fn route(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        let takes = |net: &IpNet| net.prefix_len() == 0 && net.contains(&address);
        self.netmap
            .route(address, self.accept_routes)
            .or_else(|| {
                let exit = self.exit_peer.as_ref();
                exit.filter(|peer| peer.allowed_ips.iter().any(takes))
            })
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

    /// Something came from outside: what was found out for packets that were sent before may not hold.
    pub(crate) fn begin_batch(&mut self) {
        self.last = None;
    }

    /// Sends an IP packet to this peer.
    pub(crate) fn send_to(&mut self, peer: &Arc<Peer>, packet: &[u8], now: Instant) {
        if let Some(mut sender) = self.sender(peer, now) {
            sender.send(packet);
        }
    }

    /// What seals packets for a peer, several in a row; `None` if no way to it is known.
    pub(crate) fn sender(&mut self, peer: &Arc<Peer>, now: Instant) -> Option<Sender<'_>> {
        let last = self.last.as_ref();
        if let Some(last) = last.filter(|last| last.now == now && last.peer == peer.key) {
            let (index, ways) = (last.index, last.ways);
            return Some(Sender {
                tunnel: self,
                index,
                ways,
                now,
            });
        }
        let ways = self.paths.departure(peer, now);
        if ways.surest().is_none() {
            self.counters.no_route += 1;
            return None;
        }
        let index = self.prepare(peer, now);
        self.sessions.get_mut(&index)?.used = now;
        self.last = Some(Last {
            now,
            peer: peer.key,
            index,
            ways,
        });
        Some(Sender {
            tunnel: self,
            index,
            ways,
            now,
        })
    }

    /// Takes a WireGuard message that is not a data message: it never holds an IP packet.
    pub(crate) fn receive(&mut self, datagram: &[u8], path: Path, now: Instant) {
        let mut out = [0; INITIATION_LEN];
        match self.identity.identify(datagram, path, now) {
            Message::Initiation(key) => self.initiation(&key, datagram, path, now),
            Message::Indexed(index) => {
                let Some(entry) = self.refreshed(index, now) else {
                    self.counters.invalid += 1;
                    return;
                };
                match entry.session.open(datagram, path, &mut out) {
                    Opened::Send(length) => self.outbox.push(path, &out[..length]),
                    Opened::Nothing => {}
                    Opened::Invalid | Opened::Packet(_) => {
                        self.counters.invalid += 1;
                        return;
                    }
                }
                self.heard(index, path, now);
                self.completed(index, datagram, now);
            }
            Message::Cookie(reply) => self.outbox.push(path, &reply),
            Message::Invalid => self.counters.invalid += 1,
        }
    }

    /// The peer whose session has this number. A message for a session that is gone is counted, and answered where that helps.
    pub(crate) fn session_peer(&mut self, index: u32, path: Path, now: Instant) -> Option<Arc<Peer>> {
        if let Some(entry) = self.refreshed(index, now) {
            return Some(Arc::clone(&entry.peer));
        }
        self.unknown_session(path, now);
        None
    }

    /// Opens a data message into `out`, which has room for it. What follows from it for the peer's paths is left to one [`Self::heard`] and [`Self::used`] for
    /// all messages of a batch.
    pub(crate) fn open(&mut self, index: u32, datagram: &[u8], path: Path, out: &mut [u8]) -> Data {
        let Some(entry) = self.sessions.get_mut(&index) else {
            return Data::Invalid;
        };
        match entry.session.open(datagram, path, out) {
            Opened::Packet(length) => {
                self.counters.packets_in += 1;
                Data::Packet(length)
            }
            Opened::Nothing => Data::Empty,
            Opened::Send(_) | Opened::Invalid => {
                self.counters.invalid += 1;
                Data::Invalid
            }
        }
    }

    /// IP packets of this session's peer came in.
    pub(crate) fn used(&mut self, index: u32, now: Instant) {
        if let Some(entry) = self.sessions.get_mut(&index) {
            entry.used = now;
            self.paths.used(&entry.peer, now);
        }
    }

    /// Authentic messages of this session's peer came by this way. Packets that waited for that go out.
    pub(crate) fn heard(&mut self, index: u32, path: Path, now: Instant) {
        let Some(entry) = self.sessions.get_mut(&index) else {
            return;
        };
        self.paths.heard(&entry.peer, path, now);
        entry.handshake.confirmed();
        let is_waiting = !entry.announced || entry.session.has_queued();
        if !is_waiting || !entry.session.is_established() {
            return;
        }
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

    /// Makes a peer's session if there is none, and brings its idea of the time up to date. Gives its number.
    fn prepare(&mut self, peer: &Arc<Peer>, now: Instant) -> u32 {
        if let Some(index) = self.by_key.get(&peer.key).copied()
            && self.refreshed(index, now).is_some()
        {
            return index;
        }
        let mut index = self.next_index;
        while self.sessions.contains_key(&index) {
            index = (index + 1) & INDEX_MASK;
        }
        self.next_index = (index + 1) & INDEX_MASK;
        self.by_key.insert(peer.key, index);
        self.ticks.push(Reverse((now + TICK, index)));
        let entry = Entry {
            session: Session::new(&self.identity, &peer.key, index, now),
            peer: Arc::clone(peer),
            used: now,
            handshake: Handshake::default(),
            announced: false,
        };
        self.sessions.insert(index, entry);
        index
    }

    fn drop_session(&mut self, index: u32) {
        self.last = None;
        if let Some(entry) = self.sessions.remove(&index) {
            self.by_key.remove(&entry.peer.key);
        }
        if self.sessions.is_empty() {
            // An idle node holds no tables.
            self.sessions = HashMap::new();
            self.by_key = HashMap::new();
            self.ticks = BinaryHeap::new();
            self.agenda = BinaryHeap::new();
        }
    }

    /// A session whose own idea of the time is up to date.
    fn refreshed(&mut self, index: u32, now: Instant) -> Option<&mut Entry> {
        if self.sessions.get(&index)?.session.is_stale(now) {
            self.tick(index, now);
        }
        self.sessions.get_mut(&index)
    }

    /// Lets a session look at the clock. It is dropped if it ended.
    fn tick(&mut self, index: u32, now: Instant) {
        let Some(entry) = self.sessions.get_mut(&index) else {
            return;
        };
        let mut message = [0; INITIATION_LEN];
        match entry.session.tick(&mut message, now) {
            Tick::Nothing => {}
            Tick::Send(length) => self.send_ticked(index, &message[..length], now),
            Tick::Expired => self.drop_session(index),
        }
    }

    /// Takes a new netmap. Sessions of peers that are gone or have a new process end; initiations that waited for their peer are answered.
    pub(crate) fn set_netmap(&mut self, netmap: Netmap, now: Instant) {
        let same_peers = self.netmap.same_peers(&netmap);
        self.netmap = netmap;
        self.last = None;
        if same_peers {
            return;
        }
        self.find_exit();
        let mut ended = Vec::new();
        for (index, entry) in &mut self.sessions {
            let known = self.netmap.peer_by_key(&entry.peer.key);
            let Some(peer) = known.filter(|peer| !peer.expired) else {
                ended.push((*index, entry.peer.key));
                continue;
            };
            let fresh = entry.handshake.is_fresh(now);
            let restarted = !entry.peer.disco.is_zero() && peer.disco != entry.peer.disco;
            self.paths.told(peer, restarted, now);
            if restarted && !fresh {
                ended.push((*index, peer.key));
            } else {
                entry.peer = Arc::clone(peer);
            }
        }
        for (index, key) in ended {
            self.drop_session(index);
            self.paths.forget(&key);
        }
        self.take_held(now);
    }

    /// Peers with a session, those that talked last first.
    pub(crate) fn active_peers(&self) -> Vec<Arc<Peer>> {
        let mut active: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, entry)| entry.announced)
            .collect();
        active.sort_by_key(|(index, entry)| (Reverse(entry.used), **index));
        active
            .into_iter()
            .map(|(_, entry)| Arc::clone(&entry.peer))
            .collect()
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
        self.last = None;
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
            self.tick(index, now);
            let Some(entry) = self.sessions.get(&index) else {
                continue;
            };
            let idle = now.duration_since(entry.used);
            if idle >= IDLE_AFTER {
                let key = entry.peer.key;
                self.drop_session(index);
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
