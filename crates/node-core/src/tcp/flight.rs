//! What is under way, and what of it is lost: RACK (RFC 8985), which tells by time, so that packets out of order or lost twice need no special case.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::segment::SackBlocks;
use super::seq::Seq;

/// Segments beyond a gap after which it counts as a loss at once, as long as the path was never seen to reorder.
const DUPLICATES: usize = 3;

/// Most quarters of a round trip by which reordering is waited for.
const MAX_PATIENCE: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Flying,
    Lost,
    Arrived,
}

/// One segment that was sent and is not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Record {
    seq: Seq,
    length: u32,
    sent: Instant,
    /// Whether it was sent more than once.
    again: bool,
    fate: Fate,
}

impl Record {
    fn end(&self) -> Seq {
        self.seq + self.length
    }
}

/// What an acknowledgement brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// Bytes that are known to have arrived now.
    pub(super) bytes: usize,
    /// A measured round trip.
    pub(super) rtt: Option<Duration>,
    /// Whether something that was sent again had not been lost.
    pub(super) spurious: bool,
}

/// The segments of one connection that are under way, in order.
#[derive(Debug, Default)]
pub(super) struct Flight {
    records: VecDeque<Record>,
    /// Bytes that are neither lost nor known to have arrived.
    flying: usize,
    lost: usize,
    arrived: usize,
    /// When and up to where the latest segment was sent that has arrived, and how long it took.
    rack: Option<(Instant, Seq, Duration)>,
    highest_arrived: Option<Seq>,
    /// How much reordering is waited for, in quarters of a round trip; none as long as the path was never seen to reorder.
    patience: u32,
}

impl Flight {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes that are under way.
    pub(super) fn flying(&self) -> usize {
        self.flying
    }

    pub(super) fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// A segment is sent for the first time.
    pub(super) fn push(&mut self, seq: Seq, length: u32, now: Instant) {
        self.flying += length as usize;
        self.records.push_back(Record {
            seq,
            length,
            sent: now,
            again: false,
            fate: Fate::Flying,
        });
    }

    /// Everything before `una` has arrived.
    pub(super) fn acked(&mut self, una: Seq, least_rtt: Duration, now: Instant, news: &mut News) {
        while let Some(record) = self.records.front().copied() {
            if record.seq >= una {
                break;
            }
            if record.end() > una {
                // Acknowledged in part: the rest stays as it is.
                let gone = una - record.seq;
                if record.fate == Fate::Flying {
                    self.flying -= gone as usize;
                }
                if let Some(front) = self.records.front_mut() {
                    front.seq = una;
                    front.length -= gone;
                }
                break;
            }
            self.records.pop_front();
            self.leave(record.fate, record.length);
            if record.fate != Fate::Arrived {
                self.arrive(&record, least_rtt, now, news);
            } else {
                self.arrived -= 1;
            }
        }
        if self.records.is_empty() {
            *self = Self {
                patience: self.patience,
                ..Self::default()
            };
        }
    }

    /// These ranges have arrived ahead of their turn.
    pub(super) fn selectively_acked(
        &mut self,
        blocks: &SackBlocks,
        una: Seq,
        least_rtt: Duration,
        now: Instant,
        news: &mut News,
    ) {
        for (index, (from, to)) in blocks.iter().enumerate() {
            // A first block behind the acknowledgement tells of a second copy (RFC 2883, 4).
            if index == 0 && to <= una {
                news.spurious = true;
                continue;
            }
            let first = self.records.partition_point(|record| record.seq < from);
            for index in first..self.records.len() {
                let record = self.records[index];
                if record.end() > to {
                    break;
                }
                if record.fate == Fate::Arrived {
                    continue;
                }
                self.leave(record.fate, record.length);
                self.arrived += 1;
                self.records[index].fate = Fate::Arrived;
                self.arrive(&record, least_rtt, now, news);
            }
        }
    }

