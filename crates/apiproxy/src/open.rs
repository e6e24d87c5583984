//! Streams that are open: watches, followed logs and sessions. They are counted for each caller, and end when what allowed them does.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tailwharf_node::WhoIs;
use tokio_util::sync::CancellationToken;

use crate::caller::{Caller, SystemGroups};
use crate::refusal::Refusal;

/// One stream as the review knows it.
#[derive(Debug)]
struct Entry {
    remote: SocketAddr,
    local: IpAddr,
    caller: Arc<Caller>,
    cut: CancellationToken,
}

/// All open streams of the proxy.
#[derive(Debug)]
pub(crate) struct OpenStreams {
    /// Ends all of them.
    stop: CancellationToken,
    entries: Mutex<HashMap<u64, Entry>>,
    counts: Mutex<HashMap<String, usize>>,
    next: AtomicU64,
}

/// A stream that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    all: Arc<OpenStreams>,
    number: u64,
    user: String,
    cut: CancellationToken,
}

impl OpenStream {
    /// Cancelled when the stream has to end.
    pub(crate) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Why it has to end.
    pub(crate) fn why(&self) -> &'static str {
        if self.all.stop.is_cancelled() {
            "the proxy has stopped"
        } else {
            "the caller's grants or device have changed"
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        lock(&self.all.entries).remove(&self.number);
        let mut counts = lock(&self.all.counts);
        if let Some(count) = counts.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.user);
            }
        }
    }
}

impl OpenStreams {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            entries: Mutex::default(),
            counts: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    /// Counts one more stream of a caller, who may have `limit` of them.
    pub(crate) fn open(
        self: &Arc<Self>,
        remote: SocketAddr,
        local: IpAddr,
        caller: &Arc<Caller>,
        limit: usize,
    ) -> Result<OpenStream, Refusal> {
        let mut counts = lock(&self.counts);
        let count = counts.entry(caller.user.clone()).or_default();
        if *count >= limit {
            return Err(Refusal::TooMany {
                user: caller.user.clone(),
                open: *count,
            });
        }
        *count += 1;
        drop(counts);
        let cut = self.stop.child_token();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            remote,
            local,
            caller: caller.clone(),
            cut: cut.clone(),
        };
        lock(&self.entries).insert(number, entry);
        Ok(OpenStream {
            all: self.clone(),
            number,
            user: caller.user.clone(),
            cut,
        })
    }

    /// How many streams are open.
    pub(crate) fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    /// Ends every stream whose caller would be somebody else, or nobody, by now.
    pub(crate) fn review(&self, whois: impl Fn(SocketAddr, IpAddr) -> Option<WhoIs>, system: &SystemGroups) {
        let mut known: HashMap<(IpAddr, IpAddr), Option<Caller>> = HashMap::new();
        for entry in lock(&self.entries).values() {
            let now = known.entry((entry.remote.ip(), entry.local)).or_insert_with(|| {
                whois(entry.remote, entry.local).and_then(|who| Caller::new(&who, system).ok())
            });
            if !still_allowed(&entry.caller, now.as_ref()) {
                entry.cut.cancel();
            }
        }
    }
}

/// Whether what a caller opened before may go on.
fn still_allowed(before: &Caller, now: Option<&Caller>) -> bool {
    now.is_some_and(|now| {
        let same_device = now.device_id == before.device_id && now.user == before.user;
        same_device && (before.grant.keep_streams || now.groups == before.groups && now.grant == before.grant)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
