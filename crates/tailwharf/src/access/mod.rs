//! `tailwharf access`: which groups a person gets at a cluster, from which devices, by which grants, and why not. What the API tells is read by the
//! code with which the coordinator applies a policy, and the API-server proxy its grants.

mod report;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tailwharf_control_api::{Client, ClientConfig, ControlApi, Credentials, Secret};
use tailwharf_coordinator::Config;
use tailwharf_coordinator::admin::client::Client as AdminClient;
use tailwharf_policy::{Attributes, Role};
use url::Url;

use crate::args::{OutputFormat, TAILSCALE, server};
use crate::settings;

/// Whom and where to look at, and whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct AccessArgs {
    /// The person, by login
    #[arg(long)]
    user: String,
    /// The cluster: the device of its API-server proxy, by name or address on the tailnet
    #[arg(long)]
    cluster: String,
    /// Look at this policy file instead of the policy in force
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Configuration file of the coordinator of this machine, which is asked as its administrator; no token is needed then
    #[arg(long, env = "TAILWHARF_COORDINATOR_CONFIG", conflicts_with = "api_key")]
    config: Option<PathBuf>,
    /// Control server of the tailnet; its API is at the same place
    #[arg(long, env = "TS_LOGIN_SERVER", default_value = TAILSCALE, value_parser = server)]
    login_server: Url,
    /// API of the tailnet, where it is not at the control server
    #[arg(long, env = "TS_API_URL", value_parser = server)]
    api_url: Option<Url>,
    /// Token of the API that may read devices, people and the policy; better given by the environment, where other users of this machine do not see it
    #[arg(long, env = "TS_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = OutputFormat::Table)]
    output: OutputFormat,
}

/// A device as the API tells it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Device {
    id: String,
    name: String,
    addresses: Vec<IpAddr>,
    /// Login of the owner.
    user: String,
    tags: Option<Vec<String>>,
    os: String,
    client_version: String,
    authorized: bool,
}

/// A person as the API tells them.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    login_name: String,
    #[serde(default)]
    role: String,
}

#[derive(Deserialize)]
struct Devices {
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Users {
    users: Vec<User>,
}

#[derive(Deserialize)]
struct AttributesOf {
    attributes: Attributes,
}

/// What is known of a tailnet.
#[derive(Debug)]
struct Facts {
    policy: String,
    users: Vec<User>,
    devices: Vec<Device>,
    /// Of the devices of the person in question, by id.
    attributes: BTreeMap<String, Attributes>,
}

/// Prints what a person may do at a cluster. Fails if it is nothing.
pub(crate) async fn access(args: AccessArgs) -> Result<ExitCode> {
    let (user, cluster) = (args.user.clone(), args.cluster.clone());
    let output = args.output;
    let facts = read(args).await?;
    let report = report::report(&facts, &user, &cluster)?;
    let mut out = io::stdout().lock();
    match output {
        OutputFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Table => write!(out, "{report}")?,
    }
    Ok(if report.is_let_in() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Reads what is needed from the API.
async fn read(args: AccessArgs) -> Result<Facts> {
    let api = Api::new(&args)?;
    let policy = match &args.policy {
        Some(path) => fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?,
        None => api.policy().await?,
    };
    let Users { users } = api.read("list of people", &["tailnet", "-", "users"]).await?;
    let Devices { devices } = api.read("list of devices", &["tailnet", "-", "devices"]).await?;
    let mut attributes = BTreeMap::new();
    for device in devices.iter().filter(|device| device.is_of(&args.user)) {
        let told: AttributesOf = api
            .read("attributes of a device", &["device", &device.id, "attributes"])
            .await?;
        attributes.insert(device.id.clone(), told.attributes);
    }
    Ok(Facts {
        policy,
        users,
        devices,
        attributes,
    })
}

impl Device {
    fn tags(&self) -> &[String] {
        self.tags.as_deref().unwrap_or_default()
    }

    /// Whether it speaks for the person.
    fn is_of(&self, login: &str) -> bool {
        self.tags().is_empty() && self.user.eq_ignore_ascii_case(login)
    }

    fn is_called(&self, name: &str) -> bool {
        let (own, name) = (self.name.trim_end_matches('.'), name.trim_end_matches('.'));
        let short = own.split('.').next().unwrap_or_default();
        let address = name.parse().ok();
        own.eq_ignore_ascii_case(name)
            || short.eq_ignore_ascii_case(name)
            || address.is_some_and(|address| self.addresses.contains(&address))
    }
}

impl User {
    fn role(&self) -> Role {
        let mut roles = Role::ALL.into_iter();
        roles.find(|role| role.name() == self.role).unwrap_or_default()
    }
}

/// The API of a tailnet.
enum Api {
    /// At the socket of a coordinator on this machine.
    Socket(AdminClient),
    /// With a token.
    Token(Box<Client>),
}

impl Api {
    fn new(args: &AccessArgs) -> Result<Self> {
        if let Some(config) = &args.config {
            let socket = Config::load(config)?.admin_socket();
            return Ok(Self::Socket(AdminClient::new(&socket)));
        }
        let Some(key) = args.api_key.as_deref().filter(|key| !key.is_empty()) else {
            bail!(
                "set TS_API_KEY to a token of the tailnet's API, or give the configuration file of the coordinator on this machine with --config"
            );
        };
        let url = settings::api_of(&args.login_server, args.api_url.clone())?;
        let config = ClientConfig::new(url, Credentials::ApiKey(Secret::new(key)));
        Ok(Self::Token(Box::new(Client::new(config)?)))
    }

    async fn read<T: DeserializeOwned>(&self, what: &'static str, path: &[&str]) -> Result<T> {
        Ok(match self {
            Self::Socket(client) => client.query(path, &[]).await?,
            Self::Token(client) => client.read(what, path).await?,
        })
    }

    async fn policy(&self) -> Result<String> {
        Ok(match self {
            Self::Socket(client) => {
                let text = client.read(&["tailnet", "-", "acl"]).await?;
                String::from_utf8(text.into()).context("the policy is not text")?
            }
            Self::Token(client) => client.policy().await?.hujson,
        })
    }
}
