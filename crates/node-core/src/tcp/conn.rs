//! The state machine of one connection (RFC 9293): what arrives, what the application does, what time does. What it sends is in `output`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FlowKey;
use super::buffer::{ReceiveBuffer, SendBuffer};
use super::congestion::Cubic;
use super::flight::{Flight, News};
use super::rtt::Rtt;
use super::segment::Segment;
use super::seq::Seq;
use super::time_wait::Remains;
use crate::budget::MemoryBudget;
use crate::event::CloseReason;
use crate::packet::{INNER_MTU, header_len, tcp_flags};

/// The scale of windows that we announce: up to 4 MiB in steps of 64 bytes.
pub(super) const WINDOW_SCALE: u8 = 6;
/// Bytes that either side of a new connection may hold; what is used grows from here.
const INITIAL_LIMIT: usize = 64 * 1024;
/// What a peer takes that did not say (RFC 9293, 3.7.1).
const DEFAULT_MSS: usize = 536;
/// The least that a peer is believed, so that segments cannot be all header.
const LEAST_MSS: usize = 88;
/// Bytes of a TCP header without options.
const HEADER: usize = 20;
/// How long a lone segment may wait for company before it is acknowledged.
const ACK_DELAY: Duration = Duration::from_millis(40);
/// Pause between answers to segments that are out of place (RFC 5961, 7): two sides that are both wrong do not talk for good.
const CHALLENGE_PAUSE: Duration = Duration::from_millis(250);
/// Pause before the end of what was sent is sent again to learn whether it is lost (RFC 8985, 7.2).
const LEAST_PROBE: Duration = Duration::from_millis(10);
/// A keep-alive goes out when nothing came for so long; NATs of backends and peers' sleep are longer.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long an attempt to connect, or a half-open connection, waits: five repetitions, as other systems do.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection of which nothing was heard for so long, keep-alives included, is dead.
const DEAD_AFTER: Duration = Duration::from_secs(5 * 60);
/// How long a connection that the application has closed may go without progress.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest pause between questions to a peer whose window is closed.
const MAX_PERSIST: Duration = Duration::from_secs(10);

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

/// Whether something is to be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    None,
    Later(Instant),
    Now,
}

/// What the timer of the sending side means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// The end of what was sent may be lost.
    Probe,
    /// All that was sent may be lost.
    Timeout,
}

/// The sending side.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) first: Seq,
    /// First number that is not acknowledged.
    pub(super) una: Seq,
    /// First number that was not sent.
    pub(super) next: Seq,
    /// What the other side takes from `una` on.
    pub(super) window: usize,
    /// The largest it ever was.
    pub(super) most: usize,
    /// The segment that told the window last: its own number and what it acknowledged.
    told: (Seq, Seq),
    pub(super) scale: u8,
    pub(super) mss: usize,
    pub(super) buffer: SendBuffer,
    /// Whether our SYN was acknowledged.
    is_synced: bool,
    /// Whether the application ended its direction.
    pub(super) fin: bool,
    /// The number of our FIN, once it was sent.
    pub(super) fin_at: Option<Seq>,
    pub(super) flight: Flight,
    pub(super) rtt: Rtt,
    pub(super) cubic: Cubic,
    /// Where the present recovery from a loss ends.
    pub(super) recovery: Option<Seq>,
    sack: bool,
    duplicates: u8,
    pub(super) alarm: Option<(Instant, Alarm)>,
    /// When segments out of order become lost ones.
    settle_at: Option<Instant>,
    pub(super) probe: bool,
    /// Timeouts in a row.
    pub(super) rounds: u32,
    /// When and for which time a closed window is asked about.
    pub(super) persist: Option<(Instant, u32)>,
    /// Whether the congestion window was what held sending up.
    pub(super) limited: bool,
}

