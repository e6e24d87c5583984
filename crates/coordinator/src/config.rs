//! The configuration file.

mod sections;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;
use url::Url;

pub use self::sections::{
    AcmeSettings, CaSettings, DerpSettings, FunnelLimits, FunnelListener, FunnelSettings, IssuerConfig,
    Limits, MetricsSettings, NodeRules, OidcConfig, RelaySettings, TlsFiles,
};
use crate::{ipam::Prefixes, names::Suffix};

/// The coordinator's configuration, as TOML. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address by which nodes reach the coordinator, such as `http://10.0.0.1:8080`.
    #[schemars(with = "String", extend("format" = "uri"))]
    pub server_url: Url,
    /// Where to listen for nodes and for the API.
    pub listen: SocketAddr,
    /// Where the store, the relay's key and the administrator's socket are.
    pub data_dir: PathBuf,
    /// The MagicDNS domain of the tailnet.
    #[schemars(with = "String")]
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

    /// What a file may hold, as a JSON schema, for editors and other checkers.
    pub fn schema() -> Schema {
        schema_for!(Self)
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
