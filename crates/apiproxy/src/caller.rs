//! Who calls, and as whom the API server is asked: from WhoIs and grants to a user with groups. Pure.
//!
//! Whatever cannot be told for sure is a [`Denial`]; nobody is ever taken for the proxy itself.

use tailwharf_node::WhoIs;

use crate::grants::{self, CAPABILITY, Grant, GrantError};

/// Longest user or group, in bytes.
const MAX_NAME: usize = 1024;
/// Most bytes of user and groups together.
const MAX_NAMES: usize = 48 * 1024;

/// A device of the tailnet, and for whom it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user that the API server sees: the login name, or the name of a tagged device.
    pub user: String,
    /// The groups that the API server sees.
    pub groups: Vec<String>,
    /// Full name of the device, without the final dot.
    pub device: String,
    /// Its id at the control server.
    pub device_id: String,
    /// Its operating system, as it says itself.
    pub os: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Number of its user at the control server.
    pub user_id: i64,
    /// What the policy grants.
    pub grant: Grant,
}

/// Why a caller is nobody to the API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No device has the address, or the control server does not say whose it is.
    #[error("the tailnet does not say which device this is; sign in again on it and try once more")]
    Unknown,
    /// The key of the device has ended.
    #[error("the key of device {device} has expired; sign in again on it")]
    Expired {
        /// The device.
        device: String,
    },
    /// There is no name to act under.
    #[error("device {device} belongs to no user and has no tag; sign in on it or give it a tag")]
    Nameless {
        /// The device.
        device: String,
    },
    /// A name cannot be sent to the API server.
    #[error("the {what} {name:?} cannot be used: {why}; correct the tailnet policy")]
    Name {
        /// User or group.
        what: &'static str,
        /// The name, or its begin.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name belongs to the cluster itself.
    #[error(
        "the {what} {name:?} belongs to the cluster itself, and this proxy does not act for it; whoever runs it can allow it by APISERVER_PROXY_SYSTEM_GROUPS"
    )]
    Reserved {
        /// User or group.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The grants cannot be used.
    #[error("{0}; correct the grants of {CAPABILITY}")]
    Grant(#[from] GrantError),
}

/// Groups of the cluster itself that policies may grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemGroups(Vec<String>);

impl Default for SystemGroups {
    /// The administrators, as in Tailscale's documentation.
    fn default() -> Self {
        Self(vec!["system:masters".to_owned()])
    }
}

impl SystemGroups {
    /// Only these groups.
    #[must_use]
    pub fn only(groups: Vec<String>) -> Self {
        Self(groups)
    }

    fn allow(&self, group: &str) -> bool {
        !group.starts_with("system:")
            || group == "system:authenticated"
            || self.0.iter().any(|one| one == group)
    }
}

impl Caller {
    /// Decides as whom a device speaks.
    ///
    /// # Errors
    /// [`Denial`] says why it is nobody.
    pub fn new(who: &WhoIs, system: &SystemGroups) -> Result<Self, Denial> {
        let device = who.node.name.to_string();
        if who.node.expired {
            return Err(Denial::Expired { device });
        }
        let grant = grants::merge(who)?;
        let tags = who.node.tags.to_vec();
        let user = if tags.is_empty() {
            who.user.login_name.clone()
        } else {
            device.clone()
        };
        if user.trim().is_empty() {
            return Err(Denial::Nameless { device });
        }
        check_name("user", &user)?;
        if user.starts_with("system:") {
            return Err(Denial::Reserved {
                what: "user",
                name: user,
            });
        }
        let groups = if grant.groups.is_empty() {
            tags.clone()
        } else {
            grant.groups.clone()
        };
        for group in &groups {
            check_name("group", group)?;
            if !system.allow(group) {
                return Err(Denial::Reserved {
                    what: "group",
                    name: group.clone(),
                });
            }
        }
        if user.len() + groups.iter().map(String::len).sum::<usize>() > MAX_NAMES {
            return Err(Denial::Name {
                what: "list of groups of",
                name: user,
                why: "it is longer than a request may carry",
            });
        }
        Ok(Self {
            user,
            groups,
            device,
            device_id: who.node.stable_id.0.clone(),
            os: who.node.os.to_string(),
            tags,
            user_id: who.node.user.0,
            grant,
        })
    }

    /// What a caller without a grant has to know, after the API server's own words.
    #[must_use]
    pub fn missing_grant(&self) -> String {
        let os = if self.os.is_empty() { "unknown" } else { &self.os };
        format!(
            "the tailnet policy grants {user} on device {device} (os {os}) no capability {CAPABILITY} here. A grant needs this user, device or tag as \
             src, and as dst this proxy; where it names a srcPosture, the device has to fulfil that, too",
            user = self.user,
            device = self.device,
        )
    }
}

/// Whether a name may stand in a header, as it is.
///
/// # Errors
/// [`Denial::Name`].
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), Denial> {
    let refuse = |why| {
        Err(Denial::Name {
            what,
            name: name.chars().take(64).collect(),
            why,
        })
    };
    if name.trim().is_empty() {
        return refuse("it is empty");
    }
    if name.len() > MAX_NAME {
        return refuse("it is too long");
    }
    if name.chars().any(char::is_control) {
        return refuse("it has a control character");
    }
    if name.trim() != name {
        return refuse("it begins or ends with white space");
    }
    Ok(())
}
