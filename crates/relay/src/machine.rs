//! Who is connected, what is queued for whom, and who is told that whom is gone.
//!
//! The shell tells the machine what happened (`connect`, `handle_packet`, `handle_frame`, `handle_timeout`, `disconnect`) and
//! obeys its commands ([`Machine::poll_command`]): wake a client's writer, which then takes what is queued for it
//! ([`Machine::take`]), or close a client's connection. It reads no more from a client than [`Machine::paced`] allows.

mod pace;
mod queue;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwharf_wire::derp::{Frame, PeerGoneReason};
use tailwharf_wire::disco;
use tailwharf_wire::key::NodePublic;

use self::pace::Bucket;
pub use self::pace::Rate;
use self::queue::Queue;

/// Bytes of data that wait for one client. When more comes, the oldest packets are dropped: who sends too much soon hears of
/// it, and nobody waits for what is stale.
pub const QUEUE_LEN: usize = 256 * 1024;
/// The same, while more than [`MAX_QUEUED`] bytes wait for all clients.
pub const SHORT_QUEUE_LEN: usize = 16 * 1024;
/// Bytes that may wait for all clients before the queues become short.
pub const MAX_QUEUED: usize = 128 * 1024 * 1024;
/// Bytes of disco that wait for one client: it looks for direct paths, and only the newest attempts matter.
const DISCO_QUEUE_LEN: usize = 8 * 1024;
/// Other frames that wait for one client. When one more comes, the oldest is dropped: all of them only speed things up.
const CONTROL_QUEUE_LEN: usize = 64;
/// Peers that are told when one client disconnects.
const MAX_CORRESPONDENTS: usize = 4096;
/// How often a client hears from the relay. Clients give up after 120 s of silence.
const BEAT: Duration = Duration::from_secs(60);
/// Spread of the beat, so that clients which connected together do not beat together.
const BEAT_JITTER: Duration = Duration::from_secs(5);
/// How long a client that answers pings may be silent.
const MAX_SILENCE: Duration = Duration::from_secs(140);
/// [`PeerGoneReason::NotHere`] frames for one client: this many at once, then one each second.
const NOT_HERE_BURST: u32 = 3;
const NOT_HERE_INTERVAL: Duration = Duration::from_secs(1);

/// A connection of a client. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u64);

/// What the shell has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Call [`Machine::take`] for this client and write what it returns, until it returns nothing.
    Wake(ClientId),
    /// Close the connection of this client, which is already forgotten.
    Close(ClientId, CloseReason),
}

/// Why the machine closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The same node connected once more.
    Replaced,
    /// The client does not answer pings any more.
    Silent,
}

/// What was carried and what was dropped, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that clients sent.
    pub packets_in: u64,
    /// Bytes of these packets.
    pub bytes_in: u64,
    /// Packets that were handed to writers.
    pub packets_out: u64,
    /// Bytes of these packets.
    pub bytes_out: u64,
    /// Packets dropped because the receiver's queue was full.
    pub dropped_full: u64,
    /// Packets dropped because the receiver is not connected.
    pub dropped_absent: u64,
    /// Connections replaced by newer ones of the same node.
    pub replaced: u64,
    /// How often a client was made to wait because it sent more than its rate.
    pub paced: u64,
}

/// How many bytes of packets clients may send. `None`: any number.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// Each client.
    pub client: Option<Rate>,
    /// All clients of one source together.
    pub source: Option<Rate>,
}

/// Clients that come from one address.
#[derive(Debug)]
struct Source {
    clients: usize,
    bucket: Option<Bucket>,
}

#[derive(Debug)]
struct Client {
    key: NodePublic,
    can_ack_pings: bool,
    is_home: bool,
    /// Whether the shell was told to write and has not found the queues empty since.
    awake: bool,
    control: VecDeque<Frame>,
    disco: Queue,
    data: Queue,
    /// Whom the client sent packets.
    correspondents: HashSet<NodePublic>,
    /// Whom the client sent the last packet: most likely the receiver of the next.
    route: Option<(NodePublic, ClientId)>,
    source: IpAddr,
    bucket: Option<Bucket>,
    last_heard: Instant,
    next_beat: Instant,
    not_here: NotHereLimit,
}

/// Allows [`NOT_HERE_BURST`] notices at once and one each [`NOT_HERE_INTERVAL`].
#[derive(Debug)]
struct NotHereLimit {
    /// When the burst is full again.
    full_at: Instant,
}

impl NotHereLimit {
    fn allows(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now);
        if full_at > now + NOT_HERE_INTERVAL * (NOT_HERE_BURST - 1) {
            return false;
        }
        self.full_at = full_at + NOT_HERE_INTERVAL;
        true
    }
}

