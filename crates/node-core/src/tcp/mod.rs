//! Userspace TCP: a state machine per connection, and the table, listeners and timers around them.
//!
//! Connections that have something to do stand in one list, which is served when the shell drains packets: what a batch brought is answered once, and nothing
//! is produced that cannot be sent yet. An idle connection is its state alone; buffers take memory with the bytes in them.
//!
//! | module | what |
//! | --- | --- |
//! | `conn`, `sender`, `receiver`, `output` | one connection: its states, its two directions, what it sends |
//! | `flight`, `congestion`, `rtt` | what is under way, how much may be, and for how long |
//! | `buffer` | bytes that wait to be sent or read |
//! | `segment`, `seq` | segments on the wire, numbers in them |
//! | `flow`, `time_wait`, `verbs` | connections in the stack, what is left of them, what applications do |
//! | `asked` | connections to other addresses, which an application has to admit first |

mod asked;
mod buffer;
mod congestion;
mod conn;
mod flight;
mod flow;
mod output;
mod receiver;
mod rtt;
mod segment;
mod sender;
mod seq;
mod time_wait;
mod verbs;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::asked::Asked;
use self::conn::{Conn, State};
use self::flow::{Flow, Stage};
use self::segment::{Options, Outgoing, Segment};
use self::seq::Seq;
use self::time_wait::{Remains, TimeWait};
use crate::budget::MemoryBudget;
use crate::event::{ConnId, Event, ListenerId};
use crate::packet::{Parsed, tcp_flags};
use crate::slab::{Key, Slab};
use crate::tunnel::Tunnel;

/// Connections of one listener whose handshake is under way.
const MAX_HALF_OPEN: usize = 128;
/// When there are so many, one that has waited for longer than this makes room for a new one. A client that is alive completes within a round trip.
const HALF_OPEN_PATIENCE: Duration = Duration::from_secs(1);
/// How far the numbers of a connection begin above those of the one before with the same 4-tuple.
const FIRST_STEP: u32 = 1 << 16;
/// Segments that one connection sends before the next has its turn: with one more they fill the batch that leaves by one system call.
const BURST: usize = 48;
/// A deadline that has passed although the flow had nothing to send is not looked at again before this.
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// Largest number of connections that wait at one listener.
const MAX_BACKLOG: usize = 1024;

/// Both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// All TCP of a core.
pub(crate) struct TcpStack {
    epoch: Instant,
    /// The time when there was something to do last.
    clock: Instant,
    secret: u64,
    budget: Arc<MemoryBudget>,
    flows: Slab<Flow>,
    by_tuple: HashMap<FlowKey, Key>,
    listeners: Slab<Listener>,
    asked: Asked,
    dirty: VecDeque<Key>,
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    time_wait: TimeWait,
    /// Connections with a timeout behind them, by the address that was silent.
    stalled: HashMap<IpAddr, Vec<Key>>,
    /// The packet that is written next.
    tx: Vec<u8>,
}

#[derive(Debug)]
struct Listener {
    address: Option<IpAddr>,
    port: u16,
    backlog: usize,
    half_open: VecDeque<(Key, Instant)>,
    queue: VecDeque<Key>,
}

impl Listener {
    fn serves(&self, local: SocketAddr) -> bool {
        self.port == local.port() && self.address.is_none_or(|address| address == local.ip())
    }
}

impl TcpStack {
    pub(crate) fn new(budget: Arc<MemoryBudget>, secret: u64, now: Instant) -> Self {
        Self {
            epoch: now,
            clock: now,
            secret,
            budget,
            flows: Slab::default(),
            by_tuple: HashMap::new(),
            listeners: Slab::default(),
            asked: Asked::default(),
            dirty: VecDeque::new(),
            timers: BinaryHeap::new(),
            time_wait: TimeWait::default(),
            stalled: HashMap::new(),
            tx: Vec::new(),
        }
    }

