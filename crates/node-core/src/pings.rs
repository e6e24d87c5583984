//! Pings under way.

use std::time::{Duration, Instant};

use tailwharf_wire::disco::TxId;

use crate::event::{Event, PingError, PingId};

/// How long a ping waits for its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many may be under way.
const MAX: usize = 64;

/// By what an answer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A disco pong.
    Disco(TxId),
    /// A TSMP pong.
    Tsmp([u8; 8]),
    /// An ICMP echo reply, by its identifier and sequence number.
    Icmp([u8; 4]),
}

/// The pings that have no answer yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pings {
    pending: Vec<Pending>,
    next: u64,
}

#[derive(Debug)]
struct Pending {
    id: PingId,
    token: Token,
    sent: Instant,
}

impl Pings {
    pub(crate) fn check_room(&self) -> Result<(), PingError> {
        if self.pending.len() < MAX {
            Ok(())
        } else {
            Err(PingError::TooMany)
        }
    }

    pub(crate) fn add(&mut self, token: Token, sent: Instant) -> PingId {
        let id = PingId(self.next);
        self.next += 1;
        self.pending.push(Pending { id, token, sent });
        id
    }

    /// The ping that this answers, and how long the answer took.
    pub(crate) fn answered(&mut self, token: Token, now: Instant) -> Option<(PingId, Duration)> {
        let at = self.pending.iter().position(|ping| ping.token == token)?;
        let ping = self.pending.remove(at);
        Some((ping.id, now.duration_since(ping.sent)))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.pending.first().map(|ping| ping.sent + TIMEOUT)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> impl Iterator<Item = Event> + '_ {
        let late = self
            .pending
            .iter()
            .take_while(|ping| ping.sent + TIMEOUT <= now)
            .count();
        self.pending.drain(..late).map(|ping| Event::PingTimeout(ping.id))
    }
}
