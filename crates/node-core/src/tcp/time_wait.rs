//! Connections in TIME-WAIT: a few bytes each, in place of a socket with its buffers.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::FlowKey;

/// How long a closed connection answers a repeated FIN. Far below the two segment lifetimes of RFC 9293: a tailnet's packets do not live for minutes, and a
/// lost last acknowledgement is asked for again after a second.
const LIFETIME: Duration = Duration::from_secs(10);
/// How many are kept; the oldest goes first.
const MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct TimeWait {
    /// The last acknowledgement of each, as the packet that it was, and when it ends.
    acks: HashMap<FlowKey, (Box<[u8]>, Instant)>,
    order: VecDeque<(FlowKey, Instant)>,
}

impl TimeWait {
    pub(super) fn insert(&mut self, key: FlowKey, ack: &[u8], now: Instant) {
        self.expire(now);
        if self.order.len() == MAX
            && let Some((oldest, until)) = self.order.pop_front()
        {
            self.remove_version(&oldest, until);
        }
        let until = now + LIFETIME;
        self.acks.insert(key, (ack.into(), until));
        self.order.push_back((key, until));
    }

    /// The packet that answers a repeated FIN.
    pub(super) fn ack(&self, key: &FlowKey) -> Option<&[u8]> {
        self.acks.get(key).map(|(ack, _)| &**ack)
    }

    pub(super) fn contains(&self, key: &FlowKey) -> bool {
        self.acks.contains_key(key)
    }

    pub(super) fn remove(&mut self, key: &FlowKey) {
        self.acks.remove(key);
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.order.front().map(|(_, until)| *until)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((key, until)) = self.order.front().copied() {
            if until > now {
                return;
            }
            self.order.pop_front();
            self.remove_version(&key, until);
        }
        if self.acks.capacity() > 0 {
            *self = Self::default();
        }
    }

    /// Removes an entry unless the same 4-tuple has been closed again since.
    fn remove_version(&mut self, key: &FlowKey, until: Instant) {
        if self.acks.get(key).is_some_and(|(_, version)| *version == until) {
            self.acks.remove(key);
        }
    }
}
