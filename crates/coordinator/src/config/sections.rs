//! The tables of the configuration file.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tailwharf_wire::tailcfg::RegionId;
use url::Url;

use crate::model::Settings;

/// A platform that signs tokens for its programs, such as a Kubernetes cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Its name in the tokens: of a cluster, `--service-account-issuer` of the API server.
    pub url: String,
    /// Its public keys as a JWK set, as `kubectl get --raw /openid/v1/jwks` prints it. Without it they are fetched from `url`.
    pub jwks_file: Option<PathBuf>,
    /// The certificates to trust when keys are fetched; those of the system when absent.
    pub ca_file: Option<PathBuf>,
}

/// An identity provider that knows people: OpenID Connect.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// Its name and address, such as `https://accounts.google.com`: what its tokens say, and below which it publishes what it is.
    pub issuer: String,
    /// The name by which it knows this server. Register `<server_url>/login/callback` there.
    pub client_id: String,
    /// The file with the secret for that name; none for a public client.
    pub client_secret_file: Option<PathBuf>,
    /// The certificates to trust when it is called; those of the system when absent.
    pub ca_file: Option<PathBuf>,
    /// What it is asked for.
    #[serde(default = "oidc_scopes")]
    pub scopes: Vec<String>,
    /// People whose e-mail address is of one of these domains may sign in; `*` for everybody whom the provider knows.
    #[serde(default)]
    pub allowed_domains: Vec<String>,
    /// These people may sign in, by e-mail address.
    #[serde(default)]
    pub allowed_users: Vec<String>,
    /// People of these groups may sign in.
    #[serde(default)]
    pub allowed_groups: Vec<String>,
    /// The claim that names the groups of a person.
    #[serde(default = "oidc_groups_claim")]
    pub groups_claim: String,
    /// Whether the provider has to say that it has verified an e-mail address. Turn it off only for a provider that says nothing of the kind and sets
    /// the addresses itself.
    #[serde(default = "yes")]
    pub require_verified_email: bool,
}

fn oidc_scopes() -> Vec<String> {
    ["openid", "email", "profile"].map(str::to_owned).to_vec()
}

fn oidc_groups_claim() -> String {
    "groups".to_owned()
}

fn yes() -> bool {
    true
}

/// A certificate chain and its key, both as PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The chain, the server's certificate first.
    pub cert_file: PathBuf,
    /// The key.
    pub key_file: PathBuf,
}

/// How the certificate of `server_url` is had by ACME (RFC 8555), proved by pages over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AcmeSettings {
    /// The authority's directory; that of Let's Encrypt when absent.
    #[schemars(with = "Option<String>", extend("format" = "uri"))]
    pub directory: Option<Url>,
    /// Where the authority's questions are answered: port 80 of the name in `server_url` has to lead here. Everything else is sent on to `server_url`.
    pub listen: SocketAddr,
    /// The certificates to trust when the authority is called, beside those of the system.
    pub ca_file: Option<PathBuf>,
}

impl Default for AcmeSettings {
    fn default() -> Self {
        Self {
            directory: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 80)),
            ca_file: None,
        }
    }
}

/// Rules for nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeRules {
    /// After how many days a person's node has to log in again; 0 for never. Tagged nodes never have to.
    pub key_lifetime_days: u32,
    /// After how many seconds without connection an ephemeral node is removed.
    pub ephemeral_grace_seconds: u32,
    /// Whether a node needs an administrator's approval, unless its auth key is pre-approved.
    pub require_approval: bool,
}

impl Default for NodeRules {
    fn default() -> Self {
        Self {
            key_lifetime_days: 180,
            ephemeral_grace_seconds: 300,
            require_approval: false,
        }
    }
}

impl NodeRules {
    /// The settings of the first start. Later ones are kept in the store.
    pub fn settings(&self) -> Settings {
        Settings {
            device_approval: self.require_approval,
            key_lifetime_days: self.key_lifetime_days,
            ..Settings::default()
        }
    }

    /// How long an ephemeral node may be away.
    pub fn ephemeral_grace(&self) -> Duration {
        Duration::from_secs(self.ephemeral_grace_seconds.into())
    }
}

/// Limits of the listener for nodes and API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at one time.
    pub connections: usize,
    /// Connections of one source address at one time. Many nodes may live behind one address.
    pub connections_per_source: usize,
    /// Connections of one source address at one time that have not shown yet what they are for.
    pub half_open_per_source: usize,
    /// Calls of the API that one credential may make in a second, on average.
    pub calls_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_source: 5_000,
            half_open_per_source: 3_000,
            calls_per_second: 5_000,
        }
    }
}

/// The private certificate authority, below `/acme/` of `server_url`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CaSettings {
    /// Whether it runs.
    pub enabled: bool,
    /// Certificates hold the first label of a device's name, too, so that `https://web` is verified. The root certificate is then not constrained to the
    /// names of the tailnet: whoever installs it trusts this server for all names. Changing this makes a new root.
    pub short_names: bool,
}

impl Default for CaSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            short_names: false,
        }
    }
}

/// The embedded relay.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySettings {
    /// Whether it runs.
    pub enabled: bool,
    /// Where it listens for DERP by TLS.
    pub listen: SocketAddr,
    /// Where it answers STUN.
    pub stun_listen: SocketAddr,
    /// The name or address by which nodes reach it; the host of `server_url` when absent.
    pub hostname: Option<String>,
    /// The number of its region.
    #[schemars(with = "u16", range(min = 1))]
    pub region_id: RegionId,
    /// The short name of its region.
    pub region_code: String,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([0, 0, 0, 0], 3340)),
            stun_listen: SocketAddr::from(([0, 0, 0, 0], 3478)),
            hostname: None,
            region_id: RegionId(900),
            region_code: "tailwharf".to_owned(),
        }
    }
}

/// A listener for supervisors. It answers `/metrics` (`OpenMetrics`) and `/health` to whoever reaches it, so it has an address of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSettings {
    /// Where it listens, such as `127.0.0.1:9090`; nowhere, if absent.
    pub listen: Option<SocketAddr>,
}

/// The public gateway: it brings the internet to nodes that the policy lets be reached so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FunnelSettings {
    /// Where it listens; nowhere, and it does not run.
    pub listeners: Vec<FunnelListener>,
    /// Limits of its connections.
    pub limits: FunnelLimits,
}

/// One port of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FunnelListener {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The port that the internet sees, if something in front maps it: 443, 8443 or 10000. The one of `listen` when absent.
    pub port: Option<u16>,
}

/// Limits of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FunnelLimits {
    /// Connections at one time.
    pub connections: usize,
    /// Connections of one source address at one time.
    pub connections_per_source: usize,
}

impl Default for FunnelLimits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            connections_per_source: 128,
        }
    }
}

impl FunnelListener {
    /// The port that the internet sees.
    pub fn public_port(&self) -> u16 {
        self.port.unwrap_or_else(|| self.listen.port())
    }
}

impl FunnelSettings {
    /// The ports that the internet sees.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.listeners.iter().map(FunnelListener::public_port).collect()
    }
}

/// Relays beside the embedded one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DerpSettings {
    /// A DERP map as JSON, in the form that clients are told it. Read again when it changes.
    pub map_file: Option<PathBuf>,
    /// Whether nodes are told of the relays of the file alone, not of the embedded one.
    pub replace: bool,
}
