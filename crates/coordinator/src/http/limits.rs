//! How many connections there may be.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::config::Limits;

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    counts: Mutex<Counts>,
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands out permits for connections.
#[derive(Clone, Debug)]
pub(crate) struct Permits(Arc<Shared>);

/// The right to one connection; given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    _held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    source: IpAddr,
}

impl Permits {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared {
            limits,
            counts: Mutex::default(),
        }))
    }

    /// A permit for a connection from `source`, if there is room.
    pub(crate) fn admit(&self, source: IpAddr) -> Option<Permit> {
        let mut counts = self.0.counts();
        let of_source = counts.by_source.get(&source).copied().unwrap_or_default();
        if counts.total >= self.0.limits.connections || of_source >= self.0.limits.connections_per_source {
            return None;
        }
        counts.total += 1;
        counts.by_source.insert(source, of_source + 1);
        Some(Permit {
            _held: Arc::new(Held {
                shared: self.0.clone(),
                source,
            }),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.shared.counts();
        counts.total = counts.total.saturating_sub(1);
        if let Entry::Occupied(mut of_source) = counts.by_source.entry(self.source) {
            *of_source.get_mut() -= 1;
            if *of_source.get() == 0 {
                of_source.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_limited_by_source_and_in_total_and_come_back() {
        let permits = Permits::new(Limits {
            connections: 3,
            connections_per_source: 2,
        });
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let first = permits.admit(a).unwrap();
        let second = permits.admit(a).unwrap();
        assert!(permits.admit(a).is_none(), "one source has two at most");
        let _third = permits.admit(b).unwrap();
        assert!(permits.admit(b).is_none(), "there are three in total");
        let clone = first.clone();
        drop(first);
        assert!(permits.admit(a).is_none(), "a clone holds the permit");
        drop(clone);
        drop(second);
        let _again = [permits.admit(a).unwrap(), permits.admit(b).unwrap()];
        assert_eq!(permits.0.counts().total, 3);
    }
}
