//! The state of a running node, and its way into the store.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};
use tailwharf_wire::key::{MachinePrivate, NodePrivate};

use crate::api::{NodeState, StateStore, StoreError};
use crate::backoff::Backoff;
use crate::sync::lock;

impl NodeState {
    /// The state of a node that no control server knows yet.
    pub(crate) fn fresh(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        Self {
            machine_key: MachinePrivate::generate(rng),
            node_key: NodePrivate::generate(rng),
            old_node_key: None,
            stable_id: None,
            fqdn: None,
            addresses: Vec::new(),
            profile: None,
            home_region: None,
            derp_map: None,
            udp_port: None,
        }
    }
}

/// The state now, and its saved copy. Changes are saved in the background, in order, and again until they are.
pub(crate) struct StateKeeper {
    store: Arc<dyn StateStore>,
    current: Mutex<Versioned>,
    /// The version that the store has.
    saved: tokio::sync::Mutex<u64>,
}

#[derive(Clone)]
struct Versioned {
    state: NodeState,
    version: u64,
}

impl StateKeeper {
    /// Loads the state, or makes a new one, which is not saved yet.
    pub(crate) async fn load(store: Arc<dyn StateStore>, rng: &mut StdRng) -> Result<Arc<Self>, StoreError> {
        let loaded = store.load().await?;
        let (version, saved) = if loaded.is_some() { (0, 0) } else { (1, 0) };
        let state = loaded.unwrap_or_else(|| NodeState::fresh(rng));
        Ok(Arc::new(Self {
            store,
            current: Mutex::new(Versioned { state, version }),
            saved: tokio::sync::Mutex::new(saved),
        }))
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&NodeState) -> T) -> T {
        read(&lock(&self.current).state)
    }

    /// Changes the state. `change` tells whether it did; then the state is saved in the background.
    pub(crate) fn update(self: &Arc<Self>, change: impl FnOnce(&mut NodeState) -> bool) {
        let mut current = lock(&self.current);
        if change(&mut current.state) {
            current.version += 1;
            drop(current);
            let keeper = Arc::downgrade(self);
            tokio::spawn(save_until_done(keeper));
        }
    }

    /// Saves what is not saved yet. When it returns without an error, the store has all changes made before the call.
    pub(crate) async fn save(&self) -> Result<(), StoreError> {
        let mut saved = self.saved.lock().await;
        let now = lock(&self.current).clone();
        if *saved < now.version {
            self.store.save(&now.state).await?;
            *saved = now.version;
        }
        Ok(())
    }
}

/// Tries until the state is saved or the node is gone.
async fn save_until_done(keeper: Weak<StateKeeper>) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
    while let Some(keeper) = keeper.upgrade() {
        let Err(error) = keeper.save().await else { return };
        drop(keeper);
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "state not saved; it will be tried again"
        );
        tokio::time::sleep(backoff.next(&mut StdRng::from_entropy())).await;
    }
}

impl fmt::Debug for StateKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateKeeper").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::testing::sample_state;

    /// Fails `failures` times, then keeps.
    struct Flaky {
        failures: Mutex<u32>,
        kept: Mutex<Vec<NodeState>>,
    }

    impl StateStore for Flaky {
        fn load(&self) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>> {
            async { Ok(lock(&self.kept).last().cloned()) }.boxed()
        }

        fn save<'a>(&'a self, state: &'a NodeState) -> BoxFuture<'a, Result<(), StoreError>> {
            async move {
                let mut failures = lock(&self.failures);
                if *failures > 0 {
                    *failures -= 1;
                    return Err(StoreError::Write {
                        place: "test".into(),
                        source: "disk full".into(),
                    });
                }
                lock(&self.kept).push(state.clone());
                Ok(())
            }
            .boxed()
        }
    }

    async fn keeper(failures: u32, kept: Vec<NodeState>) -> (Arc<Flaky>, Arc<StateKeeper>) {
        let store = Arc::new(Flaky {
            failures: Mutex::new(failures),
            kept: Mutex::new(kept),
        });
        let keeper = StateKeeper::load(store.clone(), &mut StdRng::seed_from_u64(1))
            .await
            .unwrap();
        (store, keeper)
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_save_is_repeated_with_the_newest_state() {
        let (store, keeper) = keeper(3, vec![sample_state(1)]).await;
        for region in [1, 2] {
            keeper.update(|state| {
                state.home_region = Some(tailwharf_wire::tailcfg::RegionId(region));
                true
            });
        }
        while lock(&store.kept).len() < 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        let kept = lock(&store.kept);
        assert_eq!(kept.len(), 2, "one save for both changes");
        assert_eq!(kept[1].home_region.map(|region| region.0), Some(2));
    }

    #[tokio::test]
    async fn a_new_state_is_saved_when_asked_and_only_once() {
        let (store, keeper) = keeper(0, Vec::new()).await;
        keeper.save().await.unwrap();
        keeper.save().await.unwrap();
        assert_eq!(lock(&store.kept).len(), 1);
    }

    #[tokio::test]
    async fn no_change_no_save() {
        let (store, keeper) = keeper(0, vec![sample_state(1)]).await;
        keeper.update(|_| false);
        keeper.save().await.unwrap();
        assert_eq!(lock(&store.kept).len(), 1);
    }
}
