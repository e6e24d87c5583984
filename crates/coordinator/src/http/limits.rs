//! How many connections there may be, and how often something may be tried.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::config::Limits;

/// Keys that a [`Rate`] remembers at one time.
const RATE_KEYS: usize = 65_536;

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    refused: u64,
    by_source: HashMap<IpAddr, OfSource>,
}

#[derive(Clone, Copy, Debug, Default)]
struct OfSource {
    open: usize,
    half_open: usize,
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
///
/// A connection is half open until it has shown what it is for. Half open ones are counted apart, so that a flood of them leaves room for others.
#[derive(Clone, Debug)]
pub(crate) struct Permit(Arc<Held>);

#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    source: IpAddr,
    half_open: AtomicBool,
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
        let limits = &self.0.limits;
        let mut counts = self.0.counts();
        let of_source = counts.by_source.get(&source).copied().unwrap_or_default();
        if counts.total >= limits.connections
            || of_source.open >= limits.connections_per_source
            || of_source.half_open >= limits.half_open_per_source
        {
            counts.refused += 1;
            return None;
        }
        counts.total += 1;
        counts.by_source.insert(
            source,
            OfSource {
                open: of_source.open + 1,
                half_open: of_source.half_open + 1,
            },
        );
        Some(Permit(Arc::new(Held {
            shared: self.0.clone(),
            source,
            half_open: AtomicBool::new(true),
        })))
    }
}

/// How many permits are out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InUse {
    /// Of all connections.
    pub(crate) open: usize,
    /// Of those that have not shown yet what they are for.
    pub(crate) half_open: usize,
    /// How many connections got none.
    pub(crate) refused: u64,
}

impl Permits {
    /// How many permits are out now.
    pub(crate) fn in_use(&self) -> InUse {
        let counts = self.0.counts();
        InUse {
            open: counts.total,
            half_open: counts.by_source.values().map(|source| source.half_open).sum(),
            refused: counts.refused,
        }
    }
}

impl Permit {
    /// Says that the connection is not half open any more.
    pub(crate) fn settle(&self) {
        if self.0.half_open.swap(false, Ordering::Relaxed)
            && let Some(of_source) = self.0.shared.counts().by_source.get_mut(&self.0.source)
        {
            of_source.half_open = of_source.half_open.saturating_sub(1);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.shared.counts();
        counts.total = counts.total.saturating_sub(1);
        if let Entry::Occupied(mut entry) = counts.by_source.entry(self.source) {
            let of_source = entry.get_mut();
            of_source.open = of_source.open.saturating_sub(1);
            if *self.half_open.get_mut() {
                of_source.half_open = of_source.half_open.saturating_sub(1);
            }
            if of_source.open == 0 {
                entry.remove();
            }
        }
    }
}

/// Where a request comes from, as far as limits are concerned: an IPv4 address, or the /64 of an IPv6 address, in which one host has all addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(addr: IpAddr) -> Self {
        Self(match addr.to_canonical() {
            IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX)).into(),
            addr => addr,
        })
    }
}

/// How often each of many keys may do something: a bucket for each, which fills with time.
#[derive(Debug)]
pub(crate) struct Rate<K> {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl<K: Eq + Hash> Rate<K> {
    /// `per_second` on average, and `burst` at once.
    pub(crate) fn new(per_second: f64, burst: f64) -> Self {
        Self {
            per_second,
            burst,
            buckets: Mutex::default(),
        }
    }

    /// Whether `key` may do it once more.
    ///
    /// # Errors
    /// How long to wait until it may.
    pub(crate) fn check(&self, key: &K) -> Result<(), Duration> {
        let level = self
            .lock()
            .get(key)
            .map_or(self.burst, |bucket| self.level(bucket, Instant::now()));
        if level >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - level) / self.per_second))
    }

    /// Counts that `key` did it once.
    pub(crate) fn count(&self, key: K) {
        let now = Instant::now();
        let mut buckets = self.lock();
        if buckets.len() >= RATE_KEYS && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| self.level(bucket, now) < self.burst);
            // Still full: then nobody new is counted, for memory has a limit and a flood of others must not lock anyone out.
            if buckets.len() >= RATE_KEYS {
                return;
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket {
            level: self.burst,
            at: now,
        });
        *bucket = Bucket {
            level: (self.level(bucket, now) - 1.0).max(0.0),
            at: now,
        };
    }

    fn level(&self, bucket: &Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.level + passed * self.per_second).min(self.burst)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits() -> Permits {
        Permits::new(Limits {
            connections: 3,
            connections_per_source: 2,
            half_open_per_source: 2,
            ..Limits::default()
        })
    }

    #[test]
    fn permits_are_limited_by_source_and_in_total_and_come_back() {
        let permits = permits();
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

    #[test]
    fn half_open_connections_are_counted_apart() {
        let limits = Limits {
            half_open_per_source: 1,
            ..Limits::default()
        };
        let (permits, source) = (Permits::new(limits), "192.0.2.1".parse().unwrap());
        let first = permits.admit(source).unwrap();
        assert!(permits.admit(source).is_none());
        first.settle();
        first.settle();
        let second = permits.admit(source).unwrap();
        assert!(permits.admit(source).is_none());
        drop(second);
        drop(permits.admit(source).unwrap());
        drop(first);
        assert!(permits.0.counts().by_source.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_gives_a_burst_and_then_a_trickle() {
        let rate = Rate::new(2.0, 3.0);
        for _ in 0..3 {
            assert_eq!(rate.check(&1), Ok(()));
            rate.count(1);
        }
        assert_eq!(rate.check(&1), Err(Duration::from_millis(500)));
        assert_eq!(rate.check(&2), Ok(()), "others are not concerned");
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(rate.check(&1), Ok(()));
        tokio::time::advance(Duration::from_secs(60)).await;
        for _ in 0..3 {
            rate.count(1);
        }
        assert!(rate.check(&1).is_err(), "a bucket holds no more than its burst");
    }

    #[test]
    fn hosts_are_told_apart_by_address_or_by_64() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }
}
