//! Ways to a peer, and which one its packets take.
//!
//! Packets begin through the relay. While a peer is talked with, all addresses at which it may be are pinged, and it is asked through the relay to ping ours;
//! the best that answers becomes the direct path:
//!
//! ```text
//!            pong                     heartbeat unanswered
//! relay ─────────────► direct ───────────────────────────────► both ways
//!   ▲                    ▲            or trust ran out             │
//!   │                    └──────────────── pong ◄──────────────────┤
//!   └────────────────────────────────────── ping timed out ◄───────┘
//! ```

mod candidates;
mod entry;
mod state;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque, hash_map};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tailwharf_wire::disco::TxId;
use tailwharf_wire::key::NodePublic;
use tailwharf_wire::tailcfg::RegionId;

use self::entry::Entry;
pub use self::state::{PathState, PeerPath, RelayReason};
use crate::endpoints::NetFacts;
use crate::netmap::Peer;

/// A way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Through the relay of a region.
    Derp {
        /// The region.
        region: RegionId,
        /// The peer, by which relays address packets.
        peer: NodePublic,
    },
    /// By UDP to this address.
    Udp(SocketAddr),
}

/// The ways that a packet takes: one, or both while the direct one is in doubt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    pub(crate) direct: Option<Path>,
    pub(crate) relay: Option<Path>,
}

impl Ways {
    /// The one that is known to work, as far as anything is known.
    pub(crate) fn surest(self) -> Option<Path> {
        self.relay.or(self.direct)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Path> {
        self.direct.into_iter().chain(self.relay)
    }
}

/// What has to be said to find paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ping the peer at this address.
    Ping(NodePublic, SocketAddr),
    /// Tell the peer through the relay where to ping us.
    Call(NodePublic),
}

/// How long a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How many pings may be under way; the oldest is given up first.
const MAX_PENDING: usize = 2048;
/// How many pings are sent in one second. What is left out has its turn in a later round.
const MAX_PINGS_PER_SECOND: u32 = 512;

/// A ping under way.
#[derive(Clone, Copy, Debug)]
struct Pending {
    tx_id: TxId,
    peer: NodePublic,
    to: SocketAddr,
    sent: Instant,
}

/// The paths of all peers that talk.
#[derive(Debug)]
pub(crate) struct Paths {
    /// Whether direct paths are looked for.
    direct: bool,
    peers: HashMap<NodePublic, Entry>,
    /// Oldest first.
    pending: VecDeque<Pending>,
    actions: VecDeque<Action>,
    deadlines: BinaryHeap<Reverse<(Instant, NodePublic)>>,
    /// Peers whose path is another than before.
    changed: Vec<NodePublic>,
    /// The second in which pings are counted, and how many there were.
    rate: Option<(Instant, u32)>,
    /// When an IP packet last went either way, to or from anybody.
    used: Option<Instant>,
}

impl Paths {
    pub(crate) fn new(direct: bool) -> Self {
        Self {
            direct,
            peers: HashMap::new(),
            pending: VecDeque::new(),
            actions: VecDeque::new(),
            deadlines: BinaryHeap::new(),
            changed: Vec::new(),
            rate: None,
            used: None,
        }
    }

    /// The ways of packets to `peer`; none if nothing is known of where it is.
    pub(crate) fn ways(&self, peer: &Peer, now: Instant) -> Ways {
        let entry = self.peers.get(&peer.key);
        let direct = entry.and_then(Entry::best).map(|(address, _)| Path::Udp(address));
        if entry.is_some_and(|entry| entry.is_trusted(now)) {
            return Ways { direct, relay: None };
        }
        let heard = entry.and_then(|entry| entry.relay(now));
        let region = heard.unwrap_or(peer.home);
        let relay = (!region.is_none()).then_some(Path::Derp {
            region,
            peer: peer.key,
        });
        Ways { direct, relay }
    }

    /// Notes that an authentic message of `peer` came this way.
    pub(crate) fn heard(&mut self, peer: &Peer, path: Path, now: Instant) {
        self.make_entry(peer, now);
        let Some(entry) = self.peers.get_mut(&peer.key) else {
            return;
        };
        match path {
            Path::Derp { region, .. } => entry.heard_by_relay(region, now),
            Path::Udp(from) if self.direct => entry.heard_from(&peer.key, from, now, &mut self.actions),
            Path::Udp(_) => {}
        }
    }

