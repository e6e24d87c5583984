//! What the tailnet's policy grants a caller at this device: the capabilities of the contract and our own, merged. Pure.
//!
//! Permissions of several rules add up; of demands the strictest holds.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tailwharf_node::WhoIs;

use crate::check::{self, Demand};

/// The capability of Tailscale's proxy.
pub const CAPABILITY: &str = "tailscale.com/cap/kubernetes";
/// Its older name, which counts when the new one is absent, and for groups alone.
const LEGACY_CAPABILITY: &str = "https://tailscale.com/cap/kubernetes";
/// What only tailwharf understands. It stands beside [`CAPABILITY`], so that a policy is not looser where another proxy reads it.
pub const OWN_CAPABILITY: &str = "tailwharf.dev/cap/kubernetes";
/// Every capability that is looked at.
pub const CAPABILITIES: [&str; 3] = [CAPABILITY, LEGACY_CAPABILITY, OWN_CAPABILITY];
/// Most groups of one caller. Each costs the API server an authorization check with every request.
pub(crate) const MAX_GROUPS: usize = 256;
/// Most recorders of one caller.
const MAX_RECORDERS: usize = 16;

/// One value of [`CAPABILITY`].
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    #[serde(deserialize_with = "or_default")]
    impersonate: Impersonate,
    #[serde(deserialize_with = "or_default")]
    recorder_addrs: Vec<SocketAddr>,
    #[serde(deserialize_with = "or_default")]
    enforce_recorder: bool,
    #[serde(deserialize_with = "or_default")]
    enable_events: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Impersonate {
    #[serde(deserialize_with = "or_default")]
    groups: Vec<String>,
}

/// One value of [`OWN_CAPABILITY`]. An unknown field is refused: it may be a demand.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct OwnRule {
    #[serde(rename = "as")]
    act_as: ActAs,
    keep_streams: bool,
    check: Option<CheckRule>,
}

/// A fresh sign-in that a grant demands.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckRule {
    #[serde(deserialize_with = "a_period")]
    period: Duration,
    /// Reading needs it as well.
    #[serde(default)]
    reads: bool,
}

/// Whom a caller may act as by `kubectl --as`. A pattern is a name, or a beginning followed by `*`; names that begin with `system:`
/// need a pattern that does, too.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActAs {
    /// Users.
    pub users: Vec<String>,
    /// Groups.
    pub groups: Vec<String>,
}

impl ActAs {
    /// Whether the caller may act as anybody at all.
    #[must_use]
    pub fn anybody(&self) -> bool {
        !self.users.is_empty()
    }

    /// Whether the caller may act as this user.
    #[must_use]
    pub fn allows_user(&self, user: &str) -> bool {
        self.users.iter().any(|pattern| matches(pattern, user))
    }

    /// Whether the caller may act as a member of this group.
    #[must_use]
    pub fn allows_group(&self, group: &str) -> bool {
        self.groups.iter().any(|pattern| matches(pattern, group))
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let reserved = |text: &str| text.starts_with("system:");
    if reserved(name) && !reserved(pattern) {
        return false;
    }
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

/// What all rules together give and demand.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whether the policy grants [`CAPABILITY`] at all.
    pub granted: bool,
    /// Groups, each once, in the order of the policy.
    pub groups: Vec<String>,
    /// Where sessions are recorded; the first that answers.
    pub recorders: Vec<SocketAddr>,
    /// Whether a session that cannot be recorded is refused.
    pub enforce_recorder: bool,
    /// Whether requests are told to the recorders, too.
    pub events: bool,
    /// Whom the caller may act as.
    pub act_as: ActAs,
    /// Whether open watches and sessions go on when the grant changes.
    pub keep_streams: bool,
    /// The fresh sign-in that is demanded.
    pub check: Option<Demand>,
}

/// The policy's grants cannot be used; the caller is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// A value has another form than expected.
    #[error("value {position} of the capability {name} in the tailnet policy cannot be read: {why}")]
    Malformed {
        /// The capability.
        name: &'static str,
        /// Which of its values, counted from zero.
        position: usize,
        /// What the parser said.
        why: String,
    },
    /// There are more groups than a request may carry.
    #[error("the tailnet policy grants {0} groups, and {MAX_GROUPS} is the most that a request may carry")]
    TooManyGroups(usize),
    /// There are more recorders than anybody would try.
    #[error("the tailnet policy names {0} recorders, and {MAX_RECORDERS} is the most")]
    TooManyRecorders(usize),
}

/// Merges what the policy grants the caller.
///
/// # Errors
/// When a value cannot be read; nothing is granted then.
pub(crate) fn merge(who: &WhoIs) -> Result<Grant, GrantError> {
    let mut grant = Grant::default();
    let rules: Vec<Rule> = read(who, CAPABILITY)?;
    grant.granted = who.cap_map.contains_key(CAPABILITY);
    let legacy: Vec<Rule> = if rules.is_empty() {
        read(who, LEGACY_CAPABILITY)?
    } else {
        Vec::new()
    };
    grant.granted |= !legacy.is_empty();
    for rule in &rules {
        for recorder in &rule.recorder_addrs {
            if !grant.recorders.contains(recorder) {
                grant.recorders.push(*recorder);
            }
        }
        grant.enforce_recorder |= rule.enforce_recorder;
        grant.events |= rule.enable_events;
    }
    for group in rules
        .into_iter()
        .chain(legacy)
        .flat_map(|rule| rule.impersonate.groups)
    {
        if !grant.groups.contains(&group) {
            grant.groups.push(group);
        }
    }
    let own: Vec<OwnRule> = read(who, OWN_CAPABILITY)?;
    // To keep streams is less strict than to cut them, so every rule has to say so.
    grant.keep_streams = !own.is_empty() && own.iter().all(|rule| rule.keep_streams);
    for rule in own {
        if let Some(CheckRule { period, reads }) = rule.check {
            let demand = Demand { period, reads };
            grant.check = Some(grant.check.map_or(demand, |known| known.and(demand)));
        }
        grant.act_as.users.extend(rule.act_as.users);
        grant.act_as.groups.extend(rule.act_as.groups);
    }
    if grant.groups.len() > MAX_GROUPS {
        return Err(GrantError::TooManyGroups(grant.groups.len()));
    }
    if grant.recorders.len() > MAX_RECORDERS {
        return Err(GrantError::TooManyRecorders(grant.recorders.len()));
    }
    Ok(grant)
}

fn read<T: for<'de> Deserialize<'de>>(who: &WhoIs, name: &'static str) -> Result<Vec<T>, GrantError> {
    let values = who.cap_map.get(name).map_or(&[][..], Vec::as_slice);
    let parse = |(position, value): (usize, &serde_json::Value)| {
        let malformed = |why: String| GrantError::Malformed { name, position, why };
        if !value.is_object() {
            return Err(malformed("it is not an object".to_owned()));
        }
        T::deserialize(value).map_err(|error| malformed(error.to_string()))
    };
    values.iter().enumerate().map(parse).collect()
}

fn a_period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    check::period(&text).map_err(serde::de::Error::custom)
}

/// Tailscale's proxy takes `null` for what is absent.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
