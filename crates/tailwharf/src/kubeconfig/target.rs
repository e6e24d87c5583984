//! A cluster as kubectl has to be told of it.

use serde_json::{Map, Value, json};
use tailwharf_wire::cluster::ClusterDefinition;

/// The user section of clusters whose proxy knows people by the tailnet: kubectl would ask for a name and a password without one. It is that of
/// Tailscale's client.
const USER: &str = "tailscale-auth";

/// A cluster.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Target {
    /// Name of the cluster, and of its context where nothing else is asked for.
    pub(super) name: String,
    /// URL of its API.
    pub(super) server: String,
    /// The certificates to trust, as base64 of PEM.
    authority: Option<String>,
    namespace: Option<String>,
    /// How people prove who they are; none where the tailnet says it.
    credentials: Option<Map<String, Value>>,
}

impl Target {
    /// One that is called by the name of its proxy, or by a URL.
    pub(super) fn new(name: impl Into<String>, server: String) -> Self {
        Self {
            name: name.into(),
            server,
            authority: None,
            namespace: None,
            credentials: None,
        }
    }

    /// The cluster behind a proxy that is a device of the tailnet.
    pub(super) fn proxy(fqdn: &str, http: bool) -> Self {
        let scheme = if http { "http" } else { "https" };
        Self::new(fqdn, format!("{scheme}://{fqdn}"))
    }

    /// One that the tailnet publishes.
    pub(super) fn defined(definition: ClusterDefinition) -> Self {
        Self {
            name: definition.name,
            server: definition.server,
            authority: definition.certificate_authority_data,
            namespace: definition.namespace,
            credentials: (!definition.user.is_empty()).then_some(definition.user),
        }
    }

    /// Whether its API is at this host.
    pub(super) fn is_at(&self, host: &str) -> bool {
        let rest = self.server.split_once("://").map_or("", |(_, rest)| rest);
        let own = rest.split(['/', ':']).next().unwrap_or_default();
        own.eq_ignore_ascii_case(host)
    }

    /// The command that kubectl will run to find out who somebody is, for people to see.
    pub(super) fn command(&self) -> Option<String> {
        let exec = self.credentials.as_ref()?.get("exec")?;
        let words = exec["args"].as_array().into_iter().flatten();
        let words = std::iter::once(&exec["command"]).chain(words);
        let text: Vec<&str> = words.filter_map(Value::as_str).collect();
        Some(text.join(" ").chars().filter(|c| !c.is_control()).collect())
    }

    /// The name of the user section.
    pub(super) fn user_name(&self) -> &str {
        match self.credentials {
            Some(_) => &self.name,
            None => USER,
        }
    }

    /// The sections of a kubeconfig: `cluster`, `user` and `context`.
    pub(super) fn sections(&self) -> [Value; 3] {
        let mut cluster = json!({"server": self.server});
        if let Some(authority) = &self.authority {
            cluster["certificate-authority-data"] = authority.as_str().into();
        }
        let user = match &self.credentials {
            Some(credentials) => Value::Object(credentials.clone()),
            None => json!({"token": "unused"}),
        };
        let mut context = json!({"cluster": self.name, "user": self.user_name()});
        if let Some(namespace) = &self.namespace {
            context["namespace"] = namespace.as_str().into();
        }
        [cluster, user, context]
    }
}