/// The receiving side.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) first: Seq,
    /// First number that has not arrived.
    pub(super) next: Seq,
    /// Where the announced window ends.
    pub(super) edge: Seq,
    /// Bytes that may be held.
    pub(super) limit: usize,
    /// When `next` comes here, a window was used up.
    mark: Seq,
    pub(super) buffer: ReceiveBuffer,
    /// Where the other side's data ends.
    fin: Option<Seq>,
    /// Whether windows are scaled.
    pub(super) scaled: bool,
    pub(super) sack: bool,
    pub(super) ack: Ack,
    /// Bytes that arrived since the last acknowledgement.
    unacked: usize,
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
            send: Sender {
                first,
                una: first,
                next: first,
                window: 1,
                most: 0,
                told: (Seq::default(), first),
                scale: 0,
                mss,
                buffer: SendBuffer::new(budget),
                is_synced: false,
                fin: false,
                fin_at: None,
                flight: Flight::default(),
                rtt: Rtt::default(),
                cubic: Cubic::new(mss),
                recovery: None,
                sack: false,
                duplicates: 0,
                alarm: None,
                settle_at: None,
                probe: false,
                rounds: 0,
                persist: None,
                limited: false,
            },
            recv: Receiver {
                first: Seq::default(),
                next: Seq::default(),
                edge: Seq::default(),
                limit: INITIAL_LIMIT.min(budget.allowance()),
                mark: Seq::default(),
                buffer: ReceiveBuffer::new(budget),
                fin: None,
                scaled: false,
                sack: false,
                ack: Ack::None,
                unacked: 0,
            },
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
    pub(super) fn accept(
        key: FlowKey,
        first: Seq,
        syn: &Segment<'_>,
        budget: &Arc<MemoryBudget>,
    ) -> Self {
        let mut conn = Self::open(key, first, budget);
        conn.take_syn(syn);
        conn.state = State::SynReceived;
        conn
    }

    /// Takes what a SYN says of its sender.
    fn take_syn(&mut self, syn: &Segment<'_>) {
        let options = &syn.options;
        self.recv.first = syn.seq;
        self.recv.next = syn.seq + 1;
        self.recv.edge = self.recv.next;
        self.recv.mark = self.recv.next + self.recv.limit as u32;
        self.recv.scaled = options.window_scale.is_some();
        self.recv.sack = options.sack_permitted;
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
                self.recv.ack = Ack::Now;
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
        } else if segment.has(tcp_flags::ACK) && segment.seq == self.recv.first && segment.ack == self.send.next {
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
        let send = &mut self.send;
        let mut news = News::default();
        let least = send.rtt.least();
        let advanced = segment.ack > send.una;
        let is_duplicate = segment.ack == send.una
            && segment.payload.is_empty()
            && !send.flight.is_empty()
            && usize::from(segment.window) << send.scale == send.window;
        if advanced {
            let from = send.data_start();
            send.is_synced = true;
            send.una = segment.ack;
            send.buffer.advance(segment.ack.past(from));
            send.flight.acked(segment.ack, least, now, &mut news);
            send.rounds = 0;
            send.duplicates = 0;
            send.persist = None;
        }
        if send.sack {
            send.flight
                .selectively_acked(&segment.options.sack, least, now, &mut news);
        }
        let shift = if segment.has(tcp_flags::SYN) { 0 } else { send.scale };
        let (seq, ack) = send.told;
        if advanced || segment.seq > seq || (segment.seq == seq && segment.ack >= ack) {
            send.window = usize::from(segment.window) << shift;
            send.most = send.most.max(send.window);
            send.told = (segment.seq, segment.ack);
            if send.window > 0 {
                send.persist = None;
            }
        }
        if let Some(rtt) = news.rtt {
            send.rtt.sample(rtt);
        }
        send.recover(advanced, is_duplicate, now);
        if advanced && send.recovery.is_none() && send.limited {
            let rtt = send.rtt.smoothed().unwrap_or_default();
            send.cubic.acked(news.bytes, rtt, now);
        }
        if advanced || news.bytes > 0 {
            send.alarm = None;
            send.probe = false;
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
        let recv = &mut self.recv;
        let before = recv.next;
        let (from, to) = (segment.seq.max(recv.next), (segment.seq + segment.payload.len() as u32).min(recv.edge));
        if from < to && recv.fin.is_none_or(|fin| to <= fin) {
            let payload = &segment.payload[(from - segment.seq) as usize..(to - segment.seq) as usize];
            recv.next += recv.buffer.insert(recv.next, from, payload);
        }
        let payload_end = segment.seq + segment.payload.len() as u32;
        if segment.has(tcp_flags::FIN) && payload_end <= recv.edge {
            recv.fin.get_or_insert(payload_end);
        }
        let arrived = (recv.next - before) as usize;
        recv.grow(&self.budget);
        if recv.fin == Some(recv.next) {
            recv.next += 1;
            recv.ack = Ack::Now;
            self.state = match self.state {
                State::Established => State::CloseWait,
                State::FinWait1 => State::Closing,
                State::FinWait2 => State::TimeWait,
                state => state,
            };
        }
        let recv = &mut self.recv;
        recv.unacked += arrived;
        // What is out of order, a repetition or cut off is told at once, and so is every second full segment (RFC 5681, 4.2).
        let is_known = segment.end() <= before;
        if is_known || arrived < segment.payload.len() || recv.buffer.has_gaps() || recv.unacked >= 2 * self.send.mss {
            recv.ack = Ack::Now;
        } else if recv.ack == Ack::None {
            recv.ack = Ack::Later(now + ACK_DELAY);
        }
        if arrived > 0 {
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
        if self.recv.wants_update(self.send.mss) && !self.has_received_fin() {
            self.recv.ack = Ack::Now;
        }
        length
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let limit = self.send_limit();
        self.send.buffer.push(bytes, limit)
    }

    /// Bytes that the sending side may hold: twice what is under way at most, so that there is always something to send.
    fn send_limit(&self) -> usize {
        let wanted = (2 * self.send.cubic.window()).max(INITIAL_LIMIT);
        wanted.min(self.budget.allowance())
    }

    /// Whether a write is worth the wake-up.
    pub(super) fn has_room(&self) -> bool {
        let limit = self.send_limit();
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
        let alarm = self.send.alarm.map(|(at, _)| at);
        let persist = self.send.persist.map(|(at, _)| at);
        [
            ack,
            alarm,
            persist,
            self.send.settle_at,
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
        let send = &mut self.send;
        if send.settle_at.is_some_and(|at| at <= now) {
            send.recover(false, false, now);
        }
        match send.alarm {
            Some((at, Alarm::Probe)) if at <= now => {
                send.probe = true;
                send.alarm = Some((now + send.rtt.timeout(0), Alarm::Timeout));
            }
            Some((at, Alarm::Timeout)) if at <= now => {
                if send.rounds == 0 {
                    send.cubic.timed_out();
                    send.recovery = None;
                }
                send.rounds += 1;
                send.flight.lose_all();
                send.alarm = None;
                send.probe = false;
                send.limited = true;
            }
            _ => {}
        }
    }

    /// Whether it waits after a timeout.
    pub(super) fn is_stalled(&self) -> bool {
        self.send.rounds > 0
    }

    /// What is left of it in TIME-WAIT.
    pub(super) fn remains(&self) -> Remains {
        Remains {
            syn: self.recv.first,
            seq: self.send.next,
            ack: self.recv.next,
        }
    }

    /// The peer was heard of after a silence: what waits for a late timeout is tried at once.
    pub(super) fn poke(&mut self, now: Instant) {
        let send = &mut self.send;
        if send.rounds == 0 {
            return;
        }
        if let Some((at, Alarm::Timeout)) = send.alarm {
            // Not more often than the first timeout would.
            let saved = send.rtt.timeout(send.rounds) - send.rtt.timeout(0);
            let at = at.checked_sub(saved).unwrap_or(now).max(now);
            send.alarm = Some((at, Alarm::Timeout));
        }
    }
}

impl Sender {
    /// The number of the first byte in the buffer.
    pub(super) fn data_start(&self) -> Seq {
        if self.is_synced { self.una } else { self.una + 1 }
    }

    /// The number after the last byte in the buffer, which is that of the FIN.
    pub(super) fn data_end(&self) -> Seq {
        self.fin_at
            .unwrap_or_else(|| self.data_start() + self.buffer.len() as u32)
    }

    /// Looks for losses and enters or leaves recovery.
    fn recover(&mut self, advanced: bool, is_duplicate: bool, now: Instant) {
        if self.recovery.is_some_and(|end| self.una >= end) {
            self.recovery = None;
        }
        let in_recovery = self.recovery.is_some();
        let (mut lost, settle_at) = self.flight.detect(in_recovery, self.rtt.least(), now);
        self.settle_at = settle_at;
        if !self.sack {
            self.duplicates = self.duplicates.saturating_add(u8::from(is_duplicate));
            // Without selective acknowledgements (RFC 6582): three repetitions, then whatever an acknowledgement stops at.
            if self.duplicates == 3 || (in_recovery && advanced && !self.flight.is_empty()) {
                self.flight.lose_first();
                lost = true;
            }
        }
        if lost && !in_recovery && self.rounds == 0 {
            self.recovery = Some(self.next);
            self.cubic.lost();
        }
    }

    /// Sets the timer after something was sent or acknowledged.
    pub(super) fn arm(&mut self, now: Instant) {
        if self.flight.is_empty() {
            self.alarm = None;
            return;
        }
        if self.alarm.is_some() {
            return;
        }
        let timeout = self.rtt.timeout(self.rounds);
        let probe = self.rtt.smoothed().map(|smoothed| {
            let delayed = if self.flight.is_single() {
                ACK_DELAY
            } else {
                Duration::ZERO
            };
            (smoothed * 2 + delayed).max(LEAST_PROBE)
        });
        self.alarm = Some(match probe {
            Some(probe)
                if self.sack && self.rounds == 0 && self.recovery.is_none() && !self.flight.has_lost() && probe < timeout =>
            {
                (now + probe, Alarm::Probe)
            }
            _ => (now + timeout, Alarm::Timeout),
        });
    }

    /// Sets the time of the next question to a closed window.
    pub(super) fn arm_persist(&mut self, round: u32, now: Instant) {
        let pause = self.rtt.timeout(0).saturating_mul(1 << round.min(10)).min(MAX_PERSIST);
        self.persist = Some((now + pause, round));
    }
}

impl Receiver {
    /// Lets the window grow when the other side used all of it and the application kept up, and shrink when memory is short.
    fn grow(&mut self, budget: &MemoryBudget) {
        if self.next < self.mark {
            return;
        }
        let allowance = budget.allowance();
        if self.buffer.ready() <= self.limit / 2 {
            self.limit *= 2;
        }
        self.limit = self.limit.min(allowance);
        self.mark = self.next + self.limit as u32;
    }

    /// Where the window could end.
    fn possible_edge(&self) -> Seq {
        self.next + self.limit.saturating_sub(self.buffer.ready()) as u32
    }

    /// Whether reading has made so much room that the other side should know.
    fn wants_update(&self, mss: usize) -> bool {
        let (open, gain) = (self.edge.past(self.next), self.possible_edge().past(self.edge));
        gain >= (2 * mss).min(self.limit / 2) && open < self.limit / 2
    }

    /// The window to announce. Its end never moves back.
    pub(super) fn window(&mut self, is_syn: bool) -> u16 {
        let shift = if self.scaled && !is_syn { WINDOW_SCALE } else { 0 };
        let edge = self.possible_edge().max(self.edge);
        let most = usize::from(u16::MAX) << shift;
        let window = edge.past(self.next).min(most).div_ceil(1 << shift);
        self.edge = self.edge.max(self.next + (window << shift) as u32);
        window as u16
    }

    /// Everything that arrived is being acknowledged.
    pub(super) fn told(&mut self) {
        self.ack = Ack::None;
        self.unacked = 0;
    }
}

/// The largest segment that fits a packet of the tailnet.
pub(super) fn local_mss(key: &FlowKey) -> usize {
    INNER_MTU - header_len(key.local.ip()) - HEADER
}