/// The state of a relay.
#[derive(Debug)]
pub struct Machine {
    clients: HashMap<ClientId, Client>,
    by_key: HashMap<NodePublic, ClientId>,
    sources: HashMap<IpAddr, Source>,
    rates: Rates,
    /// Bytes that wait for all clients.
    queued: usize,
    commands: VecDeque<Command>,
    counters: Counters,
    next_id: u64,
    rng: StdRng,
}

impl Machine {
    /// A relay without clients. `seed` spreads the beats.
    #[must_use]
    pub fn new(rates: Rates, seed: u64) -> Self {
        Self {
            clients: HashMap::new(),
            by_key: HashMap::new(),
            sources: HashMap::new(),
            rates,
            queued: 0,
            commands: VecDeque::new(),
            counters: Counters::default(),
            next_id: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// How many clients are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether no client is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// For how many of the clients this relay is the home.
    #[must_use]
    pub fn homes(&self) -> usize {
        self.clients.values().filter(|client| client.is_home).count()
    }

    /// What was carried and dropped.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// A client at `source` has proved that it holds `key`. An older connection of the same node is closed.
    pub fn connect(
        &mut self,
        key: NodePublic,
        source: IpAddr,
        can_ack_pings: bool,
        now: Instant,
    ) -> ClientId {
        let id = ClientId(self.next_id);
        self.next_id += 1;
        let client = Client {
            key,
            can_ack_pings,
            is_home: false,
            awake: false,
            control: VecDeque::new(),
            disco: Queue::default(),
            data: Queue::default(),
            correspondents: HashSet::new(),
            route: None,
            source,
            bucket: self.rates.client.map(|rate| Bucket::new(rate, now)),
            last_heard: now,
            next_beat: now + self.beat(),
            not_here: NotHereLimit { full_at: now },
        };
        let bucket = self.rates.source.map(|rate| Bucket::new(rate, now));
        let shared = self
            .sources
            .entry(source)
            .or_insert(Source { clients: 0, bucket });
        shared.clients += 1;
        if let Some(older) = self.by_key.insert(key, id) {
            // The node is still here, so nobody is told that it is gone.
            self.forget(older);
            self.counters.replaced += 1;
            self.commands
                .push_back(Command::Close(older, CloseReason::Replaced));
        }
        self.clients.insert(id, client);
        id
    }

    /// The connection of a client has ended. Those to whom it had sent packets are told.
    pub fn disconnect(&mut self, id: ClientId) {
        let Some(client) = self.forget(id) else {
            return;
        };
        self.by_key.remove(&client.key);
        let gone = Frame::PeerGone {
            peer: client.key,
            reason: PeerGoneReason::Disconnected,
        };
        for peer in &client.correspondents {
            if let Some(peer) = self.by_key.get(peer).copied() {
                self.notify(peer, gone.clone());
            }
        }
    }

    fn forget(&mut self, id: ClientId) -> Option<Client> {
        let client = self.clients.remove(&id)?;
        self.queued -= client.disco.len() + client.data.len();
        if let Some(source) = self.sources.get_mut(&client.source) {
            source.clients -= 1;
            if source.clients == 0 {
                self.sources.remove(&client.source);
            }
        }
        Some(client)
    }

    /// A client sent a packet for the node `to`.
    pub fn handle_packet(&mut self, id: ClientId, to: NodePublic, packet: &[u8], now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.last_heard = now;
        self.counters.packets_in += 1;
        self.counters.bytes_in += packet.len() as u64;
        if let Some(bucket) = &mut client.bucket {
            bucket.take(packet.len(), now);
        }
        if self.rates.source.is_some() {
            let source = self.sources.get_mut(&client.source);
            if let Some(bucket) = source.and_then(|source| source.bucket.as_mut()) {
                bucket.take(packet.len(), now);
            }
        }
        self.forward(id, to, packet, now);
    }

    /// Until when nothing must be read from a client, because it or its source sent more than its rate.
    pub fn paced(&mut self, id: ClientId, now: Instant) -> Option<Instant> {
        let client = self.clients.get(&id)?;
        let source = self.sources.get(&client.source)?;
        let buckets = [client.bucket.as_ref(), source.bucket.as_ref()];
        let waits = buckets.into_iter().flatten();
        let until = waits.filter_map(|bucket| bucket.empty_until(now)).max()?;
        self.counters.paced += 1;
        Some(until)
    }

    /// A client sent `frame`, which is no packet. Frames that do not concern a relay are ignored.
    pub fn handle_frame(&mut self, id: ClientId, frame: &Frame, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.last_heard = now;
        match *frame {
            Frame::Ping(data) => {
                // One answer is enough for a client that pings faster than it reads.
                if !client.control.iter().any(|frame| matches!(frame, Frame::Pong(_))) {
                    self.notify(id, Frame::Pong(data));
                }
            }
            Frame::NotePreferred(is_home) => client.is_home = is_home,
            Frame::ServerKey(_)
            | Frame::ClientInfo { .. }
            | Frame::ServerInfo { .. }
            | Frame::SendPacket { .. }
            | Frame::RecvPacket { .. }
            | Frame::KeepAlive
            | Frame::PeerGone { .. }
            | Frame::Pong(_)
            | Frame::Health(_)
            | Frame::Restarting { .. }
            | Frame::Unknown(_) => {}
        }
    }

    /// When [`Machine::handle_timeout`] has to be called for a client. `None`: it is not connected.
    #[must_use]
    pub fn timeout(&self, id: ClientId) -> Option<Instant> {
        self.clients.get(&id).map(|client| client.next_beat)
    }

    /// Sends a sign of life to a client whose [`Machine::timeout`] has come, or closes it if it gives none.
    pub fn handle_timeout(&mut self, id: ClientId, now: Instant) {
        let beat = self.beat();
        let Some(client) = self.clients.get_mut(&id).filter(|client| client.next_beat <= now) else {
            return;
        };
        if client.can_ack_pings && now.duration_since(client.last_heard) > MAX_SILENCE {
            self.disconnect(id);
            self.commands.push_back(Command::Close(id, CloseReason::Silent));
            return;
        }
        client.next_beat = now + beat;
        // What a burst has made grow is given back in quieter times.
        client.control.shrink_to_fit();
        client.disco.shrink();
        client.data.shrink();
        let sign = if client.can_ack_pings {
            Frame::Ping(self.rng.r#gen())
        } else {
            Frame::KeepAlive
        };
        self.notify(id, sign);
    }

    /// Moves all that is queued for a client to the end of `out`: first what keeps it informed, then disco, then data. Nothing
    /// is queued any more when `out` stays as it was; the next frame then gives a new [`Command::Wake`].
    pub fn take(&mut self, id: ClientId, out: &mut BytesMut) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let before = out.len();
        for frame in client.control.drain(..) {
            frame.encode(out);
        }
        for queue in [&mut client.disco, &mut client.data] {
            self.queued -= queue.len();
            self.counters.packets_out += queue.packets() as u64;
            self.counters.bytes_out += queue.payload() as u64;
            queue.move_to(out);
        }
        if out.len() == before {
            client.awake = false;
        }
    }

    /// What the shell has to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn beat(&mut self) -> Duration {
        BEAT + self.rng.gen_range(Duration::ZERO..BEAT_JITTER)
    }

    /// The connection of `to`, if it is another than that of the packet before.
    fn route(&mut self, sender: ClientId, to: NodePublic) -> Option<ClientId> {
        let client = self.clients.get_mut(&sender)?;
        if let Some((peer, receiver)) = client.route
            && peer == to
        {
            // A connection is never used again, so one that is still here is still that of its key.
            if self.clients.contains_key(&receiver) {
                return Some(receiver);
            }
        }
        let receiver = self.by_key.get(&to).copied()?;
        let client = self.clients.get_mut(&sender)?;
        client.route = Some((to, receiver));
        if client.correspondents.len() < MAX_CORRESPONDENTS {
            client.correspondents.insert(to);
        }
        Some(receiver)
    }

    fn forward(&mut self, sender: ClientId, to: NodePublic, packet: &[u8], now: Instant) {
        let is_disco = disco::sender(packet).is_some();
        let Some(receiver) = self.route(sender, to) else {
            self.counters.dropped_absent += 1;
            // Only disco: a node asks in vain for a direct path. WireGuard has timers of its own.
            let client = self.clients.get_mut(&sender);
            if is_disco && client.is_some_and(|client| client.not_here.allows(now)) {
                self.notify(
                    sender,
                    Frame::PeerGone {
                        peer: to,
                        reason: PeerGoneReason::NotHere,
                    },
                );
            }
            return;
        };
        let limit = match is_disco {
            true => DISCO_QUEUE_LEN,
            false if self.queued > MAX_QUEUED => SHORT_QUEUE_LEN,
            false => QUEUE_LEN,
        };
        let Some(from) = self.clients.get(&sender).map(|client| client.key) else {
            return;
        };
        let Some(client) = self.clients.get_mut(&receiver) else {
            return;
        };
        let queue = if is_disco {
            &mut client.disco
        } else {
            &mut client.data
        };
        let before = queue.len();
        self.counters.dropped_full += queue.push(&from, packet, limit);
        self.queued = self.queued - before + queue.len();
        self.wake(receiver);
    }

    fn notify(&mut self, id: ClientId, frame: Frame) {
        if let Some(client) = self.clients.get_mut(&id) {
            if client.control.len() == CONTROL_QUEUE_LEN {
                client.control.pop_front();
            }
            client.control.push_back(frame);
            self.wake(id);
        }
    }

    fn wake(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id)
            && !client.awake
        {
            client.awake = true;
            self.commands.push_back(Command::Wake(id));
        }
    }
}

#[cfg(test)]
mod tests;
