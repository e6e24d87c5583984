//! The words of the administrator's command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::output::Format;
use crate::model::Role;

/// What an administrator may do with a running coordinator.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// People
    User(Group<UserCommand>),
    /// Devices that wait for a person to let them in
    Login(Group<LoginCommand>),
    /// Auth keys, by which devices join
    Key(Group<KeyCommand>),
    /// OAuth clients, by which programs such as the operator use the API
    OauthClient(Group<ClientCommand>),
    /// API tokens of administrators
    ApiToken(Group<TokenCommand>),
    /// Devices
    Node(Group<NodeCommand>),
    /// Routes that devices offer to serve
    Route(Group<RouteCommand>),
    /// Services with addresses of their own, for which several devices may answer
    Service(Group<ServiceCommand>),
    /// How devices resolve names
    Dns(Group<DnsCommand>),
    /// Rules for devices
    Settings(Group<SettingsCommand>),
    /// Who changed what, the latest first
    Log(LogArgs),
    /// The policy
    Policy(Group<PolicyCommand>),
    /// Copy the store to a new file, while the coordinator runs or not
    Backup {
        /// The new file
        file: PathBuf,
    },
    /// Put a backup in the place of the store, while no coordinator runs
    Restore {
        /// The backup
        file: PathBuf,
    },
    /// Print all that is stored as JSON, without the server's key
    Export,
}

impl Command {
    /// The form of the output that is asked for.
    pub(super) fn output(&self) -> Format {
        match self {
            Self::User(group) => group.output,
            Self::Login(group) => group.output,
            Self::Key(group) => group.output,
            Self::OauthClient(group) => group.output,
            Self::ApiToken(group) => group.output,
            Self::Node(group) => group.output,
            Self::Route(group) => group.output,
            Self::Service(group) => group.output,
            Self::Dns(group) => group.output,
            Self::Settings(group) => group.output,
            Self::Log(args) => args.output,
            Self::Policy(group) => group.output,
            Self::Backup { .. } | Self::Restore { .. } | Self::Export => Format::Table,
        }
    }
}

/// Commands about one kind of thing.
#[derive(Debug, Args)]
pub struct Group<T: Subcommand> {
    #[command(subcommand)]
    pub(super) command: T,
    /// Form of the output
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub(super) output: Format,
}

/// Commands about people.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Create a user
    Create {
        /// Login name, such as alice@example.com
        login: String,
        /// Name to show
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// What the user may do: member, admin or owner
        #[arg(long, default_value = "member", value_parser = parse_role)]
        role: Role,
    },
    /// List users
    List,
    /// Give a user another role
    Role {
        /// Login name or id
        user: String,
        /// What the user may do from now on
        #[arg(value_parser = parse_role)]
        role: Role,
    },
    /// Make a link by which a user signs in at the web console, once
    LoginLink {
        /// Login name or id
        user: String,
    },
    /// Delete a user who owns no nodes
    Delete {
        /// Login name or id
        user: String,
    },
}

/// Commands about devices that wait.
#[derive(Debug, Subcommand)]
pub enum LoginCommand {
    /// List devices that wait
    List,
    /// Let a device in
    Approve {
        /// Id, or the address that the device shows
        id: String,
        /// Whose it shall be
        #[arg(long)]
        user: Option<String>,
        /// Its tags, if it shall belong to nobody
        #[arg(long, value_delimiter = ',', conflicts_with = "user")]
        tags: Vec<String>,
    },
    /// Turn a device down
    Deny {
        /// Id, or the address that the device shows
        id: String,
    },
}

/// Commands about auth keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create an auth key; it is shown this once
    Create(NewKey),
    /// List auth keys
    List,
    /// Revoke an auth key; its nodes stay
    Delete {
        /// Id of the key
        id: String,
    },
}

