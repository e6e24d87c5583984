//! The requests this pod makes to the Kubernetes API, each bounded in time and number, with errors told apart by what
//! follows from them.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tailwharf_kube_types::{Identity, IdentityStatus};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Requests under way at once, apart from those for our own Lease.
const REQUESTS_AT_ONCE: usize = 16;
/// Time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A request to the Kubernetes API failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Someone else was first; read again.
    #[error("the object was changed meanwhile")]
    Conflict,
    /// There is no such object.
    #[error("it does not exist")]
    NotFound,
    /// The pod's Role does not allow it, or not yet.
    #[error("the pod's Role does not allow it")]
    Forbidden,
    /// No answer came in time.
    #[error("the API server did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// Anything else.
    #[error("the request failed")]
    Other(#[source] Box<kube::Error>),
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => match status.code {
                409 => Self::Conflict,
                404 => Self::NotFound,
                401 | 403 => Self::Forbidden,
                _ => Self::Other(Box::new(error)),
            },
            _ => Self::Other(Box::new(error)),
        }
    }
}

/// The Kubernetes API, as far as a pool member may use it.
pub(crate) struct Cluster {
    /// Identities of the namespace.
    pub identities: Api<Identity>,
    /// Leases of the namespace.
    pub leases: Api<Lease>,
    secrets: Api<Secret>,
    pod: String,
    room: Semaphore,
}

impl Cluster {
    /// The API as the pod `pod` of `namespace` sees it.
    #[must_use]
    pub(crate) fn new(client: Client, namespace: &str, pod: &str) -> Self {
        Self {
            identities: Api::namespaced(client.clone(), namespace),
            leases: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client, namespace),
            pod: pod.to_owned(),
            room: Semaphore::new(REQUESTS_AT_ONCE),
        }
    }

    /// Name of this pod.
    #[must_use]
    pub(crate) fn pod(&self) -> &str {
        &self.pod
    }

    /// Reads an identity.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn identity(&self, name: &str) -> Result<Identity, ApiError> {
        self.request(self.identities.get(name)).await.map(lean)
    }

    /// Writes the whole status of an identity, on condition that its version is still `version`.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when it is not.
    pub(crate) async fn write_status(
        &self,
        name: &str,
        version: &str,
        status: &IdentityStatus,
    ) -> Result<Identity, ApiError> {
        let document = status_document(name, version, status);
        let params = PatchParams::apply(&self.pod).force();
        self.request(
            self.identities
                .patch_status(name, &params, &Patch::Apply(document)),
        )
        .await
        .map(lean)
    }

    /// Reads a Secret.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn secret(&self, name: &str) -> Result<Secret, ApiError> {
        self.request(self.secrets.get(name)).await
    }

    /// Merges a patch into a Secret.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the patch names a version that is not the present one.
    pub(crate) async fn patch_secret(&self, name: &str, patch: Value) -> Result<Secret, ApiError> {
        let params = PatchParams {
            field_manager: Some(self.pod.clone()),
            ..PatchParams::default()
        };
        self.request(self.secrets.patch(name, &params, &Patch::Merge(patch)))
            .await
    }

    /// Reads a member's Lease; `None` when there is none.
    ///
    /// # Errors
    /// [`ApiError`], after `limit` at the latest.
    pub(crate) async fn lease(&self, name: &str, limit: Duration) -> Result<Option<Lease>, ApiError> {
        match bounded(limit, self.leases.get(name)).await {
            Err(ApiError::NotFound) => Ok(None),
            read => read.map(Some),
        }
    }

    /// Makes our Lease.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when there is one.
    pub(crate) async fn create_lease(&self, lease: &Lease, limit: Duration) -> Result<Lease, ApiError> {
        bounded(limit, self.leases.create(&PostParams::default(), lease)).await
    }

    /// Merges a patch into our Lease.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the patch names a version that is not the present one.
    pub(crate) async fn patch_lease(
        &self,
        name: &str,
        patch: Value,
        limit: Duration,
    ) -> Result<Lease, ApiError> {
        let params = PatchParams {
            field_manager: Some(self.pod.clone()),
            ..PatchParams::default()
        };
        bounded(limit, self.leases.patch(name, &params, &Patch::Merge(patch))).await
    }

    async fn request<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
        let Ok(_room) = self.room.acquire().await else {
            return Err(ApiError::Timeout(REQUEST_TIMEOUT));
        };
        bounded(REQUEST_TIMEOUT, request).await
    }
}

async fn bounded<T>(limit: Duration, request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match timeout(limit, request).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(ApiError::Timeout(limit)),
    }
}

/// The document that is applied. The version makes the API server refuse it when another pod was first.
fn status_document(name: &str, version: &str, status: &IdentityStatus) -> Value {
    json!({
        "apiVersion": Identity::api_version(&()),
        "kind": Identity::kind(&()),
        "metadata": { "name": name, "resourceVersion": version },
        "status": status,
    })
}

/// Whether an identity is newer than a resource version. Versions of one resource are numbers that grow; of anything else
/// that an API server may send, the last to come counts as the newest.
#[must_use]
pub(crate) fn is_newer(identity: &Identity, version: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let new = identity.metadata.resource_version.as_deref().unwrap_or_default();
    match (number(new), number(version)) {
        (Some(new), Some(old)) => new > old,
        _ => new != version,
    }
}

/// An identity without the part that only the API server needs and that is larger than all the rest.
#[must_use]
pub(crate) fn lean(mut identity: Identity) -> Identity {
    identity.metadata.managed_fields = None;
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_document_names_the_version_it_depends_on() {
        let status = IdentityStatus {
            host: Some("tailwharf-default-0".to_owned()),
            claim: Some("41".to_owned()),
            ..IdentityStatus::default()
        };
        assert_eq!(
            status_document("ts-nginx-abcde", "42", &status),
            json!({
                "apiVersion": "tailwharf.dev/v1alpha1",
                "kind": "Identity",
                "metadata": { "name": "ts-nginx-abcde", "resourceVersion": "42" },
                "status": { "host": "tailwharf-default-0", "claim": "41" },
            })
        );
    }
}
