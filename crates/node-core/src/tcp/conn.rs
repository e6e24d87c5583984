//! The state machine of one connection (RFC 9293): what arrives, what the application does, what time does. What it sends is in `output`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FlowKey;
use super::buffer::SendBuffer;
use super::flight::Flight;
use super::receiver::{Ack, Receiver};
use super::segment::Segment;
use super::sender::Sender;
use super::seq::Seq;
use super::time_wait::Remains;
use crate::budget::MemoryBudget;
use crate::event::CloseReason;
use crate::packet::{INNER_MTU, header_len, tcp_flags};

/// What a peer takes that did not say (RFC 9293, 3.7.1).
const DEFAULT_MSS: usize = 536;
/// The least that a peer is believed, so that segments cannot be all header.
const LEAST_MSS: usize = 88;
/// Bytes of a TCP header without options.
const HEADER: usize = 20;
/// Pause between answers to segments that are out of place (RFC 5961, 7): two sides that are both wrong do not talk for good.
const CHALLENGE_PAUSE: Duration = Duration::from_millis(250);
/// A keep-alive goes out when nothing came for so long; NATs of backends and peers' sleep are longer.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long an attempt to connect, or a half-open connection, waits: five repetitions, as other systems do.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection of which nothing was heard for so long, keep-alives included, is dead.
const DEAD_AFTER: Duration = Duration::from_secs(5 * 60);
/// How long a connection that the application has closed may go without progress.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);

/// States of a connection (RFC 9293, 3.3.2). Listeners are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) key: FlowKey,
    pub(super) state: State,
    pub(super) send: Sender,
    pub(super) recv: Receiver,
    pub(super) budget: Arc<MemoryBudget>,
    /// A reset to be sent, with this number.
    pub(super) reset: Option<Seq>,
    /// How it ended, if abnormally.
    pub(super) ended: Option<CloseReason>,
    /// When something was heard; for an orphan, when something moved. `None` until it is served next.
    heard: Option<Instant>,
    patience: Duration,
    pub(super) keep_alive: Option<Instant>,
    challenged: Option<Instant>,
}

impl Conn {
    /// A connection to be opened with a SYN of this number.
    pub(super) fn open(key: FlowKey, first: Seq, budget: &Arc<MemoryBudget>) -> Self {
        let mss = local_mss(&key);
        Self {
            key,
            state: State::SynSent,
            send: Sender::new(first, mss, budget),
            recv: Receiver::new(budget),
            budget: Arc::clone(budget),
            reset: None,
            ended: None,
            heard: None,
            patience: OPEN_TIMEOUT,
            keep_alive: None,
            challenged: None,
        }
    }

    /// A connection that a SYN asks for.
    pub(super) fn accept(key: FlowKey, first: Seq, syn: &Segment<'_>, budget: &Arc<MemoryBudget>) -> Self {
        let mut conn = Self::open(key, first, budget);
        conn.take_syn(syn);
        conn.state = State::SynReceived;
        conn
    }

    /// Takes what a SYN says of its sender.
    fn take_syn(&mut self, syn: &Segment<'_>) {
        let options = &syn.options;
        self.recv.begin(syn);
        self.send.sack = options.sack_permitted;
        self.send.scale = options.window_scale.unwrap_or(0);
        let theirs = options.mss.map_or(DEFAULT_MSS, usize::from);
        self.lower_mss(theirs);
        self.send.window = usize::from(syn.window);
        self.send.most = self.send.window;
        self.send.told = (syn.seq, self.send.una);
    }

    /// Segments get no larger than this from now on.
    pub(super) fn lower_mss(&mut self, mss: usize) {
        let mss = mss.max(LEAST_MSS);
        if mss < self.send.mss {
            self.send.mss = mss;
            self.send.cubic.set_mss(mss);
        }
    }

    /// Whether the segment with this number is under way.
    pub(super) fn has_sent(&self, seq: Seq) -> bool {
        self.send.una <= seq && seq < self.send.next
    }

    /// A link on the way takes packets of this size at most: what is under way is sent again in such.
    pub(super) fn lower_mtu(&mut self, mtu: usize) {
        let mss = mtu.saturating_sub(header_len(self.key.local.ip()) + HEADER);
        if mss < self.send.mss {
            self.lower_mss(mss);
            self.send.flight.lose_all();
        }
    }

