//! What a relay counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::machine::Counters;

/// Counts since the start of the relay, and the present number of connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Clients that are connected and have proved their keys.
    pub clients: u64,
    /// Clients whose home this relay is.
    pub homes: u64,
    /// TCP connections, among them those that are not yet or never clients.
    pub connections: u64,
    /// TCP connections that were accepted.
    pub accepted: u64,
    /// TCP connections closed at once because of a limit on their number.
    pub refused_limit: u64,
    /// Clients refused because they are not nodes of this tailnet.
    pub refused_admission: u64,
    /// Connections ended because of malformed, oversized or slow input.
    pub faulty: u64,
    /// What was carried and dropped.
    pub carried: Counters,
    /// STUN requests that were answered.
    pub stun_answered: u64,
    /// UDP packets that were no STUN request of a node.
    pub stun_ignored: u64,
}

/// The counts that the shell keeps.
#[derive(Debug, Default)]
pub(crate) struct ShellCounters {
    pub(crate) accepted: Counter,
    pub(crate) refused_limit: Counter,
    pub(crate) refused_admission: Counter,
    pub(crate) faulty: Counter,
    pub(crate) stun_answered: Counter,
    pub(crate) stun_ignored: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
