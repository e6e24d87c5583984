//! Userspace TCP: smoltcp's state machine per connection, our own table, listeners and timers around it.
//!
//! smoltcp scans all sockets of a set for each packet, so each connection is alone in its set and found by its 4-tuple. Connections that have something to do
//! stand in one list, which is served when the shell drains packets: what a batch brought is answered once, and nothing is produced that cannot be sent yet.

mod device;
mod flow;
mod segment;
mod time_wait;
mod verbs;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp::State;

use self::device::{OnePacket, Wire};
use self::flow::{Flow, Stage};
use self::time_wait::TimeWait;
use crate::budget::MemoryBudget;
use crate::event::{CloseReason, ConnId, Event, ListenerId};
use crate::packet::{Parsed, tcp_flags};
use crate::slab::{Key, Slab};
use crate::tunnel::Tunnel;

/// Connections of one listener whose handshake is under way.
const MAX_HALF_OPEN: usize = 128;
/// When there are so many, one that has waited for longer than this makes room for a new one. A client that is alive completes within a round trip.
const HALF_OPEN_PATIENCE: Duration = Duration::from_secs(1);
/// Segments that one connection sends before the next has its turn.
const BURST: usize = 32;
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
    wire: Wire,
    budget: Arc<MemoryBudget>,
    flows: Slab<Flow>,
    by_tuple: HashMap<FlowKey, Key>,
    listeners: Slab<Listener>,
    dirty: VecDeque<Key>,
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    time_wait: TimeWait,
    /// The packet that smoltcp writes next.
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
    pub(crate) fn new(budget: Arc<MemoryBudget>, random_seed: u64, now: Instant) -> Self {
        Self {
            wire: Wire::new(random_seed, now),
            budget,
            flows: Slab::default(),
            by_tuple: HashMap::new(),
            listeners: Slab::default(),
            dirty: VecDeque::new(),
            timers: BinaryHeap::new(),
            time_wait: TimeWait::default(),
            tx: Vec::new(),
        }
    }

    /// How many connections there are.
    pub(crate) fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// Takes a segment that the filter let pass.
    pub(crate) fn handle_segment(
        &mut self,
        packet: &[u8],
        parsed: &Parsed,
        tunnel: &mut Tunnel,
        now: Instant,
    ) {
        let tuple = FlowKey {
            local: parsed.destination(),
            remote: parsed.source(),
        };
        if let Some(key) = self.by_tuple.get(&tuple).copied() {
            self.ingress(key, packet, parsed, tunnel, now);
            return;
        }
        if parsed.is_bare_syn() {
            self.time_wait.remove(&tuple);
            if let Some(listener) = self.listener_for(tuple.local) {
                self.handle_syn(listener, tuple, packet, parsed, tunnel, now);
                return;
            }
        }
        if let Some(ack) = self.time_wait.ack(&tuple) {
            if parsed.flags & tcp_flags::FIN != 0 {
                tunnel.send(ack, tuple.remote.ip(), now);
            }
            return;
        }
        if parsed.flags & tcp_flags::RST == 0 {
            self.reject(packet, tuple, tunnel, now);
        }
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
        packet: &[u8],
        parsed: &Parsed,
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
        let Some(share) = self.budget.take() else {
            tunnel.counters.syn_dropped += 1;
            return;
        };
        let mut flow = Flow::new(tuple, Stage::HalfOpen(listener_key), share);
        flow.listen();
        let key = self.flows.insert(flow);
        self.by_tuple.insert(tuple, key);
        if let Some(listener) = self.listeners.get_mut(listener_key) {
            listener.half_open.push_back((key, now));
        }
        self.ingress(key, packet, parsed, tunnel, now);
    }

    fn ingress(&mut self, key: Key, packet: &[u8], parsed: &Parsed, tunnel: &mut Tunnel, now: Instant) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let before = flow.state();
        flow.ingress(&mut self.wire, packet, &mut self.tx, now);
        if !self.tx.is_empty() {
            tunnel.send(&self.tx, flow.key.remote.ip(), now);
        }
        if parsed.flags & tcp_flags::RST != 0 && matches!(flow.state(), State::Closed | State::Listen) {
            flow.verdict = Some(if before == State::SynSent {
                CloseReason::Refused
            } else {
                CloseReason::Reset
            });
        }
        self.touch(key);
    }

    /// Answers a segment that belongs to nothing with a reset.
    fn reject(&mut self, packet: &[u8], tuple: FlowKey, tunnel: &mut Tunnel, now: Instant) {
        self.tx.clear();
        self.wire.set_address(tuple.local.ip());
        let time = self.wire.time(now);
        let mut device = OnePacket {
            rx: Some(packet),
            tx: &mut self.tx,
        };
        self.wire
            .iface
            .poll_ingress_single(time, &mut device, &mut SocketSet::new(Vec::new()));
        if !self.tx.is_empty() {
            tunnel.send(&self.tx, tuple.remote.ip(), now);
        }
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
        self.settle(key, tunnel);
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
        let is_last = flow.state() == State::TimeWait;
        if is_last {
            // The last acknowledgement goes out now, so that the socket can go.
            flow.socket_mut().set_ack_delay(None);
        }
        for _ in 0..BURST {
            if !flow.egress(&mut self.wire, &mut self.tx, now) {
                return false;
            }
            tunnel.send(&self.tx, flow.key.remote.ip(), now);
            if is_last {
                self.time_wait.insert(flow.key, &self.tx, now);
            }
        }
        true
    }

    /// Draws the conclusions from a flow's state: tells the application, lets go of what has ended.
    fn settle(&mut self, key: Key, tunnel: &mut Tunnel) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let state = flow.state();
        match flow.stage {
            Stage::HalfOpen(listener) => match state {
                State::SynReceived => return,
                State::Listen | State::Closed => {
                    self.remove(key);
                    return;
                }
                _ => {
                    flow.established(Stage::Queued(listener));
                    if let Some(listener) = self.listeners.get_mut(listener) {
                        listener.half_open.retain(|(half_open, _)| *half_open != key);
                        listener.queue.push_back(key);
                    }
                    tunnel.events.push_back(Event::Acceptable(ListenerId(listener)));
                }
            },
            Stage::Opening if !matches!(state, State::SynSent | State::SynReceived | State::Closed) => {
                flow.established(Stage::Open);
                tunnel.events.push_back(Event::Connected(ConnId(key)));
            }
            Stage::Orphan if flow.socket().recv_queue() > 0 && state != State::Closed => {
                flow.socket_mut().abort();
                self.touch(key);
                return;
            }
            _ => {}
        }
        if matches!(state, State::TimeWait | State::Closed) {
            self.finish(key, tunnel);
        } else if let Some(flow) = self.flows.get_mut(key) {
            flow.last_state = state;
        }
        self.notify(key, tunnel);
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
        if flow.state() == State::Closed && flow.ended.is_none() {
            flow.ended = flow.verdict.or(match flow.last_state {
                State::LastAck => None,
                _ => Some(CloseReason::TimedOut),
            });
        }
        if let Some(reason) = flow.ended {
            tunnel.events.push_back(Event::Closed {
                conn: ConnId(key),
                reason,
            });
        }
        let tuple = flow.key;
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
        self.unmap(key, &flow.key);
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
        let Some(deadline) = flow.deadline(&mut self.wire, now) else {
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
