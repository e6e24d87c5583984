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
    /// All VIP Services.
    #[serde(default)]
    pub services: Vec<Service>,
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

/// What a user may do in a tailnet. Later roles may do more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Owns nodes, nothing more.
    #[default]
    Member,
    /// Sees everything, changes nothing.
    Auditor,
    /// Looks after the bills.
    BillingAdmin,
    /// Administers users and devices.
    ItAdmin,
    /// Administers the policy and the network.
    NetworkAdmin,
    /// Administers the tailnet.
    Admin,
    /// The one who set the tailnet up. Counts as an administrator, too.
    Owner,
}

impl Role {
    /// All of them, in their order.
    pub const ALL: [Self; 7] = [
        Self::Member,
        Self::Auditor,
        Self::BillingAdmin,
        Self::ItAdmin,
        Self::NetworkAdmin,
        Self::Admin,
        Self::Owner,
    ];

    /// The word for the role, as it is stored and typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Auditor => "auditor",
            Self::BillingAdmin => "billing-admin",
            Self::ItAdmin => "it-admin",
            Self::NetworkAdmin => "network-admin",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

/// A VIP Service: a name and addresses that several nodes may answer for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name, such as `svc:web`.
    pub name: String,
    /// Its addresses, one per family.
    pub addresses: Vec<IpAddr>,
    /// The tags by which rules may refer to it.
    #[serde(default)]
    pub tags: BTreeSet<Tag>,
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
    /// The VIP Services that it hosts and that are approved, such as `svc:web`.
    #[serde(default)]
    pub services: BTreeSet<String>,
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
    /// The public gateway, which brings the internet to nodes with the attribute `funnel`, and which no rule names.
    FunnelGateway,
}
