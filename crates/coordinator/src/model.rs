//! What the coordinator keeps: users, nodes, services, credentials, settings, the policy and the log of changes.
//!
//! These types are the in-memory truth and, as JSON, the rows of the store. They hold no secret: of every credential only a hash is kept.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailwharf_policy::Principal;
pub use tailwharf_policy::{AttributeValue, Attributes, InvalidTag, Role, Tag};
use tailwharf_wire::{
    key::{DiscoPublic, MachinePublic, NodePublic},
    tailcfg::{CapabilityVersion, EndpointType, Hostinfo, NodeId, RegionId, StableId, UserId},
};

pub use self::{
    check::{CONFIRMATION_MEMORY, CheckId, CheckTarget, Confirmation, PendingCheck},
    federation::{Federation, Proof},
    log::{Action, Author, LogEntry, TargetKind},
    registration::{PendingRegistration, RegistrationId},
    service::{InvalidServiceName, ServiceName, VipService},
    settings::{DnsSettings, ExtraRecord, Settings},
};
use crate::secret::SecretHash;

mod check;
mod federation;
mod log;
mod registration;
mod service;
mod settings;

/// A person of the tailnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Never given twice.
    pub id: UserId,
    /// Unique, of the form `name@domain`.
    pub login: String,
    /// Shown to people.
    pub display_name: String,
    /// What the user may do.
    pub role: Role,
    /// When the user was created.
    pub created: Timestamp,
}

impl User {
    /// Whether the person may look after all devices.
    pub fn is_administrator(&self) -> bool {
        matches!(
            self.role,
            Role::ItAdmin | Role::NetworkAdmin | Role::Admin | Role::Owner
        )
    }

    /// The person, as the policy's rules of ownership see it.
    pub fn principal(&self) -> Principal {
        Principal::User {
            login: self.login.clone(),
            role: self.role,
        }
    }
}

/// To whom a node belongs: a person, or nobody but its tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeOwner {
    /// A person.
    User(UserId),
    /// At least one tag.
    Tags(BTreeSet<Tag>),
}

impl NodeOwner {
    /// The tags; none when a person owns the node.
    pub fn tags(&self) -> Option<&BTreeSet<Tag>> {
        match self {
            Self::User(_) => None,
            Self::Tags(tags) => Some(tags),
        }
    }

    /// The person; none when the node is tagged.
    pub fn user(&self) -> Option<UserId> {
        match self {
            Self::User(user) => Some(*user),
            Self::Tags(_) => None,
        }
    }
}

/// An address at which a node may be reached directly, as the node reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
    pub addr: SocketAddr,
    /// How the node learned of it.
    pub kind: EndpointType,
}

/// A device of the tailnet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Never given twice.
    pub id: NodeId,
    /// The name by which other systems know the node, never given twice.
    pub stable_id: StableId,
    /// The key of the machine that registered the node; proved by each Noise session.
    pub machine_key: MachinePublic,
    /// The current WireGuard key.
    pub node_key: NodePublic,
    /// The disco key of the running process.
    pub disco_key: Option<DiscoPublic>,
    /// Person or tags.
    pub owner: NodeOwner,
    /// The DNS label, unique in the tailnet.
    pub name: String,
    /// Whether an administrator chose the name; else it follows the host name.
    pub name_is_fixed: bool,
    /// The IPv4 address inside the tailnet.
    pub ipv4: Ipv4Addr,
    /// The IPv6 address inside the tailnet.
    pub ipv6: Ipv6Addr,
    /// Whether the node is removed some time after its last disconnect.
    pub ephemeral: bool,
    /// Whether peers may be told about the node.
    pub authorized: bool,
    /// When the node was created.
    pub created: Timestamp,
    /// When the node's last connection ended.
    pub last_seen: Option<Timestamp>,
    /// When the node key ends; never, when absent.
    pub expires: Option<Timestamp>,
    /// The auth key with which the node was registered.
    pub auth_key: Option<CredentialId>,
    /// The capability version of the client.
    pub capability_version: CapabilityVersion,
    /// What the node said about itself.
    pub hostinfo: Hostinfo,
    /// Where the node may be reached directly.
    pub endpoints: Vec<Endpoint>,
    /// Routes that the node advertises and that an administrator or the policy approved.
    pub approved_routes: BTreeSet<IpNet>,
    /// Posture attributes that an administrator or the node itself set.
    pub attributes: Attributes,
    /// When attributes end that do not hold for ever.
    #[serde(default)]
    pub attribute_ends: BTreeMap<String, Timestamp>,
    /// The services that the node offers to be a host of.
    #[serde(default)]
    pub services: BTreeSet<ServiceName>,
    /// What the node called this set of services.
    #[serde(default)]
    pub services_hash: String,
}

