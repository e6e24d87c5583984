//! The work queue: each key at most once in line, and never at two workers.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The first wait after a failure; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// The longest wait after failures.
const MAX_BACKOFF: Duration = Duration::from_secs(120);

/// When a key comes again after it was worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// When something that it read changes.
    OnChange,
    /// Then, or after this time.
    After(Duration),
    /// At once, since what was written against changed meanwhile. The second time in a row it is a failure like others,
    /// so that a cache that lags does not make a storm.
    Now,
    /// After a wait that grows with each failure in a row, and at least this long.
    Backoff(Duration),
}

/// Keys that wait for a worker.
///
/// A key added while a worker has it comes again when that worker is done with it, so that no change is missed and no
/// two workers hold one key.
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    line: VecDeque<K>,
    waiting: HashSet<K>,
    working: HashSet<K>,
    again: HashSet<K>,
    due: HashMap<K, Instant>,
    timers: BTreeMap<Instant, Vec<K>>,
    failures: HashMap<K, u32>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                line: VecDeque::new(),
                waiting: HashSet::new(),
                working: HashSet::new(),
                again: HashSet::new(),
                due: HashMap::new(),
                timers: BTreeMap::new(),
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Debug> Queue<K> {
    /// Puts a key in line, unless it is there.
    pub(crate) fn add(&self, key: K) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    /// The next key, which belongs to the caller until [`Self::done`]. Cancel-safe.
    pub(crate) async fn next(&self) -> K {
        loop {
            let timer = {
                let mut state = self.lock();
                state.fire(Instant::now());
                if let Some(key) = state.take() {
                    if !state.line.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.timers.keys().next().copied()
            };
            match timer {
                Some(at) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(at) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Gives a key back and says when it comes again.
    pub(crate) fn done(&self, key: &K, next: Next) {
        let now = Instant::now();
        let mut state = self.lock();
        state.working.remove(key);
        let again = state.again.remove(key);
        let failures = state.failures.remove(key).unwrap_or(0);
        let wait = match next {
            Next::Backoff(least) => Some(backoff(failures, &mut rand::thread_rng()).max(least)),
            Next::Now if failures > 0 => Some(backoff(failures, &mut rand::thread_rng())),
            Next::Now => Some(Duration::ZERO),
            Next::OnChange | Next::After(_) => None,
        };
        match (wait, next) {
            (Some(wait), _) => {
                state.failures.insert(key.clone(), failures.saturating_add(1));
                // A change that came meanwhile does not cut the wait short: it would turn a storm of events into one of
                // calls.
                if wait.is_zero() {
                    state.add(key.clone());
                } else {
                    state.schedule(key.clone(), now + wait);
                }
            }
            (None, _) if again => state.add(key.clone()),
            (None, Next::After(wait)) => state.schedule(key.clone(), now + wait),
            (None, _) => {}
        }
        drop(state);
        self.changed.notify_one();
    }

    /// How many keys wait for a worker now, not counting those that wait for a time.
    pub(crate) fn depth(&self) -> usize {
        self.lock().line.len()
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash + Debug> State<K> {
    fn add(&mut self, key: K) {
        if self.working.contains(&key) {
            self.again.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.cancel(&key);
            self.line.push_back(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.line.pop_front()?;
        self.waiting.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    fn schedule(&mut self, key: K, at: Instant) {
        if self.waiting.contains(&key) || self.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        self.cancel(&key);
        self.due.insert(key.clone(), at);
        self.timers.entry(at).or_default().push(key);
    }

    fn cancel(&mut self, key: &K) {
        let Some(at) = self.due.remove(key) else { return };
        if let Some(keys) = self.timers.get_mut(&at) {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.timers.remove(&at);
            }
        }
    }

    fn fire(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry().filter(|entry| *entry.key() <= now) {
            for key in entry.remove() {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

/// The wait after `failures` earlier failures in a row, with jitter so that what failed together does not return together.
fn backoff(failures: u32, rng: &mut impl Rng) -> Duration {
    let span = FIRST_BACKOFF
        .saturating_mul(1 << failures.min(16))
        .min(MAX_BACKOFF);
    span.mul_f64(rng.gen_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{advance, timeout};

    use super::*;

    async fn nothing(queue: &Queue<&'static str>) {
        assert!(timeout(Duration::from_millis(1), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_in_line_once() {
        let queue = Queue::default();
        for key in ["a", "b", "a"] {
            queue.add(key);
        }
        assert_eq!(queue.depth(), 2);
        assert_eq!((queue.next().await, queue.next().await), ("a", "b"));
        nothing(&queue).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_changes_under_work_comes_again() {
        let queue = Queue::default();
        queue.add("a");
        queue.next().await;
        queue.add("a");
        nothing(&queue).await;
        queue.done(&"a", Next::OnChange);
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", Next::OnChange);
        nothing(&queue).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_sooner_of_two_times_counts() {
        let queue = Queue::default();
        let start = Instant::now();
        for seconds in [100, 10, 50] {
            queue.lock().schedule("a", start + Duration::from_secs(seconds));
        }
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 10);
        queue.done(&"a", Next::OnChange);
        nothing(&queue).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_added_key_forgets_its_timer() {
        let queue = Queue::default();
        queue
            .lock()
            .schedule("a", Instant::now() + Duration::from_secs(10));
        queue.add("a");
        queue.next().await;
        queue.done(&"a", Next::OnChange);
        advance(Duration::from_secs(20)).await;
        nothing(&queue).await;
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_until_success() {
        let queue = Queue::default();
        queue.add("a");
        let mut waits = Vec::new();
        for _ in 0..12 {
            let start = Instant::now();
            queue.next().await;
            waits.push(start.elapsed());
            queue.done(&"a", Next::Backoff(Duration::ZERO));
        }
        assert!(waits[2] >= FIRST_BACKOFF && waits[11] >= MAX_BACKOFF / 2 && waits[11] <= MAX_BACKOFF);
        queue.next().await;
        queue.done(&"a", Next::OnChange);
        queue.add("a");
        queue.next().await;
        let start = Instant::now();
        queue.done(&"a", Next::Backoff(Duration::from_secs(30)));
        queue.next().await;
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn one_conflict_is_immediate_and_a_series_is_not() {
        let queue = Queue::default();
        queue.add("a");
        queue.next().await;
        let start = Instant::now();
        queue.done(&"a", Next::Now);
        queue.next().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        queue.done(&"a", Next::Now);
        queue.next().await;
        assert!(start.elapsed() >= FIRST_BACKOFF / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_a_failing_attempt_does_not_cut_the_wait() {
        let queue = Queue::default();
        queue.add("a");
        queue.next().await;
        queue.add("a");
        queue.done(&"a", Next::Backoff(Duration::from_secs(5)));
        let start = Instant::now();
        queue.next().await;
        assert_eq!(start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn every_waiting_worker_gets_a_key() {
        let queue = Arc::new(Queue::default());
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        for key in [1, 2, 3, 4] {
            queue.add(key);
        }
        let mut seen = Vec::new();
        for worker in workers {
            seen.push(timeout(Duration::from_secs(1), worker).await.unwrap().unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3, 4]);
    }
}