    /// How many connections there are.
    pub(crate) fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// The number of the first segment of a connection: unlike for strangers, and rising for one 4-tuple (RFC 6528).
    fn first_seq(&self, key: &FlowKey) -> Seq {
        let mut hasher = DefaultHasher::new();
        (self.secret, key).hash(&mut hasher);
        let ticks = self.clock.duration_since(self.epoch).as_micros() / 4;
        Seq((hasher.finish() as u32).wrapping_add(ticks as u32))
    }

    /// The same for one whose 4-tuple had a connection before: numbers go on above those (RFC 9293, 3.6.1).
    fn first_seq_after(&self, key: &FlowKey, remains: Option<Remains>) -> Seq {
        match remains {
            Some(remains) => self.first_seq(key).max(remains.seq + FIRST_STEP),
            None => self.first_seq(key),
        }
    }

    /// Takes a segment that the filter let pass.
    pub(crate) fn handle_segment(
        &mut self,
        packet: &[u8],
        parsed: &Parsed,
        tunnel: &mut Tunnel,
        now: Instant,
    ) {
        self.clock = now;
        let Some(segment) = Segment::parse(packet, parsed) else {
            tunnel.counters.bogus += 1;
            return;
        };
        let tuple = FlowKey {
            local: parsed.destination(),
            remote: parsed.source(),
        };
        if let Some(key) = self.by_tuple.get(&tuple).copied() {
            if let Some(flow) = self.flows.get_mut(key) {
                flow.conn.ingress(&segment, now);
            }
            self.touch(key);
            return;
        }
        let remains = self.time_wait.get(&tuple);
        // A new connection takes the place of a closed one (RFC 9293, 3.6.1). WireGuard drops repeated packets, so only the very SYN of the old one, late, is
        // none.
        if parsed.is_bare_syn()
            && remains.is_none_or(|remains| remains.syn != segment.seq)
            && let Some(listener) = self.listener_for(tuple.local)
        {
            self.time_wait.remove(&tuple);
            self.handle_syn(listener, tuple, &segment, remains, tunnel, now);
        } else if let Some(remains) = remains {
            if segment.has(tcp_flags::FIN | tcp_flags::SYN) {
                self.answer(&tuple, remains.seq, Some(remains.ack), 0, tunnel, now);
            }
        } else if !segment.has(tcp_flags::RST) {
            // A segment that belongs to nothing is answered by a reset (RFC 9293, 3.10.7.1).
            let (seq, ack) = if segment.has(tcp_flags::ACK) {
                (segment.ack, None)
            } else {
                (Seq(0), Some(segment.end()))
            };
            self.answer(&tuple, seq, ack, tcp_flags::RST, tunnel, now);
        }
    }

    /// Sends a segment that belongs to no connection.
    fn answer(
        &mut self,
        tuple: &FlowKey,
        seq: Seq,
        ack: Option<Seq>,
        flags: u8,
        tunnel: &mut Tunnel,
        now: Instant,
    ) {
        let outgoing = Outgoing {
            seq,
            ack,
            flags,
            window: 0,
            options: Options::default(),
        };
        outgoing.write(tuple.local, tuple.remote, 0, &mut self.tx, |_| {});
        tunnel.send(&self.tx, tuple.remote.ip(), now);
    }

    /// Whether a segment belongs to a connection or listener of ours.
    pub(crate) fn takes(&self, parsed: &Parsed) -> bool {
        let tuple = FlowKey {
            local: parsed.destination(),
            remote: parsed.source(),
        };
        (!self.by_tuple.is_empty() && self.by_tuple.contains_key(&tuple))
            || self.time_wait.contains(&tuple)
            || (parsed.is_bare_syn() && self.listener_for(tuple.local).is_some())
    }

    /// The listener for a local address; one bound to the address goes before one for all.
    fn listener_for(&self, local: SocketAddr) -> Option<Key> {
        let serving = self
            .listeners
            .keys()
            .filter(|key| self.listeners.get(*key).is_some_and(|l| l.serves(local)));
        serving.max_by_key(|key| {
            self.listeners
                .get(*key)
                .map(|listener| listener.address.is_some())
        })
    }

