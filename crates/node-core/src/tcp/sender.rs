//! The sending side of a connection: what the other side takes, what is under way, and the timers for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffer::SendBuffer;
use super::congestion::Cubic;
use super::flight::{Flight, News};
use super::receiver::ACK_DELAY;
use super::rtt::Rtt;
use super::segment::Segment;
use super::seq::Seq;
use crate::budget::MemoryBudget;
use crate::packet::tcp_flags;

/// Bytes that the buffer of a new connection may hold; it grows with the congestion window.
const INITIAL_LIMIT: usize = 64 * 1024;
/// Pause before the end of what was sent is sent again to learn whether it is lost (RFC 8985, 7.2).
const LEAST_PROBE: Duration = Duration::from_millis(10);
/// Longest pause between questions to a peer whose window is closed.
const MAX_PERSIST: Duration = Duration::from_secs(10);

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
    pub(super) told: (Seq, Seq),
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
    /// Where the round ends in which the last loss may turn out to have been none.
    undoable: Option<Seq>,
    pub(super) sack: bool,
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

impl Sender {
    pub(super) fn new(first: Seq, mss: usize, budget: &Arc<MemoryBudget>) -> Self {
        Self {
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
            undoable: None,
            sack: false,
            duplicates: 0,
            alarm: None,
            settle_at: None,
            probe: false,
            rounds: 0,
            persist: None,
            limited: false,
        }
    }

    /// Bytes that may be held: twice what is under way at most, so that there is always something to send.
    pub(super) fn limit(&self, budget: &MemoryBudget) -> usize {
        (2 * self.cubic.window())
            .max(INITIAL_LIMIT)
            .min(budget.allowance())
    }

    /// Takes the acknowledgement and window of a segment. Returns whether it told of progress.
    pub(super) fn acked(&mut self, segment: &Segment<'_>, now: Instant) -> bool {
        let mut news = News::default();
        let least = self.rtt.least();
        let advanced = segment.ack > self.una;
        let shift = if segment.has(tcp_flags::SYN) {
            0
        } else {
            self.scale
        };
        let window = usize::from(segment.window) << shift;
        let is_duplicate = segment.ack == self.una
            && segment.payload.is_empty()
            && !self.flight.is_empty()
            && window == self.window;
        if advanced {
            let from = self.data_start();
            self.is_synced = true;
            self.una = segment.ack;
            self.buffer.advance(segment.ack.past(from));
            self.flight.acked(segment.ack, least, now, &mut news);
            self.rounds = 0;
            self.duplicates = 0;
        }
        if self.sack {
            self.flight
                .selectively_acked(&segment.options.sack, self.una, least, now, &mut news);
        }
        let (seq, ack) = self.told;
        if advanced || segment.seq > seq || (segment.seq == seq && segment.ack >= ack) {
            self.window = window;
            self.most = self.most.max(window);
            self.told = (segment.seq, segment.ack);
            if window > 0 {
                self.persist = None;
            }
        }
        if let Some(rtt) = news.rtt {
            self.rtt.sample(rtt);
        }
        if news.spurious && self.undoable.take().is_some_and(|end| self.una <= end) {
            self.recovery = None;
            self.cubic.undo();
            self.flight.be_patient();
        }
        self.recover(advanced, is_duplicate, now);
        if advanced && self.recovery.is_none() && self.limited {
            let rtt = self.rtt.smoothed().unwrap_or_default();
            self.cubic.acked(news.bytes, rtt, now);
        }
        let progress = advanced || news.bytes > 0;
        if progress {
            self.alarm = None;
            self.probe = false;
        }
        progress
    }

    /// When there is something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let alarm = self.alarm.map(|(at, _)| at);
        let persist = self.persist.map(|(at, _)| at);
        [alarm, persist, self.settle_at].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.settle_at.is_some_and(|at| at <= now) {
            self.recover(false, false, now);
        }
        match self.alarm {
            Some((at, Alarm::Probe)) if at <= now => {
                self.probe = true;
                self.alarm = Some((now + self.rtt.timeout(0), Alarm::Timeout));
            }
            Some((at, Alarm::Timeout)) if at <= now => {
                if self.rounds == 0 {
                    self.cubic.timed_out();
                    self.recovery = None;
                    self.undoable = Some(self.next);
                }
                self.rounds += 1;
                self.flight.lose_all();
                self.alarm = None;
                self.probe = false;
                self.limited = true;
            }
            _ => {}
        }
    }

    /// Whether it waits after a timeout.
    pub(super) fn is_stalled(&self) -> bool {
        self.rounds > 0
    }

    /// The peer was heard of after a silence: what waits for a late timeout is tried at once.
    pub(super) fn poke(&mut self, now: Instant) {
        if self.rounds == 0 {
            return;
        }
        if let Some((at, Alarm::Timeout)) = self.alarm {
            // Not more often than the first timeout would.
            let saved = self.rtt.timeout(self.rounds) - self.rtt.timeout(0);
            let at = at.checked_sub(saved).unwrap_or(now).max(now);
            self.alarm = Some((at, Alarm::Timeout));
        }
    }

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
            self.undoable = self.recovery;
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
                if self.sack
                    && self.rounds == 0
                    && self.recovery.is_none()
                    && !self.flight.has_lost()
                    && probe < timeout =>
            {
                (now + probe, Alarm::Probe)
            }
            _ => (now + timeout, Alarm::Timeout),
        });
    }

    /// Sets the time of the next question to a closed window.
    pub(super) fn arm_persist(&mut self, round: u32, now: Instant) {
        let pause = self
            .rtt
            .timeout(0)
            .saturating_mul(1 << round.min(10))
            .min(MAX_PERSIST);
        self.persist = Some((now + pause, round));
    }
}