    fn leave(&mut self, fate: Fate, length: u32) {
        match fate {
            Fate::Flying => self.flying -= length as usize,
            Fate::Lost => self.lost -= 1,
            Fate::Arrived => {}
        }
    }

    /// Draws conclusions from the arrival of one segment.
    fn arrive(&mut self, record: &Record, least_rtt: Duration, now: Instant, news: &mut News) {
        news.bytes += record.length as usize;
        let took = now.saturating_duration_since(record.sent);
        if record.again {
            // What was acknowledged sooner than the path allows was its first copy.
            if took < least_rtt {
                news.spurious = true;
                return;
            }
        } else {
            news.rtt = Some(news.rtt.map_or(took, |rtt| rtt.min(took)));
            if self.highest_arrived.is_some_and(|highest| record.end() < highest) {
                self.patience = self.patience.max(1);
            }
        }
        let end = record.end();
        self.highest_arrived = Some(self.highest_arrived.map_or(end, |highest| highest.max(end)));
        if self
            .rack
            .is_none_or(|(sent, end, _)| is_later(record.sent, record.end(), sent, end))
        {
            self.rack = Some((record.sent, record.end(), took));
        }
    }

    /// Marks as lost what was sent before something that has arrived, and by how much longer ago than reordering explains. Returns whether there was any, and
    /// when to look again.
    pub(super) fn detect(
        &mut self,
        in_recovery: bool,
        least_rtt: Duration,
        now: Instant,
    ) -> (bool, Option<Instant>) {
        if self.arrived == 0 && !in_recovery {
            return (false, None);
        }
        let Some((sent, end, rtt)) = self.rack else {
            return (false, None);
        };
        let tolerance = if self.patience == 0 && (in_recovery || self.arrived >= DUPLICATES) {
            Duration::ZERO
        } else {
            (least_rtt.min(rtt) / 4 * self.patience.max(1)).min(rtt)
        };
        let (mut any, mut next) = (false, None::<Instant>);
        for record in &mut self.records {
            if record.fate != Fate::Flying || !is_later(sent, end, record.sent, record.end()) {
                continue;
            }
            let due = record.sent + rtt + tolerance;
            if due <= now {
                record.fate = Fate::Lost;
                self.flying -= record.length as usize;
                self.lost += 1;
                any = true;
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        (any, next)
    }

    /// What was taken for lost had only been late: later ones are waited for longer (RFC 8985, 6.2).
    pub(super) fn be_patient(&mut self) {
        self.patience = (self.patience + 1).min(MAX_PATIENCE);
    }

    /// Marks the first segment as lost, for peers without selective acknowledgements.
    pub(super) fn lose_first(&mut self) {
        if let Some(record) = self.records.front_mut()
            && record.fate == Fate::Flying
        {
            record.fate = Fate::Lost;
            self.flying -= record.length as usize;
            self.lost += 1;
        }
    }

    /// Marks as lost whatever is not known to have arrived.
    pub(super) fn lose_all(&mut self) {
        self.flying = 0;
        self.lost = 0;
        for record in &mut self.records {
            if record.fate != Fate::Arrived {
                record.fate = Fate::Lost;
                self.lost += 1;
            }
        }
    }

    /// The first lost segment, if it is no longer than `room`, to be sent again now. Of one longer than `most`, a part.
    pub(super) fn resend_lost(&mut self, most: usize, room: usize, now: Instant) -> Option<(Seq, u32)> {
        if self.lost == 0 {
            return None;
        }
        let index = self.records.iter().position(|record| record.fate == Fate::Lost)?;
        let mut record = self.records[index];
        let length = record.length.min(most as u32);
        if length as usize > room {
            return None;
        }
        if length < record.length {
            let rest = Record {
                seq: record.seq + length,
                length: record.length - length,
                ..record
            };
            self.records.insert(index + 1, rest);
            self.lost += 1;
        }
        record = Record {
            length,
            sent: now,
            again: true,
            fate: Fate::Flying,
            ..record
        };
        self.records[index] = record;
        self.lost -= 1;
        self.flying += length as usize;
        Some((record.seq, length))
    }

    /// The last segment, which is sent again now to find out what became of it and those before.
    pub(super) fn resend_last(&mut self, now: Instant) -> Option<(Seq, u32)> {
        let record = self.records.back_mut()?;
        if record.fate != Fate::Flying {
            return None;
        }
        record.again = true;
        record.sent = now;
        Some((record.seq, record.length))
    }

    /// Whether one segment alone is under way.
    pub(super) fn is_single(&self) -> bool {
        self.records.len() == 1
    }
}

fn is_later(sent: Instant, end: Seq, than: Instant, than_end: Seq) -> bool {
    sent > than || (sent == than && end > than_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn sacked(flight: &mut Flight, from: u32, to: u32, now: Instant) -> News {
        let (mut blocks, mut news) = (SackBlocks::default(), News::default());
        blocks.push(Seq(from), Seq(to));
        flight.selectively_acked(&blocks, Seq(0), MS, now, &mut news);
        news
    }

    fn ten(start: Instant) -> Flight {
        let mut flight = Flight::default();
        for index in 0..10 {
            flight.push(Seq(index * 100), 100, start + MS / 10 * index);
        }
        flight
    }

    #[test]
    fn a_gap_is_lost_and_a_lost_repetition_is_lost_again() {
        let start = Instant::now();
        let mut flight = ten(start);
        let now = start + 10 * MS;
        assert_eq!(sacked(&mut flight, 100, 400, now).bytes, 300);
        let (any, _) = flight.detect(false, 10 * MS, now);
        assert!(any && flight.has_lost());
        assert_eq!(flight.flying(), 600);
        assert_eq!(flight.resend_lost(100, 1000, now), Some((Seq(0), 100)));
        assert_eq!(flight.resend_lost(100, 1000, now), None);
        // What was sent after the repetition arrives, the repetition does not.
        flight.push(Seq(1000), 100, now + MS);
        let later = now + 12 * MS;
        sacked(&mut flight, 400, 1100, later);
        assert!(flight.detect(true, 10 * MS, later).0);
        assert_eq!(flight.resend_lost(100, 1000, later), Some((Seq(0), 100)));
    }

    #[test]
    fn once_seen_reordering_is_waited_for() {
        let start = Instant::now();
        let mut flight = ten(start);
        let now = start + 10 * MS;
        sacked(&mut flight, 300, 400, now);
        let (any, again) = flight.detect(false, 10 * MS, now);
        assert!(!any && again.is_some());
        sacked(&mut flight, 200, 300, now + MS);
        sacked(&mut flight, 400, 900, now + MS);
        let (any, again) = flight.detect(false, 10 * MS, now + MS);
        assert!(
            !any && again.is_some(),
            "three segments beyond the gap, but the path reorders"
        );
        assert!(flight.detect(false, 10 * MS, now + 20 * MS).0);
    }

    #[test]
    fn acknowledgements_in_part_leave_the_rest() {
        let start = Instant::now();
        let mut flight = ten(start);
        let mut news = News::default();
        flight.acked(Seq(150), MS, start + 5 * MS, &mut news);
        assert_eq!((news.bytes, flight.flying()), (100, 850));
        assert!(news.rtt.is_some());
        flight.lose_all();
        assert_eq!(
            (flight.flying(), flight.resend_lost(30, 1000, start)),
            (0, Some((Seq(150), 30)))
        );
        assert_eq!(flight.resend_lost(30, 1000, start), Some((Seq(180), 20)));
        flight.acked(Seq(1000), MS, start + 9 * MS, &mut news);
        assert!(flight.is_empty() && flight.flying() == 0 && !flight.has_lost());
    }
}
