//! The pod's one way to certificates: one ACME account of the pool for each directory, and a queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tailwharf_kube_types::names::account_secret_name;
use tailwharf_node::Node;
use tailwharf_node::acme::{AcmeAccount, AcmeError, Certificate};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use super::counters::CertificateCounters;
use crate::cluster::{ApiError, Cluster};

/// Orders under way at once. An order is mostly waiting; the authority counts them, too.
const ORDERS_AT_ONCE: usize = 16;
/// A pause that an authority asks for is taken up to here; what waits longer tries then.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// The account's Secret could not be used.
    #[error("Secret {name}, which holds the account at the certificate authority: {source}")]
    Account {
        /// Name of the Secret.
        name: String,
        /// Why.
        source: ApiError,
    },
    /// The account's key in the Secret is damaged.
    #[error("Secret {name} holds no account key at {key}; remove that key to get a new account")]
    Damaged {
        /// Name of the Secret.
        name: String,
        /// Key of its data.
        key: String,
    },
    /// The directory's URL is none.
    #[error("{0:?} is not the URL of an ACME directory")]
    Directory(String),
    /// The authority asked for a pause when something else was ordered, and it is not over.
    #[error("the certificate authority wants a pause of {} s", left.as_secs())]
    Paused {
        /// What is left of it.
        left: Duration,
    },
    /// The order failed.
    #[error(transparent)]
    Acme(#[from] AcmeError),
}

/// Orders certificates for all identities of the pod.
pub(crate) struct Issuer {
    cluster: Arc<Cluster>,
    secret: String,
    accounts: AsyncMutex<HashMap<String, Arc<AcmeAccount>>>,
    room: Semaphore,
    /// Until when a directory wants no orders.
    paused: Mutex<HashMap<String, Instant>>,
    pub(super) counters: Arc<CertificateCounters>,
}

impl Issuer {
    /// For the pods of a pool, which share its accounts.
    #[must_use]
    pub(crate) fn new(cluster: Arc<Cluster>, pool: &str, counters: Arc<CertificateCounters>) -> Self {
        Self {
            cluster,
            secret: account_secret_name(pool),
            accounts: AsyncMutex::default(),
            room: Semaphore::new(ORDERS_AT_ONCE),
            paused: Mutex::default(),
            counters,
        }
    }

    /// Orders a certificate for `name` through its node, when its turn comes, in place of the one `replaces`.
    ///
    /// # Errors
    /// [`IssueError`] says what failed.
    pub(super) async fn order(
        &self,
        node: &Node,
        directory: &str,
        name: &str,
        replaces: Option<&str>,
    ) -> Result<Certificate, IssueError> {
        // The semaphore is never closed.
        let _room = self.room.acquire().await;
        if let Some(left) = self.pause(directory) {
            return Err(IssueError::Paused { left });
        }
        let account = self.account(directory).await?;
        let ordered = node.certificate(&account, name, replaces).await;
        self.counters.ordered(ordered.is_ok());
        if let Err(AcmeError::Refused {
            retry_after: Some(pause),
            ..
        }) = &ordered
        {
            let until = Instant::now() + (*pause).min(LONGEST_PAUSE);
            let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
            paused.insert(directory.to_owned(), until);
        }
        Ok(ordered?)
    }

    /// How long a directory wants to be left alone still.
    fn pause(&self, directory: &str) -> Option<Duration> {
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let left = paused.get(directory)?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// The pool's account at a directory: from its Secret, or a new one that is put there before it is used.
    async fn account(&self, directory: &str) -> Result<Arc<AcmeAccount>, IssueError> {
        let mut accounts = self.accounts.lock().await;
        if let Some(account) = accounts.get(directory) {
            return Ok(account.clone());
        }
        let url: Url = directory
            .parse()
            .map_err(|_| IssueError::Directory(directory.to_owned()))?;
        let failed = |source| IssueError::Account {
            name: self.secret.clone(),
            source,
        };
        let key = account_key(directory);
        let damaged = || IssueError::Damaged {
            name: self.secret.clone(),
            key: key.clone(),
        };
        let read = |secret: &Secret| {
            let value = secret.data.as_ref()?.get(&key)?;
            Some(Zeroizing::new(value.0.clone()))
        };
        let mut secret = self.cluster.secret(&self.secret).await.map_err(failed)?;
        let account = loop {
            if let Some(pkcs8) = read(&secret) {
                break AcmeAccount::from_pkcs8(url, &pkcs8).map_err(|_| damaged())?;
            }
            let account = AcmeAccount::generate(url.clone())?;
            let patch = json!({
                "metadata": {"resourceVersion": secret.metadata.resource_version},
                "data": {key.as_str(): BASE64_STANDARD.encode(account.to_pkcs8())},
            });
            match self.cluster.patch_secret(&self.secret, patch).await {
                Ok(_) => break account,
                // Another pod of the pool was first.
                Err(ApiError::Conflict) => {
                    secret = self.cluster.secret(&self.secret).await.map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        };
        let account = Arc::new(account);
        accounts.insert(directory.to_owned(), account.clone());
        Ok(account)
    }
}

/// The key of the Secret's data that holds the account at a directory, in PKCS #8.
fn account_key(directory: &str) -> String {
    let digest = Sha256::digest(directory);
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("account-{short}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_have_accounts_of_their_own() {
        let keys = ["https://a.example/directory", "https://a.example/staging"].map(account_key);
        assert_ne!(keys[0], keys[1]);
        assert!(keys[0].len() == 24 && keys[0].bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    }
}
