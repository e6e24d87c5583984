//! `tailwharf status --cluster`: reads what the caller may read of the operator's namespace.

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::Client;
use kube::api::{Api, ListParams};
use tailwharf_kube_types::Identity;
use tailwharf_plan::overview::Overview;

/// Reads a namespace again and again.
pub struct Observer {
    identities: Api<Identity>,
    sets: Api<StatefulSet>,
    namespace: String,
}

impl Observer {
    /// Of the cluster of the current kubeconfig.
    ///
    /// # Errors
    /// When there is no cluster.
    pub async fn new(namespace: &str) -> Result<Self> {
        let client: Client = crate::here().await?;
        Ok(Self {
            identities: Api::namespaced(client.clone(), namespace),
            sets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
        })
    }

    /// What is there now.
    ///
    /// # Errors
    /// When the caller may not read it, or the cluster does not answer.
    pub async fn look(&self) -> Result<Overview> {
        let params = ListParams::default();
        let context = |what: &str| format!("the {what} of namespace {} cannot be read", self.namespace);
        let identities = self
            .identities
            .list(&params)
            .await
            .with_context(|| context("Identities"))?;
        let sets = self
            .sets
            .list(&params)
            .await
            .with_context(|| context("StatefulSets"))?;
        Ok(Overview::of(&identities.items, &sets.items))
    }
}
