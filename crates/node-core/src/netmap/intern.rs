//! One copy of each record per process.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tailwharf_wire::tailcfg::{DerpMap, StableId, UserId, UserProfile};

use super::Peer;

/// Keeps one copy of each peer record, user profile and relay map that is in use in a process. Share one among all identities.
#[derive(Debug, Default)]
pub struct Interner {
    peers: Pool<StableId, Peer>,
    users: Pool<UserId, UserProfile>,
    derp_maps: Pool<(), DerpMap>,
}

impl Interner {
    /// The shared copy of a peer record.
    #[must_use]
    pub fn peer(&self, peer: Peer) -> Arc<Peer> {
        self.peers.intern(peer.stable_id.clone(), peer)
    }

    /// The shared copy of a user profile.
    #[must_use]
    pub fn user(&self, user: &UserProfile) -> Arc<UserProfile> {
        self.users.intern(user.id, user.clone())
    }

    /// The shared copy of a relay map.
    #[must_use]
    pub fn derp_map(&self, derp_map: &DerpMap) -> Arc<DerpMap> {
        self.derp_maps.intern((), derp_map.clone())
    }

    /// How many peer records are in use.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        let versions = self.peers.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions
            .values()
            .flatten()
            .filter(|version| version.strong_count() > 0)
            .count()
    }
}

/// Versions in use, by identity of what they describe.
#[derive(Debug)]
struct Pool<K, V> {
    versions: Mutex<HashMap<K, Vec<Weak<V>>>>,
}

impl<K, V> Default for Pool<K, V> {
    fn default() -> Self {
        Self {
            versions: Mutex::new(HashMap::new()),
        }
    }
}

impl<K: Eq + Hash, V: PartialEq> Pool<K, V> {
    fn intern(&self, key: K, value: V) -> Arc<V> {
        let mut all = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            // Before the table grows, what is no longer in use is let go.
            all.retain(|_, versions| versions.iter().any(|version| version.strong_count() > 0));
        }
        let versions = all.entry(key).or_default();
        versions.retain(|version| version.strong_count() > 0);
        let known = versions
            .iter()
            .filter_map(Weak::upgrade)
            .find(|known| **known == value);
        known.unwrap_or_else(|| {
            let value = Arc::new(value);
            versions.push(Arc::downgrade(&value));
            value
        })
    }
}
