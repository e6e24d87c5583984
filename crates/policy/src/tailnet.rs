//! The caller's view of a tailnet at one moment: what a policy is compiled against.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tailwharf_wire::tailcfg::{NodeId, UserId};

use crate::{Attributes, Tag};

/// Users, nodes and address ranges of a tailnet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tailnet {
    /// The ranges that node addresses come from. With the approved routes they are what `*` means as a source.
    pub prefixes: Vec<IpNet>,
    /// All users.
    #[serde(default)]
    pub users: Vec<User>,
    /// All nodes, in any order. Ids are unique.
    #[serde(default)]
    pub nodes: Vec<Node>,
}

/// A person who may own nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The id by which nodes refer to their owner.
    pub id: UserId,
    /// The name by which policies refer to the user, such as `alice@example.com`.
    pub login: String,
    /// What the user may do.
    #[serde(default)]
    pub role: Role,
}

/// What a user may do in a tailnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Owns nodes, nothing more.
    #[default]
    Member,
    /// Administers the tailnet.
    Admin,
    /// The one who set the tailnet up. Counts as an administrator, too.
    Owner,
}

/// A device of the tailnet.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The node's id.
    pub id: NodeId,
    /// Whose identity the node has.
    pub owner: Owner,
    /// Its tailnet addresses, one per family.
    pub addresses: Vec<IpAddr>,
    /// The routes that it advertises and that are approved. An exit node has `0.0.0.0/0` and `::/0`.
    #[serde(default)]
    pub routes: Vec<IpNet>,
    /// What postures are evaluated over; see [`crate::host_attributes`].
    #[serde(default)]
    pub attributes: Attributes,
}

/// Whose identity a node has: a user's, or that of its tags. Never both.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// A user's device.
    User(UserId),
    /// A tagged device.
    Tags(BTreeSet<Tag>),
}