    /// Notes that a ping of `peer` came this way.
    pub(crate) fn pinged_by(&mut self, peer: &Peer, path: Path, now: Instant) {
        match path {
            Path::Udp(from) if self.direct => {
                self.make_entry(peer, now);
                if let Some(entry) = self.peers.get_mut(&peer.key) {
                    entry.pinged_from(&peer.key, from, now, &mut self.actions);
                }
            }
            _ => self.heard(peer, path, now),
        }
    }

    /// The ways of IP packets that go to `peer` now.
    pub(crate) fn departure(&mut self, peer: &Peer, now: Instant) -> Ways {
        self.used(peer, now);
        if let Some(entry) = self.peers.get_mut(&peer.key)
            && entry.note_departure(now)
        {
            self.reschedule(&peer.key, now);
        }
        self.ways(peer, now)
    }

    /// Notes that an IP packet goes to, or came from, `peer`.
    pub(crate) fn used(&mut self, peer: &Peer, now: Instant) {
        self.used = Some(now);
        self.make_entry(peer, now);
        if let Some(entry) = self.peers.get_mut(&peer.key)
            && entry.note_use(now)
        {
            entry.told(&peer.endpoints, now);
            self.step(&peer.key, now);
        }
    }

    /// Whether anybody was talked with lately, so that our own addresses must stay known.
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.direct && self.used.is_some_and(|at| now.duration_since(at) < entry::ACTIVE)
    }

    /// The peer asks, through a relay, to be pinged at these addresses.
    pub(crate) fn called(&mut self, peer: &Peer, endpoints: &[SocketAddr], now: Instant) {
        self.make_entry(peer, now);
        if self.direct
            && let Some(entry) = self.peers.get_mut(&peer.key)
        {
            entry.called(&peer.key, endpoints, now, &mut self.actions);
        }
    }

    /// Takes what the netmap tells of a peer now. `restarted`: its process is another one, so what was known of its paths is void.
    pub(crate) fn told(&mut self, peer: &Peer, restarted: bool, now: Instant) {
        let Some(entry) = self.peers.get_mut(&peer.key) else {
            return;
        };
        if restarted {
            self.pending.retain(|ping| ping.peer != peer.key);
            if entry.restarted() {
                self.changed.push(peer.key);
            }
        }
        if entry.told(&peer.endpoints, now) {
            self.step(&peer.key, now);
        }
    }

    /// Our own addresses are others than before. With `moved`, paths that stood may not stand any more.
    pub(crate) fn own_endpoints_changed(&mut self, moved: bool, now: Instant) {
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            if let Some(entry) = self.peers.get_mut(&key) {
                entry.own_endpoints_changed(moved, now);
                self.step(&key, now);
            }
        }
    }

    /// The next thing to say. Pings beyond what is bearable are left out.
    pub(crate) fn next_action(&mut self, now: Instant) -> Option<Action> {
        loop {
            let action = self.actions.pop_front();
            if action.is_none() && self.actions.capacity() > 64 {
                self.actions = VecDeque::new();
            }
            let action = action?;
            if matches!(action, Action::Call(_)) || self.may_ping(now) {
                return Some(action);
            }
        }
    }

    fn may_ping(&mut self, now: Instant) -> bool {
        let (since, count) = self
            .rate
            .filter(|(since, _)| now.duration_since(*since) < Duration::from_secs(1))
            .unwrap_or((now, 0));
        self.rate = Some((since, count + 1));
        count < MAX_PINGS_PER_SECOND
    }

    /// Notes that an [`Action::Ping`] was sent.
    pub(crate) fn pinged(&mut self, tx_id: TxId, peer: NodePublic, to: SocketAddr, now: Instant) {
        if self.pending.len() >= MAX_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back(Pending {
            tx_id,
            peer,
            to,
            sent: now,
        });
    }

    /// Takes the answer to a ping, if it comes from the peer that was pinged. Says whether it was one of ours.
    pub(crate) fn ponged(
        &mut self,
        tx_id: TxId,
        is_from: impl Fn(&NodePublic) -> bool,
        now: Instant,
    ) -> bool {
        let open = self
            .pending
            .iter()
            .position(|ping| ping.tx_id == tx_id && is_from(&ping.peer));
        let Some(ping) = open.and_then(|at| self.pending.remove(at)) else {
            return false;
        };
        if let Some(entry) = self.peers.get_mut(&ping.peer) {
            if entry.ponged(ping.to, now.duration_since(ping.sent), now) {
                self.changed.push(ping.peer);
            }
            self.reschedule(&ping.peer, now);
        }
        true
    }

    /// A peer whose path is another than when this was last asked.
    pub(crate) fn next_change(&mut self) -> Option<NodePublic> {
        self.changed.pop()
    }

    /// How packets to a peer go, for people.
    pub(crate) fn state(&self, peer: &Peer, facts: NetFacts, now: Instant) -> PathState {
        let entry = self.peers.get(&peer.key);
        if let Some((address, latency)) = entry.and_then(Entry::best) {
            return PathState::Direct { address, latency };
        }
        let region = entry.and_then(|entry| entry.relay(now)).unwrap_or(peer.home);
        let why = if !self.direct {
            RelayReason::Off
        } else if facts.udp == Some(false) {
            RelayReason::NoUdp
        } else {
            match entry.map_or(RelayReason::Searching, Entry::why_relay) {
                RelayReason::NoAnswer if facts.mapping_varies == Some(true) => RelayReason::MappingVaries,
                RelayReason::NoAnswer if facts.translated == Some(true) => RelayReason::Translated,
                why => why,
            }
        };
        PathState::Relay { region, why }
    }

    /// A relay does not have the peer any more.
    pub(crate) fn relay_lost(&mut self, peer: &NodePublic) {
        if let Some(entry) = self.peers.get_mut(peer) {
            entry.relay_lost();
        }
    }

    /// Forgets what was learned of a peer.
    pub(crate) fn forget(&mut self, peer: &NodePublic) {
        if self.peers.remove(peer).is_some() {
            self.changed.push(*peer);
        }
        if self.peers.is_empty() {
            // An idle node holds no tables.
            self.peers = HashMap::new();
            self.pending = VecDeque::new();
            self.deadlines = BinaryHeap::new();
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let entry = self.deadlines.peek().map(|Reverse((at, _))| *at);
        let ping = self.pending.front().map(|ping| ping.sent + PING_TIMEOUT);
        entry.into_iter().chain(ping).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(ping) = self.pending.front().copied()
            && ping.sent + PING_TIMEOUT <= now
        {
            self.pending.pop_front();
            if let Some(entry) = self.peers.get_mut(&ping.peer)
                && entry.ping_lost(ping.to, ping.sent, now)
            {
                self.changed.push(ping.peer);
                self.step(&ping.peer, now);
            }
        }
        while let Some(Reverse((at, key))) = self.deadlines.peek().copied()
            && at <= now
        {
            self.deadlines.pop();
            let Some(entry) = self.peers.get_mut(&key) else {
                continue;
            };
            if entry.next != Some(at) {
                continue;
            }
            entry.next = None;
            if entry.is_forgotten(now) {
                self.forget(&key);
            } else {
                self.step(&key, now);
            }
        }
    }

    fn make_entry(&mut self, peer: &Peer, now: Instant) {
        if let hash_map::Entry::Vacant(place) = self.peers.entry(peer.key) {
            place.insert(Entry::new(&peer.endpoints, now));
            self.reschedule(&peer.key, now);
        }
    }

    /// Lets a peer's paths say what is due, and when to look again.
    fn step(&mut self, key: &NodePublic, now: Instant) {
        if self.direct
            && let Some(entry) = self.peers.get_mut(key)
        {
            let before = entry.why_relay();
            entry.step(key, now, &mut self.actions);
            if entry.why_relay() != before {
                self.changed.push(*key);
            }
        }
        self.reschedule(key, now);
    }

    fn reschedule(&mut self, key: &NodePublic, now: Instant) {
        let direct = self.direct;
        if let Some(entry) = self.peers.get_mut(key) {
            let due = entry.due(direct, now);
            // A later deadline is found when the earlier one comes.
            if entry.next.is_none_or(|next| due < next) {
                entry.next = Some(due);
                self.deadlines.push(Reverse((due, *key)));
            }
        }
    }
}
