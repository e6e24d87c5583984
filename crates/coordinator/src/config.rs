//! The configuration file.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tailwharf_wire::tailcfg::RegionId;
use url::Url;

use crate::{ipam::Prefixes, model::Settings, names::Suffix};

/// The coordinator's configuration, as TOML. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address by which nodes reach the coordinator, such as `http://10.0.0.1:8080`.
    pub server_url: Url,
    /// Where to listen for nodes and for the API.
    pub listen: SocketAddr,
    /// Where the store, the relay's key and the administrator's socket are.
    pub data_dir: PathBuf,
    /// The MagicDNS domain of the tailnet.
    pub magic_dns_suffix: Suffix,
    /// The policy to start with. Later ones are set by the API and kept in the store.
    pub policy_file: Option<PathBuf>,
    /// Serves `listen` by TLS.
    pub tls: Option<TlsFiles>,
    /// The same, with a certificate for the name in `server_url` that an authority gives.
    pub acme: Option<AcmeSettings>,
    /// From which prefixes nodes get their addresses.
    #[serde(default)]
    pub prefixes: Prefixes,
    /// Rules for nodes.
    #[serde(default)]
    pub nodes: NodeRules,
    /// Limits of `listen`.
    #[serde(default)]
    pub limits: Limits,
    /// The embedded relay.
    #[serde(default)]
    pub relay: RelaySettings,
    /// Further relays.
    #[serde(default)]
    pub derp: DerpSettings,
    /// The private certificate authority.
    #[serde(default)]
    pub ca: CaSettings,
    /// Platforms whose tokens are believed, so that programs there need no secret of this server.
    #[serde(default)]
    pub issuers: Vec<IssuerConfig>,
    /// What supervisors are told.
    #[serde(default)]
    pub metrics: MetricsSettings,
    /// The public gateway.
    #[serde(default)]
    pub funnel: FunnelSettings,
    /// The identity provider by which people sign in.
    pub oidc: Option<OidcConfig>,
}

/// A platform that signs tokens for its programs, such as a Kubernetes cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The chain, the server's certificate first.
    pub cert_file: PathBuf,
    /// The key.
    pub key_file: PathBuf,
}

/// How the certificate of `server_url` is had by ACME (RFC 8555), proved by pages over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AcmeSettings {
    /// The authority's directory; that of Let's Encrypt when absent.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSettings {
    /// Where it listens, such as `127.0.0.1:9090`; nowhere, if absent.
    pub listen: Option<SocketAddr>,
}

/// The public gateway: it brings the internet to nodes that the policy lets be reached so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FunnelSettings {
    /// Where it listens; nowhere, and it does not run.
    pub listeners: Vec<FunnelListener>,
    /// Limits of its connections.
    pub limits: FunnelLimits,
}

/// One port of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunnelListener {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The port that the internet sees, if something in front maps it: 443, 8443 or 10000. The one of `listen` when absent.
    pub port: Option<u16>,
}

