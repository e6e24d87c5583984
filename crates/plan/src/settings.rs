//! What the operator is told at its start.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tailwharf_kube_types::{Hostname, Tag};

/// What plans depend on besides the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The operator's namespace, where everything is made.
    pub namespace: String,
    /// URL of the control server.
    pub login_server: String,
    /// The domain of the cluster's names, usually `cluster.local`.
    pub cluster_domain: String,
    /// Tags of devices whose object names none, sorted.
    pub default_tags: Vec<Tag>,
    /// Name of the operator's own device.
    pub operator_hostname: Hostname,
    /// Tags of the operator's own device, sorted.
    pub operator_tags: Vec<Tag>,
    /// Whether the API-server proxy is on, whose pods host the operator's own device then.
    #[serde(default)]
    pub api_server_proxy: bool,
    /// Whether Services of type LoadBalancer without a class are exposed, too.
    pub default_load_balancer: bool,
    /// The `ingressClassName` of Ingresses that get a device.
    pub ingress_class: String,
    /// URL of the ACME directory that issues the certificates of Ingresses. Without one, the authority of the control server does, or Let's Encrypt.
    #[serde(default)]
    pub acme_directory: Option<String>,
    /// The ProxyClass of Services and Ingresses that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_class: Option<String>,
    /// The namespaces whose objects are served; all, if none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watch_namespaces: Vec<String>,
    /// Whether the operator leaves the cluster: no object is to have a device any more.
    #[serde(default)]
    pub releasing: bool,
    /// The pods of all pools, unless a ProxyClass says otherwise.
    pub pool: PoolSettings,
}

/// The pods of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSettings {
    /// How many pods.
    pub replicas: u16,
    /// Image of the pods.
    pub image: String,
    /// `RUST_LOG`-like filter or level for the pods; empty for the binary's default.
    #[serde(default)]
    pub logging: String,
    /// Names of the Secrets for the registry of the image.
    #[serde(default)]
    pub pull_secrets: Vec<String>,
}

impl Settings {
    /// Whether objects of people in a namespace are served. What is elsewhere is not seen, so nothing follows from its absence.
    #[must_use]
    pub fn serves(&self, namespace: &str) -> bool {
        self.watch_namespaces.is_empty() || self.watch_namespaces.iter().any(|name| name == namespace)
    }
}

impl PoolSettings {
    /// What the account of pods with this image says besides.
    pub(crate) fn account(&self, mut rest: Value) -> Value {
        if !self.pull_secrets.is_empty() {
            let named = self.pull_secrets.iter().map(|name| json!({ "name": name }));
            rest["imagePullSecrets"] = named.collect();
        }
        rest
    }
}
