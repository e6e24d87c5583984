//! Connections in TIME-WAIT: a few numbers each, in place of a connection.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::FlowKey;
use super::seq::Seq;

/// How long a closed connection answers a repeated FIN. Far below the two segment lifetimes of RFC 9293: a tailnet's packets do not live for minutes, and a
/// lost last acknowledgement is asked for again after a second.
const LIFETIME: Duration = Duration::from_secs(10);
/// How many are kept; the oldest goes first.
const MAX: usize = 4096;

/// What is left of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remains {
    /// The number of the SYN that began it.
    pub(super) syn: Seq,
    /// The number that we would send next.
    pub(super) seq: Seq,
    /// What we acknowledge.
    pub(super) ack: Seq,
}

#[derive(Debug, Default)]
pub(super) struct TimeWait {
    remains: HashMap<FlowKey, (Remains, Instant)>,
    order: VecDeque<(FlowKey, Instant)>,
}

impl TimeWait {
    pub(super) fn insert(&mut self, key: FlowKey, remains: Remains, now: Instant) {
        self.expire(now);
        if self.order.len() == MAX
            && let Some((oldest, until)) = self.order.pop_front()
        {
            self.remove_version(&oldest, until);
        }
        let until = now + LIFETIME;
        self.remains.insert(key, (remains, until));
        self.order.push_back((key, until));
    }

    pub(super) fn get(&self, key: &FlowKey) -> Option<Remains> {
        self.remains.get(key).map(|(remains, _)| *remains)
    }

    pub(super) fn contains(&self, key: &FlowKey) -> bool {
        self.remains.contains_key(key)
    }

    pub(super) fn remove(&mut self, key: &FlowKey) {
        self.remains.remove(key);
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
        if self.remains.capacity() > 0 {
            *self = Self::default();
        }
    }

    /// Removes an entry unless the same 4-tuple has been closed again since.
    fn remove_version(&mut self, key: &FlowKey, until: Instant) {
        if self
            .remains
            .get(key)
            .is_some_and(|(_, version)| *version == until)
        {
            self.remains.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remains_are_bounded_and_end() {
        let (mut time_wait, now) = (TimeWait::default(), Instant::now());
        let key = |port: u16| FlowKey {
            local: "100.64.0.1:80".parse().unwrap(),
            remote: std::net::SocketAddr::new("100.64.0.2".parse().unwrap(), port),
        };
        let remains = Remains {
            syn: Seq(1),
            seq: Seq(2),
            ack: Seq(3),
        };
        for port in 0..=MAX as u16 {
            time_wait.insert(key(port), remains, now);
        }
        assert!(!time_wait.contains(&key(0)), "the oldest gave way");
        assert_eq!(time_wait.get(&key(1)), Some(remains));
        // The same addresses again: the first entry's end is not the second's.
        time_wait.remove(&key(7));
        time_wait.insert(key(7), remains, now + LIFETIME / 2);
        time_wait.expire(now + LIFETIME);
        assert!(time_wait.contains(&key(7)) && !time_wait.contains(&key(8)));
        assert_eq!(time_wait.next_expiry(), Some(now + LIFETIME / 2 + LIFETIME));
    }
}