/// An auth key to create.
#[derive(Debug, Args)]
pub struct NewKey {
    /// More than one device may join with the key
    #[arg(long)]
    pub(super) reusable: bool,
    /// Its devices are removed some time after they went away
    #[arg(long)]
    pub(super) ephemeral: bool,
    /// Its devices wait for approval where the tailnet asks for it
    #[arg(long)]
    pub(super) no_preauthorize: bool,
    /// Tags of its devices, such as tag:k8s
    #[arg(long, value_delimiter = ',')]
    pub(super) tags: Vec<String>,
    /// Owner of its devices, if they have no tags
    #[arg(long)]
    pub(super) user: Option<String>,
    /// For how long it may be used, such as 12h or 30d; at most 90d
    #[arg(long, default_value = "90d")]
    pub(super) expiry: Life,
    /// What it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) description: String,
}

/// Commands about OAuth clients.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Create an OAuth client; its secret is shown this once
    Create {
        /// What it may do, such as auth_keys,devices:core; :read behind a scope leaves out changes
        #[arg(long, required = true, value_delimiter = ',')]
        scopes: Vec<String>,
        /// With which tags it acts; it may give these, and those that they own
        #[arg(long, value_delimiter = ',')]
        tags: Vec<String>,
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        description: String,
        /// What the token of its platform must say, of a client that keeps no secret
        #[command(flatten)]
        binding: FederationArgs,
    },
    /// List OAuth clients
    List,
    /// Delete an OAuth client; its tokens end at once
    Delete {
        /// Id of the client
        id: String,
    },
}

/// What the token of its platform must say, of a client that keeps no secret.
#[derive(Clone, Debug, Args)]
pub struct FederationArgs {
    /// Issuer of the platform's tokens, one of the configuration: the client shows such a token instead of a secret
    #[arg(long, requires = "subject")]
    pub(super) issuer: Option<String>,
    /// Whom the token is about, such as system:serviceaccount:tailscale:operator; * stands for any text
    #[arg(long, requires = "issuer")]
    pub(super) subject: Option<String>,
    /// For whom the token is made, if not for api.tailscale.com/ID
    #[arg(long, requires = "issuer", default_value = "", hide_default_value = true)]
    pub(super) audience: String,
    /// A further claim that the token must have, such as kubernetes.io.namespace=tailscale
    #[arg(long, requires = "issuer", value_parser = parse_pair)]
    pub(super) claim: Vec<(String, String)>,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("write it like name=value")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// Commands about API tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create an API token; it is shown this once
    Create {
        /// The administrator in whose name it acts
        #[arg(long)]
        user: String,
        /// What it may do; everything, if not given
        #[arg(long, value_delimiter = ',')]
        scopes: Vec<String>,
        /// For how long it may be used, such as 12h or 30d
        #[arg(long, default_value = "90d")]
        expiry: Life,
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        description: String,
    },
    /// List API tokens
    List,
    /// Delete an API token
    Delete {
        /// Id of the token
        id: String,
    },
}

/// Commands about devices.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    List,
    /// Delete a node
    Delete {
        /// Name, address or id
        node: String,
    },
    /// End a node's key, so that it has to log in again
    Expire {
        /// Name, address or id
        node: String,
    },
    /// Approve a node that waits for it
    Approve {
        /// Name, address or id
        node: String,
    },
    /// Give a node another name
    Rename {
        /// Name, address or id
        node: String,
        /// The name; none to follow the host name again
        #[arg(default_value = "", hide_default_value = true)]
        name: String,
    },
    /// Replace a node's owner by tags
    Tag {
        /// Name, address or id
        node: String,
        /// The tags, such as tag:server
        #[arg(required = true)]
        tags: Vec<String>,
    },
}

/// Commands about routes.
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// List routes and the nodes that offer them
    List,
    /// Say which routes of a node are approved, in place of those of before
    Approve {
        /// Name, address or id
        node: String,
        /// The routes, such as 10.0.0.0/16; both 0.0.0.0/0 and ::/0 for an exit node; none to approve none
        routes: Vec<String>,
    },
}

