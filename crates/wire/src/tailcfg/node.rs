//! Nodes and the users behind them.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    CapMap, CapabilityVersion, Hostinfo, LoginId, NodeId, RegionId, Resolver, StableId, UserId, message,
};
use crate::key::{DiscoPublic, MachinePublic, NodePublic};

message! {
    /// A node as its control server describes it to itself or to a peer.
    pub struct Node {
        /// Number of the node.
        #[serde(rename = "ID")]
        pub id: NodeId,
        /// Stable name of the node.
        #[serde(rename = "StableID")]
        pub stable_id: StableId,
        /// Fully qualified domain name, with the final dot.
        pub name: String,
        /// Who owns the node. For a tagged node, the profile that all tagged nodes share.
        pub user: UserId,
        /// Who shared the node into this tailnet, if that is somebody else than `user`.
        pub sharer: UserId,
        /// Node key.
        pub key: NodePublic,
        /// When the node key ends. `None`: never.
        #[serde(with = "crate::json::time")]
        pub key_expiry: Option<Timestamp>,
        /// Signature of the node key, with tailnet lock.
        #[serde(with = "crate::json::base64")]
        pub key_signature: Vec<u8>,
        /// Machine key.
        pub machine: MachinePublic,
        /// Disco key of the running process.
        pub disco_key: DiscoPublic,
        /// Own addresses as /32 and /128 prefixes, IPv4 first.
        pub addresses: Vec<IpNet>,
        /// What is routed to this node. `None`: the same as `addresses`.
        #[serde(rename = "AllowedIPs")]
        pub allowed_ips: Option<Vec<IpNet>>,
        /// Where the node may be reached by UDP.
        #[serde(deserialize_with = "crate::json::endpoints::deserialize")]
        pub endpoints: Vec<SocketAddr>,
        /// Home region as `127.3.3.40:<region>`, for clients before capability version 111.
        #[serde(rename = "DERP")]
        pub legacy_derp: String,
        /// Home region.
        #[serde(rename = "HomeDERP")]
        pub home_derp: RegionId,
        /// What the node says about itself.
        pub hostinfo: Option<Box<Hostinfo>>,
        /// When the node was registered.
        #[serde(with = "crate::json::time")]
        pub created: Option<Timestamp>,
        /// The node's capability version.
        pub cap: CapabilityVersion,
        /// Tags, which own the node in place of a user.
        pub tags: Vec<String>,
        /// Subnet routes that this node serves at present.
        pub primary_routes: Vec<IpNet>,
        /// When the node was last connected. Absent while it is.
        #[serde(with = "crate::json::time")]
        pub last_seen: Option<Timestamp>,
        /// Whether the node is connected to the control server. `None`: not known.
        pub online: Option<bool>,
        /// Whether the node may use the tailnet.
        pub machine_authorized: bool,
        /// Capabilities without values, the old form of `cap_map`.
        pub capabilities: Vec<String>,
        /// Capabilities of the node.
        pub cap_map: CapMap,
        /// Whether the node may only reach the peer API, being without a signature.
        #[serde(rename = "UnsignedPeerAPIOnly")]
        pub unsigned_peer_api_only: bool,
        /// Whether the node key has ended.
        pub expired: bool,
        /// IPv4 address by which this peer knows the receiver.
        #[serde(rename = "SelfNodeV4MasqAddrForThisPeer")]
        pub self_node_v4_masq_addr_for_this_peer: Option<IpAddr>,
        /// IPv6 address by which this peer knows the receiver.
        #[serde(rename = "SelfNodeV6MasqAddrForThisPeer")]
        pub self_node_v6_masq_addr_for_this_peer: Option<IpAddr>,
        /// Whether the peer speaks WireGuard only: no disco, no DERP.
        pub is_wire_guard_only: bool,
        /// Whether the peer may answer but not open connections.
        pub is_jailed: bool,
        /// Resolvers to use while this peer is the exit node.
        #[serde(rename = "ExitNodeDNSResolvers")]
        pub exit_node_dns_resolvers: Vec<Resolver>,
    }
}

impl Node {
    /// What is routed to this node.
    #[must_use]
    pub fn routes(&self) -> &[IpNet] {
        self.allowed_ips.as_deref().unwrap_or(&self.addresses)
    }
}

/// A user of the tailnet, in the answer to a registration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct User {
    /// Number of the user.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Name for people.
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL")]
    pub profile_pic_url: String,
    /// When the user was created.
    #[serde(with = "crate::json::time", skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

/// A user at an identity provider, in the answer to a registration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Login {
    /// Number of the login.
    #[serde(rename = "ID")]
    pub id: LoginId,
    /// Identity provider.
    pub provider: String,
    /// Name at the provider, like `alice@example.com`.
    pub login_name: String,
    /// Name for people.
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL")]
    pub profile_pic_url: String,
}

/// A user as peers see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UserProfile {
    /// Number of the user.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Name at the identity provider, or `tagged-devices`.
    pub login_name: String,
    /// Name for people.
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "String::is_empty")]
    pub profile_pic_url: String,
    /// Groups of the policy in which the user is and that its peers may know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}