    fn handle_syn(
        &mut self,
        listener_key: Key,
        tuple: FlowKey,
        syn: &Segment<'_>,
        remains: Option<Remains>,
        tunnel: &mut Tunnel,
        now: Instant,
    ) {
        let Some(listener) = self.listeners.get_mut(listener_key) else {
            return;
        };
        let oldest = listener
            .half_open
            .front()
            .copied()
            .filter(|_| listener.half_open.len() >= MAX_HALF_OPEN);
        let is_stuck = oldest.is_some_and(|(_, since)| now.duration_since(since) < HALF_OPEN_PATIENCE);
        if listener.queue.len() >= listener.backlog || is_stuck {
            // The client asks again, by when the application may have caught up.
            tunnel.counters.syn_dropped += 1;
            return;
        }
        if let Some((oldest, _)) = oldest {
            tunnel.counters.syn_dropped += 1;
            self.remove(oldest);
        }
        let Some(share) = self.budget.share(size_of::<Flow>()) else {
            tunnel.counters.syn_dropped += 1;
            return;
        };
        let first = self.first_seq_after(&tuple, remains);
        let conn = Conn::accept(tuple, first, syn, &self.budget);
        let key = self
            .flows
            .insert(Flow::new(conn, Stage::HalfOpen(listener_key), share));
        self.by_tuple.insert(tuple, key);
        if let Some(listener) = self.listeners.get_mut(listener_key) {
            listener.half_open.push_back((key, now));
        }
        self.touch(key);
    }

    /// Puts a flow into the list of those to be served.
    fn touch(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.is_dirty
        {
            flow.is_dirty = true;
            self.dirty.push_back(key);
        }
    }

    /// Serves one flow that was touched. Returns whether there was one.
    pub(crate) fn serve(&mut self, tunnel: &mut Tunnel, now: Instant) -> bool {
        let Some(key) = self.dirty.pop_front() else {
            if self.dirty.capacity() > 0 {
                self.dirty = VecDeque::new();
                self.tx = Vec::new();
            }
            return false;
        };
        let Some(flow) = self.flows.get_mut(key) else {
            return true;
        };
        flow.is_dirty = false;
        let more = !flow.is_finished && self.egress(key, tunnel, now);
        self.settle(key, tunnel, now);
        if more {
            self.touch(key);
        } else {
            self.arm(key, now);
        }
        true
    }

    /// Sends what the flow has, up to a burst. Returns whether more is left.
    fn egress(&mut self, key: Key, tunnel: &mut Tunnel, now: Instant) -> bool {
        let Some(flow) = self.flows.get_mut(key) else {
            return false;
        };
        flow.conn.handle_timeout(now);
        if !flow.conn.emit(&mut self.tx, now) {
            return false;
        }
        // The way to the peer is looked up once for all that follows.
        let Some(peer) = tunnel.route(flow.conn.key.remote.ip()).cloned() else {
            tunnel.counters.no_route += 1;
            return false;
        };
        let Some(mut sender) = tunnel.sender(&peer, now) else {
            return false;
        };
        for _ in 0..BURST {
            sender.send(&self.tx);
            if !flow.conn.emit(&mut self.tx, now) {
                return false;
            }
        }
        sender.send(&self.tx);
        true
    }

