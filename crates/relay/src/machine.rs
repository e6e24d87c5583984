//! Who is connected, what is queued for whom, and who is told that whom is gone.
//!
//! The shell tells the machine what happened (`connect`, `handle_frame`, `handle_timeout`, `disconnect`) and obeys its
//! commands ([`Machine::poll_command`]): wake a client's writer, which then takes what is queued for it
//! ([`Machine::take`]), or close a client's connection.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwharf_wire::derp::{Frame, PeerGoneReason};
use tailwharf_wire::disco;
use tailwharf_wire::key::NodePublic;

/// Packets that wait for one client, of each of both kinds. When one more comes, the oldest is dropped: WireGuard prefers
/// lost packets over late ones.
pub const QUEUE_LEN: usize = 32;
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
}

/// A packet on its way to a client.
#[derive(Debug)]
struct Packet {
    from: NodePublic,
    data: Bytes,
}

#[derive(Debug)]
struct Client {
    key: NodePublic,
    can_ack_pings: bool,
    is_home: bool,
    /// Whether the shell was told to write and has not found the queues empty since.
    awake: bool,
    control: VecDeque<Frame>,
    disco: VecDeque<Packet>,
    data: VecDeque<Packet>,
    /// Whom the client sent packets.
    correspondents: HashSet<NodePublic>,
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
    commands: VecDeque<Command>,
    counters: Counters,
    next_id: u64,
    rng: StdRng,
}

impl Machine {
    /// A relay without clients. `seed` spreads the beats.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            clients: HashMap::new(),
            by_key: HashMap::new(),
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

    /// A client has proved that it holds `key`. An older connection of the same node is closed.
    pub fn connect(&mut self, key: NodePublic, can_ack_pings: bool, now: Instant) -> ClientId {
        let id = ClientId(self.next_id);
        self.next_id += 1;
        let client = Client {
            key,
            can_ack_pings,
            is_home: false,
            awake: false,
            control: VecDeque::new(),
            disco: VecDeque::new(),
            data: VecDeque::new(),
            correspondents: HashSet::new(),
            last_heard: now,
            next_beat: now + self.beat(),
            not_here: NotHereLimit { full_at: now },
        };
        if let Some(older) = self.by_key.insert(key, id) {
            // The node is still here, so nobody is told that it is gone.
            self.clients.remove(&older);
            self.counters.replaced += 1;
            self.commands
                .push_back(Command::Close(older, CloseReason::Replaced));
        }
        self.clients.insert(id, client);
        id
    }

    /// The connection of a client has ended. Those to whom it had sent packets are told.
    pub fn disconnect(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else {
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

    /// A client sent `frame`. Frames that do not concern a relay are ignored.
    pub fn handle_frame(&mut self, id: ClientId, frame: Frame, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.last_heard = now;
        match frame {
            Frame::SendPacket { to, packet } => self.forward(id, to, packet, now),
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
        client.disco.shrink_to_fit();
        client.data.shrink_to_fit();
        let sign = if client.can_ack_pings {
            Frame::Ping(self.rng.r#gen())
        } else {
            Frame::KeepAlive
        };
        self.notify(id, sign);
    }

    /// Moves all that is queued for a client to `out`: first what keeps it informed, then disco, then data. Nothing is queued
    /// any more when `out` stays as it was; the next frame then gives a new [`Command::Wake`].
    pub fn take(&mut self, id: ClientId, out: &mut Vec<Frame>) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let before = out.len();
        out.extend(client.control.drain(..));
        for packet in client.disco.drain(..).chain(client.data.drain(..)) {
            self.counters.packets_out += 1;
            self.counters.bytes_out += packet.data.len() as u64;
            out.push(Frame::RecvPacket {
                from: packet.from,
                packet: packet.data,
            });
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

    fn forward(&mut self, sender: ClientId, to: NodePublic, data: Bytes, now: Instant) {
        self.counters.packets_in += 1;
        self.counters.bytes_in += data.len() as u64;
        let is_disco = disco::sender(&data).is_some();
        let Some(client) = self.clients.get_mut(&sender) else {
            return;
        };
        let Some(receiver) = self.by_key.get(&to).copied() else {
            self.counters.dropped_absent += 1;
            // Only disco: a node asks in vain for a direct path. WireGuard has timers of its own.
            if is_disco && client.not_here.allows(now) {
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
        let from = client.key;
        if client.correspondents.len() < MAX_CORRESPONDENTS {
            client.correspondents.insert(to);
        }
        let Some(client) = self.clients.get_mut(&receiver) else {
            return;
        };
        let queue = if is_disco {
            &mut client.disco
        } else {
            &mut client.data
        };
        if queue.len() == QUEUE_LEN {
            queue.pop_front();
            self.counters.dropped_full += 1;
        }
        queue.push_back(Packet { from, data });
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