/// Limits of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DerpSettings {
    /// A DERP map as JSON, in the form that clients are told it. Read again when it changes.
    pub map_file: Option<PathBuf>,
    /// Whether nodes are told of the relays of the file alone, not of the embedded one.
    pub replace: bool,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be. The source says where.
    #[error("the configuration {} is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: Box<toml::de::Error>,
    },
    /// A value has no use.
    #[error("`{key}` in the configuration: {problem}")]
    Value {
        /// Which value.
        key: &'static str,
        /// What to change.
        problem: &'static str,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown key, or a value of no use.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// When it has an unknown key, or a value of no use.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check()?;
        Ok(config)
    }

    /// The administrator's socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.data_dir.join("admin.sock")
    }

    /// The file of the embedded store.
    pub fn store_file(&self) -> PathBuf {
        self.data_dir.join("coordinator.db")
    }

    /// What `listen` serves by TLS with, if it does.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        let by_acme = || TlsFiles {
            cert_file: self.acme_file(),
            key_file: self.acme_file(),
        };
        self.tls.clone().or_else(|| self.acme.as_ref().map(|_| by_acme()))
    }

    /// Where a certificate by ACME is kept, with its key.
    pub fn acme_file(&self) -> PathBuf {
        self.data_dir.join("certificate.pem")
    }

    /// The name or address by which nodes reach the relay.
    pub fn relay_hostname(&self) -> String {
        let host = || {
            self.server_url
                .host_str()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned()
        };
        self.relay.hostname.clone().unwrap_or_else(host)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, problem| Err(ConfigError::Value { key, problem });
        if !matches!(self.server_url.scheme(), "http" | "https") || self.server_url.host().is_none() {
            return wrong("server_url", "write it like `http://10.0.0.1:8080`");
        }
        if self.acme.is_some() {
            if self.tls.is_some() {
                return wrong(
                    "acme",
                    "the certificate comes from files or by ACME: remove `tls` or `acme`",
                );
            }
            if self.server_url.scheme() != "https" || self.server_url.domain().is_none() {
                return wrong(
                    "acme",
                    "a certificate is for a name that is reached by https: write `server_url` like `https://hub.example.com`",
                );
            }
        }
        if self.prefixes.v4.prefix_len() > 30 {
            return wrong(
                "prefixes.v4",
                "it needs room for two nodes at least: use a /30 or larger",
            );
        }
        if self.prefixes.v6.prefix_len() > 96 {
            return wrong(
                "prefixes.v6",
                "the IPv4 addresses must fit into it: use a /96 or larger",
            );
        }
        let Limits {
            connections,
            connections_per_source,
            half_open_per_source,
            calls_per_second,
        } = self.limits;
        if [connections, connections_per_source, half_open_per_source].contains(&0) || calls_per_second == 0 {
            return wrong("limits", "0 would let nobody in");
        }
        for issuer in &self.issuers {
            if issuer.jwks_file.is_none() && !issuer.url.starts_with("https://") {
                return wrong(
                    "issuers.url",
                    "keys are fetched by https alone: use an https:// address, or name a `jwks_file`",
                );
            }
            if self
                .issuers
                .iter()
                .filter(|other| other.url == issuer.url)
                .count()
                > 1
            {
                return wrong("issuers.url", "it is there twice: name each issuer once");
            }
        }
        // Those that official clients know.
        if !self
            .funnel
            .ports()
            .is_subset(&BTreeSet::from([443, 8443, 10_000]))
        {
            return wrong(
                "funnel.listeners",
                "clients know the ports 443, 8443 and 10000: listen there, or say by `port` which of them leads here",
            );
        }
        if self.funnel.limits.connections == 0 || self.funnel.limits.connections_per_source == 0 {
            return wrong("funnel.limits", "0 would let nobody in");
        }
        if let Some(oidc) = &self.oidc {
            if !oidc.issuer.starts_with("https://") {
                return wrong(
                    "oidc.issuer",
                    "people are signed in by https alone: use an https:// address",
                );
            }
            if !oidc.scopes.iter().any(|scope| scope == "openid") {
                return wrong(
                    "oidc.scopes",
                    "without `openid` the provider names nobody: add it",
                );
            }
            if [&oidc.allowed_domains, &oidc.allowed_users, &oidc.allowed_groups]
                .iter()
                .all(|list| list.is_empty())
            {
                return wrong(
                    "oidc.allowed_domains",
                    "nobody could sign in: name domains, or people in `allowed_users`, or groups in `allowed_groups`; `[\"*\"]` is for everybody whom the provider knows",
                );
            }
        }
        if self.derp.replace && self.derp.map_file.is_none() {
            return wrong("derp.map_file", "without it there would be no relay: name a file");
        }
        if self.relay.enabled && !(1..=65_535).contains(&self.relay.region_id.0) {
            return wrong("relay.region_id", "use a number from 1 to 65535");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
