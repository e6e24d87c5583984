//! The receiving side of a connection: what has arrived, how much more may come, and whether that was told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffer::ReceiveBuffer;
use super::segment::{SackBlocks, Segment};
use super::seq::Seq;
use crate::budget::MemoryBudget;
use crate::packet::tcp_flags;

/// The scale of windows that we announce: up to 4 MiB in steps of 64 bytes.
pub(super) const WINDOW_SCALE: u8 = 6;
/// Bytes that a new connection may be sent; more when it uses them up.
const INITIAL_LIMIT: usize = 64 * 1024;
/// How long a lone segment may wait for company before it is acknowledged.
pub(super) const ACK_DELAY: Duration = Duration::from_millis(40);

/// How long nothing must have been lost for the window to grow.
const CALM: Duration = Duration::from_secs(1);

/// Whether something is to be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    None,
    Later(Instant),
    Now,
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
    /// When the last segment came.
    clock: Option<Instant>,
    /// Since when the first byte that is missing is, and when one last was for so long that it must be lost.
    missing: Option<Instant>,
    loss: Option<Instant>,
    /// Bytes that arrived since the last acknowledgement.
    unacked: usize,
    /// What arrived a second time, to be told to the sender (RFC 2883).
    repeated: Option<(Seq, Seq)>,
}

/// What a segment brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Bytes that can be read now and could not before.
    pub(super) bytes: usize,
    /// Whether the other side has now sent everything.
    pub(super) fin: bool,
}

impl Receiver {
    pub(super) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self {
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
            clock: None,
            missing: None,
            loss: None,
            unacked: 0,
            repeated: None,
        }
    }

    /// Takes what a SYN says of its sender.
    pub(super) fn begin(&mut self, syn: &Segment<'_>) {
        self.first = syn.seq;
        self.next = syn.seq + 1;
        self.edge = self.next;
        self.mark = self.next + self.limit as u32;
        self.scaled = syn.options.window_scale.is_some();
        self.sack = syn.options.sack_permitted;
    }

    /// Takes the data and the end of a segment of which some lies in the window. `rtt` is the shortest round trip that was seen.
    pub(super) fn take(
        &mut self,
        segment: &Segment<'_>,
        mss: usize,
        rtt: Duration,
        budget: &MemoryBudget,
        now: Instant,
    ) -> Arrival {
        self.clock = Some(now);
        let before = self.next;
        let end = segment.seq + segment.payload.len() as u32;
        let (from, to) = (segment.seq.max(self.next), end.min(self.edge));
        if from < to && self.fin.is_none_or(|fin| to <= fin) {
            let payload = &segment.payload[(from - segment.seq) as usize..(to - segment.seq) as usize];
            self.next += self.buffer.insert(self.next, from, payload);
        }
        if segment.has(tcp_flags::FIN) && end <= self.edge {
            self.fin.get_or_insert(end);
        }
        let bytes = (self.next - before) as usize;
        self.unacked += bytes;
        if bytes > 0 || !self.buffer.has_gaps() {
            self.missing = None;
        }
        if self.buffer.has_gaps() {
            // What only came out of order is there within a fraction of a round trip.
            let since = *self.missing.get_or_insert(now);
            if now.duration_since(since) >= rtt / 2 {
                self.loss = Some(now);
            }
        }
        self.grow(budget);
        let fin = self.fin == Some(self.next);
        if fin {
            self.next += 1;
        }
        if segment.end() <= before {
            self.repeat(segment);
        }
        // What ends, is out of order, a repetition or cut off is told at once, and so is every second full segment (RFC 5681, 4.2).
        let is_plain =
            !fin && segment.end() > before && bytes >= segment.payload.len() && !self.buffer.has_gaps();
        if !is_plain || self.unacked >= 2 * mss {
            self.ack = Ack::Now;
        } else if self.ack == Ack::None {
            self.ack = Ack::Later(now + ACK_DELAY);
        }
        Arrival { bytes, fin }
    }

    /// A segment arrived that is known: our acknowledgement was lost, or it was sent again for nothing.
    pub(super) fn repeat(&mut self, segment: &Segment<'_>) {
        self.ack = Ack::Now;
        if !segment.payload.is_empty() && segment.end() <= self.next {
            self.repeated = Some((segment.seq, segment.seq + segment.payload.len() as u32));
        }
    }

    /// Lets the window grow when the other side used all of it and the application keeps up, and shrink when memory is short. While segments get lost, the
    /// window is not what holds the other side up, and more of it would only be lost too, in this node's own socket.
    pub(super) fn grow(&mut self, budget: &MemoryBudget) {
        let since_loss = self.clock.zip(self.loss);
        let is_calm = since_loss.is_none_or(|(now, loss)| now.duration_since(loss) >= CALM);
        if is_calm && self.next >= self.mark && self.buffer.ready() <= self.limit / 2 {
            self.limit = (self.limit * 2).min(budget.allowance());
            self.mark = self.next + self.limit as u32;
        }
    }

    /// Where the window could end.
    fn possible_edge(&self) -> Seq {
        self.next + self.limit.saturating_sub(self.buffer.ready()) as u32
    }

    /// Whether reading has made so much room that the other side should know.
    pub(super) fn wants_update(&self, mss: usize) -> bool {
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

    /// Whether an acknowledgement has more to say than its number.
    pub(super) fn has_details(&self) -> bool {
        self.sack && (self.repeated.is_some() || self.buffer.has_gaps())
    }

    /// What arrived a second time, then what lies beyond gaps.
    pub(super) fn details(&mut self) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        if let Some((from, to)) = self.repeated {
            blocks.push(from, to);
        }
        self.buffer.sack(&mut blocks);
        blocks
    }

    /// Everything that arrived is being acknowledged.
    pub(super) fn told(&mut self) {
        self.ack = if self.sack && self.buffer.has_news() {
            Ack::Now
        } else {
            Ack::None
        };
        self.unacked = 0;
        self.repeated = None;
    }
}
