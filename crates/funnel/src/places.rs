//! How many connections the internet may have here at one time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tailwharf_coordinator::config::FunnelLimits;

/// Places for connections: so many in total, and so many for each source.
#[derive(Clone)]
pub(crate) struct Places(Arc<Counts>);

struct Counts {
    limits: FunnelLimits,
    by_source: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// One place; free again when dropped.
pub(crate) struct Place {
    counts: Arc<Counts>,
    source: IpAddr,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, (usize, HashMap<IpAddr, usize>)> {
        self.by_source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    pub(crate) fn new(limits: FunnelLimits) -> Self {
        Self(Arc::new(Counts {
            limits,
            by_source: Mutex::default(),
        }))
    }

    /// Takes one for a connection from `source`, if there is one left.
    pub(crate) fn take(&self, source: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock();
        let of_source = counts.1.get(&source).copied().unwrap_or_default();
        if counts.0 >= self.0.limits.connections || of_source >= self.0.limits.connections_per_source {
            return None;
        }
        counts.0 += 1;
        counts.1.insert(source, of_source + 1);
        drop(counts);
        Some(Place {
            counts: self.0.clone(),
            source,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.0 = counts.0.saturating_sub(1);
        let left = counts
            .1
            .get(&self.source)
            .map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            counts.1.remove(&self.source);
        } else {
            counts.1.insert(self.source, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_come_back() {
        let places = Places::new(FunnelLimits {
            connections: 3,
            connections_per_source: 2,
        });
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let first = places.take(a).unwrap();
        let _second = places.take(a).unwrap();
        assert!(places.take(a).is_none());
        let _third = places.take(b).unwrap();
        assert!(places.take(b).is_none());
        drop(first);
        assert!(places.take(b).is_some());
        assert!(places.take(a).is_some());
    }
}