impl Node {
    /// Whether the node key has ended.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// Whether the node is this server's public gateway.
    pub fn is_funnel_gateway(&self) -> bool {
        let tags = self.owner.tags().into_iter().flatten();
        tags.into_iter().any(|tag| tag.as_str() == Tag::FUNNEL_GATEWAY)
    }

    /// The region of the relay at which the node listens; none until the node has told.
    pub fn home_region(&self) -> Option<RegionId> {
        let region = self.hostinfo.net_info.as_ref()?.preferred_derp;
        (!region.is_none()).then_some(region)
    }

    /// Both addresses as host prefixes, IPv4 first.
    pub fn addresses(&self) -> [IpNet; 2] {
        [IpAddr::V4(self.ipv4).into(), IpAddr::V6(self.ipv6).into()]
    }

    /// The routes that are both advertised and approved.
    pub fn enabled_routes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.hostinfo
            .routable_ips
            .iter()
            .copied()
            .filter(|route| self.approved_routes.contains(route))
    }
}

/// The public part of a credential: what lists show, and what is looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CredentialId(pub String);

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for CredentialId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for CredentialId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// On whose behalf something is done. Decides which tags may be given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    /// Who holds the data directory: may do everything.
    Administrator,
    /// A person.
    User(UserId),
    /// An OAuth client, which acts with its tags.
    Client {
        /// The client.
        id: CredentialId,
        /// The tags with which it acts.
        tags: BTreeSet<Tag>,
    },
}

/// A key by which a node joins without a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthKey {
    /// The public part.
    pub id: CredentialId,
    /// The hash of the secret part.
    pub secret: SecretHash,
    /// Who made the key.
    pub creator: Actor,
    /// The person who owns untagged nodes made with the key; always there when `tags` is empty.
    pub owner: Option<UserId>,
    /// Free text.
    pub description: String,
    /// Whether more than one node may be made with the key.
    pub reusable: bool,
    /// Whether the nodes are ephemeral.
    pub ephemeral: bool,
    /// Whether the nodes need no approval.
    pub preauthorized: bool,
    /// The tags of the nodes.
    pub tags: BTreeSet<Tag>,
    /// When the key was made.
    pub created: Timestamp,
    /// From when on the key is refused.
    pub expires: Timestamp,
    /// When a node was first made with the key.
    pub used: Option<Timestamp>,
    /// When the key was revoked.
    pub revoked: Option<Timestamp>,
}

/// An OAuth client: trades its secret for short tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthClient {
    /// The public part, which is the `client_id`.
    pub id: CredentialId,
    /// How it proves who it is.
    #[serde(flatten)]
    pub proof: Proof,
    /// Who made the client.
    pub creator: Actor,
    /// Free text.
    pub description: String,
    /// What its tokens may do at most.
    pub scopes: BTreeSet<String>,
    /// With which tags it acts.
    pub tags: BTreeSet<Tag>,
    /// When the client was made.
    pub created: Timestamp,
}

/// A token of the API: short, of an OAuth client, or long, of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// The public part.
    pub id: CredentialId,
    /// The hash of the secret part.
    pub secret: SecretHash,
    /// On whose behalf it acts.
    pub actor: Actor,
    /// What it may do.
    pub scopes: BTreeSet<String>,
    /// Free text.
    pub description: String,
    /// When the token was made.
    pub created: Timestamp,
    /// From when on the token is refused.
    pub expires: Timestamp,
}

/// One accepted text of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Counts up by one.
    pub version: i64,
    /// The text as it was given, comments included.
    pub text: String,
    /// Who gave it.
    pub actor: Actor,
    /// When it was accepted.
    pub created: Timestamp,
}

/// A TXT record that a node asked for, to prove a name to a certificate authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsTxt {
    /// The full name, without a final dot.
    pub name: String,
    /// The value.
    pub value: String,
    /// The node that asked.
    pub node: NodeId,
    /// When it was stored.
    pub created: Timestamp,
}