    /// Takes a segment.
    pub(super) fn ingress(&mut self, segment: &Segment<'_>, now: Instant) {
        match self.state {
            State::Closed => {}
            State::SynSent => self.ingress_syn_sent(segment, now),
            _ => self.ingress_synchronized(segment, now),
        }
    }

    fn ingress_syn_sent(&mut self, segment: &Segment<'_>, now: Instant) {
        let is_answer = segment.has(tcp_flags::ACK);
        if is_answer && (segment.ack <= self.send.first || segment.ack > self.send.next) {
            if !segment.has(tcp_flags::RST) {
                self.reset = Some(segment.ack);
            }
            return;
        }
        if segment.has(tcp_flags::RST) {
            if is_answer {
                self.end(CloseReason::Refused);
            }
            return;
        }
        if !segment.has(tcp_flags::SYN) {
            return;
        }
        self.take_syn(segment);
        self.heard = Some(now);
        if is_answer {
            self.acked(segment, now);
            self.established(now);
            self.recv.ack = Ack::Now;
        } else {
            // Both sides ask at once (RFC 9293, 3.5): our SYN goes out again, with an acknowledgement.
            self.state = State::SynReceived;
            self.send.flight.lose_all();
        }
    }

    fn established(&mut self, now: Instant) {
        self.state = if self.send.fin {
            State::FinWait1
        } else {
            State::Established
        };
        self.patience = DEAD_AFTER;
        self.keep_alive_from(now);
    }

    fn ingress_synchronized(&mut self, segment: &Segment<'_>, now: Instant) {
        let is_in_place = segment.end() >= self.recv.next && segment.seq <= self.recv.edge;
        if segment.has(tcp_flags::RST) {
            if segment.seq == self.recv.next {
                self.end(CloseReason::Reset);
            } else if is_in_place {
                self.challenge(now);
            }
            return;
        }
        if segment.has(tcp_flags::SYN) {
            self.repeated_syn(segment, now);
            return;
        }
        if !is_in_place {
            // A repetition is answered at once, since our acknowledgement was lost.
            if segment.len() > 0 {
                self.recv.repeat(segment);
            } else {
                self.challenge(now);
            }
            return;
        }
        if !segment.has(tcp_flags::ACK) {
            return;
        }
        if self.state == State::SynReceived {
            if segment.ack != self.send.next || segment.ack == self.send.first {
                self.reset = Some(segment.ack);
                return;
            }
            self.established(now);
        }
        // Acknowledgements of what was not sent, or long ago, are forged (RFC 5961, 5).
        let oldest = self.send.una.before(self.send.most.max(self.send.mss) as u32);
        if segment.ack > self.send.next || segment.ack < oldest {
            self.challenge(now);
            return;
        }
        if self.patience != ORPHAN_TIMEOUT {
            self.heard = Some(now);
            self.keep_alive_from(now);
        }
        self.acked(segment, now);
        if self.state != State::Closed {
            self.received(segment, now);
        }
    }

    /// A SYN in a connection that stands is a repetition, or a question whether it does (RFC 5961, 4).
    fn repeated_syn(&mut self, segment: &Segment<'_>, now: Instant) {
        if self.state != State::SynReceived {
            self.challenge(now);
        } else if segment.has(tcp_flags::ACK)
            && segment.seq == self.recv.first
            && segment.ack == self.send.next
        {
            // The answer to our SYN when both sides asked at once.
            self.acked(segment, now);
            self.established(now);
            self.recv.ack = Ack::Now;
        } else if segment.seq == self.recv.first {
            self.send.flight.lose_all();
        }
    }

    fn challenge(&mut self, now: Instant) {
        if self
            .challenged
            .is_none_or(|at| now.duration_since(at) >= CHALLENGE_PAUSE)
        {
            self.challenged = Some(now);
            self.recv.ack = Ack::Now;
        }
    }

    /// Takes the acknowledgement and window of a segment.
    fn acked(&mut self, segment: &Segment<'_>, now: Instant) {
        if self.send.acked(segment, now) {
            self.heard = Some(now);
        }
        self.conclude_ack(now);
    }

    /// Our FIN may have been acknowledged.
    fn conclude_ack(&mut self, now: Instant) {
        if self.send.fin_at.is_none_or(|at| self.send.una <= at) {
            return;
        }
        self.state = match self.state {
            State::FinWait1 => State::FinWait2,
            State::Closing => State::TimeWait,
            State::LastAck => State::Closed,
            state => state,
        };
        self.heard = Some(now);
    }