/// Commands about services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services
    List,
    /// Create a service, or give it another form
    Set(NewService),
    /// List the nodes that offer to answer for a service
    Hosts {
        /// Name, such as svc:web
        name: String,
    },
    /// Let a node answer for a service
    Approve {
        /// Name, such as svc:web
        name: String,
        /// Name, address or id of the node
        node: String,
    },
    /// Forbid a node to answer for a service
    Deny {
        /// Name, such as svc:web
        name: String,
        /// Name, address or id of the node
        node: String,
    },
    /// Delete a service
    Delete {
        /// Name, such as svc:web
        name: String,
    },
}

/// A service to create.
#[derive(Debug, Args)]
pub struct NewService {
    /// Name, such as svc:web
    pub(super) name: String,
    /// What it answers on, such as tcp:443 or tcp:80-90
    #[arg(long, required = true, value_delimiter = ',')]
    pub(super) ports: Vec<String>,
    /// Its tags, by which the policy knows it
    #[arg(long, value_delimiter = ',')]
    pub(super) tags: Vec<String>,
    /// What it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) comment: String,
}

/// Commands about name resolution.
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Print how names are resolved
    Get,
    /// Replace the whole
    Set {
        /// File of the form that `dns get --output json` prints; - for standard input
        file: PathBuf,
    },
    /// Replace the resolvers for all names
    Nameservers {
        /// IP addresses, address:port, or https:// URLs; none to leave it to the devices
        addresses: Vec<String>,
    },
    /// Replace the domains that complete short names
    Search {
        /// Domains, after that of the tailnet
        domains: Vec<String>,
    },
    /// Replace the resolvers for the names below a domain
    Split {
        /// The domain
        domain: String,
        /// IP addresses, address:port, or https:// URLs; none to remove it
        addresses: Vec<String>,
    },
}

/// Commands about settings.
#[derive(Debug, Subcommand)]
pub enum SettingsCommand {
    /// Print the settings
    Get,
    /// Change those that are given
    Set(SettingsArgs),
}

/// Settings to change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct SettingsArgs {
    /// Whether devices wait for an administrator's approval
    #[arg(long)]
    pub(super) device_approval: Option<bool>,
    /// After how many days a person's device has to log in again; 0 for never
    #[arg(long)]
    pub(super) key_lifetime_days: Option<u32>,
    /// Whether devices may get certificates for their names
    #[arg(long)]
    pub(super) https: Option<bool>,
}

/// Which part of the log to print.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// How many entries at most
    #[arg(long, default_value = "50")]
    pub(super) limit: usize,
    /// Form of the output
    #[arg(long, value_enum, default_value = "table")]
    pub(super) output: Format,
}

/// Commands about the policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the policy in force
    Get,
    /// Put a policy in force, if it is valid and passes its own tests
    Set {
        /// File with the policy; - for standard input
        file: PathBuf,
    },
    /// Check a policy without putting it in force
    Check {
        /// File with the policy; - for standard input
        file: PathBuf,
    },
}

/// How long something lives: a number and s, m, h or d.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life(pub(super) Duration);

impl FromStr for Life {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write a number and a unit: 90s, 15m, 12h or 30d".to_owned();
        let unit = text.chars().last().ok_or_else(wrong)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            _ => return Err(wrong()),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        let life = number
            .checked_mul(seconds)
            .filter(|life| *life > 0)
            .ok_or_else(wrong)?;
        Ok(Self(Duration::from_secs(life)))
    }
}

/// The word for a role.
pub(super) fn role_name(role: Role) -> String {
    role.name().to_owned()
}

fn parse_role(text: &str) -> Result<Role, String> {
    let role = Role::ALL.into_iter().find(|role| role.name() == text);
    role.ok_or_else(|| format!("a role is one of {}", Role::ALL.map(Role::name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_have_a_unit() {
        assert_eq!("90s".parse(), Ok(Life(Duration::from_secs(90))));
        assert_eq!("30d".parse(), Ok(Life(Duration::from_secs(30 * 86400))));
        for text in [
            "",
            "90",
            "0s",
            "d",
            "-1h",
            "1.5h",
            "é",
            "99999999999999999999d",
            "999999999999999999d",
        ] {
            assert!(text.parse::<Life>().is_err(), "{text}");
        }
    }
}
