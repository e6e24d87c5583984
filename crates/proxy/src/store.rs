//! The state of a node in its Kubernetes Secret.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use tailwharf_kube_types::StateSecret;
use tailwharf_kube_types::names::secret_name;
use tailwharf_kube_types::secret::{SecretError, SecretText};
use tailwharf_node::layout::{StateError, node_state};
use tailwharf_node::{NodeState, StateStore, StoreError};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cluster::{ApiError, Cluster};
use crate::state::{Context, write_state};

/// Attempts to write a Secret that others write too.
const ATTEMPTS: usize = 5;

/// The Secret of one identity could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretStoreError {
    /// The request failed.
    #[error("Secret {name}: {source}")]
    Api {
        /// Name of the Secret.
        name: String,
        /// Why.
        source: ApiError,
    },
    /// The content is not a node's state.
    #[error("Secret {name} does not hold a node's state")]
    Content {
        /// Name of the Secret.
        name: String,
        /// What is wrong with it.
        #[source]
        source: StateError,
    },
    /// The identity belongs to another pod by now.
    #[error("this pod does not host the identity any more")]
    Fenced,
}

/// The data of a Secret and the version at which it was read.
#[derive(Clone)]
struct Copy {
    data: BTreeMap<String, ByteString>,
    version: String,
}

impl From<Secret> for Copy {
    fn from(secret: Secret) -> Self {
        Self {
            data: secret.data.unwrap_or_default(),
            version: secret.metadata.resource_version.unwrap_or_default(),
        }
    }
}

/// Keeps a node's state in the Secret of its identity. It writes only while this pod hosts the identity.
pub(crate) struct SecretStore {
    cluster: Arc<Cluster>,
    name: String,
    context: Context,
    /// The auth key that the node registers with; taken out of the Secret once it has.
    used: Option<SecretText>,
    state: std::sync::Mutex<Option<NodeState>>,
    copy: Mutex<Option<Copy>>,
    fence: CancellationToken,
}

/// What a Secret gives to a node that starts.
pub(crate) struct Opened {
    /// The store for the node.
    pub store: Arc<SecretStore>,
    /// The key to register with, if one is there.
    pub auth_key: Option<SecretText>,
    /// Whether the node is registered already.
    pub registered: bool,
    /// Device id, name and addresses as of the last run.
    pub secret: StateSecret,
}

impl SecretStore {
    /// Reads the Secret of an identity. The store refuses writes once `fence` is cancelled.
    ///
    /// # Errors
    /// When the Secret cannot be read or does not hold a node's state.
    pub(crate) async fn open(
        cluster: Arc<Cluster>,
        context: Context,
        fence: CancellationToken,
    ) -> Result<Opened, SecretStoreError> {
        let name = secret_name(&context.identity);
        let read = cluster.secret(&name).await;
        let copy: Copy = match read {
            Ok(secret) => secret.into(),
            Err(source) => return Err(SecretStoreError::Api { name, source }),
        };
        let content = |source: StateError| SecretStoreError::Content {
            name: name.clone(),
            source,
        };
        let secret = parse(&copy).map_err(|error| content(error.into()))?;
        let state = node_state(&secret, &context.login.control_url).map_err(content)?;
        let auth_key = secret.auth_key.clone();
        let registered = state.as_ref().is_some_and(|state| state.stable_id.is_some());
        let store = Self {
            cluster,
            name,
            context,
            used: auth_key.clone(),
            state: std::sync::Mutex::new(state),
            copy: Mutex::new(Some(copy)),
            fence,
        };
        Ok(Opened {
            store: Arc::new(store),
            auth_key,
            registered,
            secret,
        })
    }

    /// Frees the copy of the Secret, unless a write is under way. A later write reads it again.
    pub(crate) fn settle(&self) {
        if let Ok(mut copy) = self.copy.try_lock() {
            *copy = None;
        }
    }

    async fn write(&self, state: &NodeState) -> Result<(), SecretStoreError> {
        let api = |source| SecretStoreError::Api {
            name: self.name.clone(),
            source,
        };
        let mut copy = self.copy.lock().await;
        let mut attempt = 1;
        loop {
            if self.fence.is_cancelled() {
                return Err(SecretStoreError::Fenced);
            }
            let at_hand = match copy.take() {
                Some(copy) => copy,
                None => self.cluster.secret(&self.name).await.map_err(api)?.into(),
            };
            let Some(patch) = self.patch(&at_hand, state)? else {
                *copy = Some(at_hand);
                return Ok(());
            };
            match self.cluster.patch_secret(&self.name, patch).await {
                Ok(secret) => {
                    *copy = Some(secret.into());
                    return Ok(());
                }
                // Without the copy, the next attempt reads what the other writer wrote.
                Err(ApiError::Conflict) if attempt < ATTEMPTS => attempt += 1,
                Err(source) => return Err(api(source)),
            }
        }
    }

    /// The merge patch that brings the Secret to the state, on condition that nobody wrote it meanwhile.
    fn patch(&self, copy: &Copy, state: &NodeState) -> Result<Option<serde_json::Value>, SecretStoreError> {
        let mut secret = parse(copy).map_err(|error| SecretStoreError::Content {
            name: self.name.clone(),
            source: error.into(),
        })?;
        write_state(&mut secret, state, &self.context, self.used.as_ref());
        Ok(secret.merge_patch(&copy.data).map(|mut patch| {
            patch["metadata"] = json!({ "resourceVersion": copy.version });
            patch
        }))
    }
}

fn parse(copy: &Copy) -> Result<StateSecret, SecretError> {
    StateSecret::from_data(&copy.data)
}

impl StateStore for SecretStore {
    fn load(&self) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>> {
        let state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        async move { Ok(state) }.boxed()
    }

    fn save<'a>(&'a self, state: &'a NodeState) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            self.write(state).await.map_err(|source| StoreError::Write {
                place: format!("Secret {}", self.name),
                source: Box::new(source),
            })
        }
        .boxed()
    }
}