    /// Draws the conclusions from a flow's state: tells the application, lets go of what has ended.
    fn settle(&mut self, key: Key, tunnel: &mut Tunnel, now: Instant) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let state = flow.state();
        match flow.stage {
            Stage::HalfOpen(listener) => match state {
                State::SynReceived => return,
                State::Closed => {
                    self.remove(key);
                    return;
                }
                _ => {
                    flow.stage = Stage::Queued(listener);
                    if let Some(listener) = self.listeners.get_mut(listener) {
                        listener.half_open.retain(|(half_open, _)| *half_open != key);
                        listener.queue.push_back(key);
                    }
                    tunnel.events.push_back(Event::Acceptable(ListenerId(listener)));
                }
            },
            Stage::Opening if !matches!(state, State::SynSent | State::SynReceived | State::Closed) => {
                flow.stage = Stage::Open;
                tunnel.events.push_back(Event::Connected(ConnId(key)));
            }
            Stage::Orphan if flow.has_data() && state != State::Closed => {
                flow.conn.abort();
                self.touch(key);
                return;
            }
            _ => {}
        }
        match state {
            State::TimeWait => {
                let Some(flow) = self.flows.get_mut(key) else {
                    return;
                };
                if !flow.is_finished {
                    self.time_wait.insert(flow.conn.key, flow.conn.remains(), now);
                }
                self.finish(key, tunnel);
            }
            State::Closed => self.finish(key, tunnel),
            _ => self.watch_stall(key),
        }
        self.notify(key, tunnel);
    }

    /// Notes a flow that waits for a sign of life from its peer.
    fn watch_stall(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && flow.conn.send.is_stalled()
            && !flow.is_stalled
        {
            flow.is_stalled = true;
            self.stalled
                .entry(flow.conn.key.remote.ip())
                .or_default()
                .push(key);
        }
    }

    /// A packet of `peer` arrived: connections that wait for a late timeout try at once whether the path works again.
    pub(crate) fn heard_from(&mut self, peer: IpAddr, now: Instant) {
        if self.stalled.is_empty() {
            return;
        }
        for key in self.stalled.remove(&peer).into_iter().flatten() {
            if let Some(flow) = self.flows.get_mut(key) {
                flow.is_stalled = false;
                flow.conn.send.poke(now);
                self.touch(key);
            }
        }
    }

    /// A flow has ended: nothing more is sent or taken for it. It stays while an application holds it, which may have data to read.
    fn finish(&mut self, key: Key, tunnel: &mut Tunnel) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        if matches!(flow.stage, Stage::Orphan | Stage::Queued(_)) {
            self.remove(key);
            return;
        }
        if flow.is_finished {
            return;
        }
        flow.is_finished = true;
        if let Some(reason) = flow.conn.ended {
            tunnel.events.push_back(Event::Closed {
                conn: ConnId(key),
                reason,
            });
        }
        let tuple = flow.conn.key;
        self.unmap(key, &tuple);
    }

    /// Tells an application that waits.
    fn notify(&mut self, key: Key, tunnel: &mut Tunnel) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        if flow.want_read && flow.is_readable() {
            flow.want_read = false;
            tunnel.events.push_back(Event::Readable(ConnId(key)));
        }
        if flow.want_write && flow.is_writable() {
            flow.want_write = false;
            tunnel.events.push_back(Event::Writable(ConnId(key)));
        }
    }

    fn unmap(&mut self, key: Key, tuple: &FlowKey) {
        if self.by_tuple.get(tuple) == Some(&key) {
            self.by_tuple.remove(tuple);
        }
        if self.by_tuple.is_empty() {
            // An idle node holds no tables.
            self.by_tuple = HashMap::new();
        }
    }

    /// Lets go of a flow and its buffers.
    fn remove(&mut self, key: Key) {
        let Some(flow) = self.flows.remove(key) else {
            return;
        };
        self.unmap(key, &flow.conn.key);
        if let Stage::HalfOpen(listener) | Stage::Queued(listener) = flow.stage
            && let Some(listener) = self.listeners.get_mut(listener)
        {
            listener.half_open.retain(|(half_open, _)| *half_open != key);
            listener.queue.retain(|waiting| *waiting != key);
        }
    }

    /// Sees to it that the flow is served at its deadline.
    fn arm(&mut self, key: Key, now: Instant) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        if flow.is_finished {
            return;
        }
        let Some(deadline) = flow.conn.deadline() else {
            return;
        };
        let deadline = deadline.max(now + MIN_PAUSE);
        if flow.armed.is_none_or(|armed| deadline < armed) {
            flow.armed = Some(deadline);
            self.timers.push(Reverse((deadline, key)));
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [timer, self.time_wait.next_expiry()].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.time_wait.expire(now);
        while let Some(Reverse((at, key))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            if flow.armed == Some(at) {
                flow.armed = None;
                self.touch(key);
            }
        }
        if self.timers.is_empty() {
            self.timers = BinaryHeap::new();
        }
    }
}