    /// Takes the data and the end of a segment.
    fn received(&mut self, segment: &Segment<'_>, now: Instant) {
        if segment.len() == 0 {
            return;
        }
        let (mss, rtt) = (self.send.mss, self.send.rtt.least());
        let arrival = self.recv.take(segment, mss, rtt, &self.budget, now);
        if arrival.fin {
            self.state = match self.state {
                State::Established => State::CloseWait,
                State::FinWait1 => State::Closing,
                State::FinWait2 => State::TimeWait,
                state => state,
            };
        }
        if arrival.bytes > 0 {
            self.heard = Some(now);
        }
    }

    /// The next keep-alive is counted from now.
    pub(super) fn keep_alive_from(&mut self, now: Instant) {
        self.keep_alive = Some(now + KEEP_ALIVE);
    }

    /// Ends without a word.
    pub(super) fn end(&mut self, reason: CloseReason) {
        self.state = State::Closed;
        self.ended = Some(reason);
        self.silence();
    }

    /// Nothing is sent or waited for any more.
    fn silence(&mut self) {
        self.send.alarm = None;
        self.send.persist = None;
        self.keep_alive = None;
        self.recv.ack = Ack::None;
        self.send.buffer = SendBuffer::new(&self.budget);
        self.send.flight = Flight::default();
    }

    /// Ends with a reset.
    pub(super) fn abort(&mut self) {
        if !matches!(self.state, State::Closed | State::SynSent | State::TimeWait) {
            self.reset = Some(self.send.next);
        }
        self.state = State::Closed;
        self.silence();
    }

    /// Ends our direction once everything written is sent.
    pub(super) fn close(&mut self) {
        match self.state {
            State::SynSent => self.state = State::Closed,
            State::SynReceived => {}
            State::Established => self.state = State::FinWait1,
            State::CloseWait => self.state = State::LastAck,
            _ => return,
        }
        self.send.fin = true;
    }

    /// The application is gone: without progress the connection ends soon.
    pub(super) fn orphan(&mut self) {
        self.patience = ORPHAN_TIMEOUT;
        self.heard = None;
        self.keep_alive = None;
    }

    pub(super) fn read(&mut self, room: &mut [u8]) -> usize {
        let length = self.recv.buffer.read(room);
        self.recv.grow(&self.budget);
        if self.recv.wants_update(self.send.mss) && !self.has_received_fin() {
            self.recv.ack = Ack::Now;
        }
        length
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let limit = self.send.limit(&self.budget);
        self.send.buffer.push(bytes, limit)
    }

    /// Whether a write is worth the wake-up.
    pub(super) fn has_room(&self) -> bool {
        let limit = self.send.limit(&self.budget);
        limit.saturating_sub(self.send.buffer.len()) >= limit / 4
    }

    pub(super) fn may_send(&self) -> bool {
        matches!(self.state, State::Established | State::CloseWait)
    }

    pub(super) fn has_received_fin(&self) -> bool {
        matches!(
            self.state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        )
    }

    /// When it wants to be served without having been touched.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.state == State::Closed {
            return None;
        }
        let ack = match self.recv.ack {
            Ack::Later(at) => Some(at),
            _ => None,
        };
        [
            ack,
            self.send.deadline(),
            self.keep_alive,
            self.heard.map(|heard| heard + self.patience),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Closed {
            return;
        }
        let heard = *self.heard.get_or_insert(now);
        if now.duration_since(heard) >= self.patience {
            self.abort();
            self.ended = Some(CloseReason::TimedOut);
            return;
        }
        if matches!(self.recv.ack, Ack::Later(at) if at <= now) {
            self.recv.ack = Ack::Now;
        }
        self.send.handle_timeout(now);
    }

    /// What is left of it in TIME-WAIT.
    pub(super) fn remains(&self) -> Remains {
        Remains {
            syn: self.recv.first,
            seq: self.send.next,
            ack: self.recv.next,
        }
    }
}

/// The largest segment that fits a packet of the tailnet.
pub(super) fn local_mss(key: &FlowKey) -> usize {
    INNER_MTU - header_len(key.local.ip()) - HEADER
}
