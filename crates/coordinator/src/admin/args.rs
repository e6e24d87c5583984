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
    /// Auth keys, by which devices join
    Key(Group<KeyCommand>),
    /// OAuth clients, by which programs such as the operator use the API
    OauthClient(Group<ClientCommand>),
    /// API tokens of administrators
    ApiToken(Group<TokenCommand>),
    /// Devices
    Node(Group<NodeCommand>),
    /// The policy
    Policy(Group<PolicyCommand>),
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
    /// Delete a user who owns no nodes
    Delete {
        /// Login name or id
        user: String,
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
    },
    /// List OAuth clients
    List,
    /// Delete an OAuth client; its tokens end at once
    Delete {
        /// Id of the client
        id: String,
    },
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
