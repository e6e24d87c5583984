//! Map requests and responses: the state of the tailnet as one node may see it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    CapMap, CapabilityVersion, DerpMap, DnsConfig, FilterRule, Hostinfo, Node, NodeId, PingRequest, RegionId,
    SshPolicy, UserProfile, message,
};
use crate::key::{DiscoPublic, NodePublic};

/// How a node learned of one of its endpoints. Numbers that are not named here are allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointType(pub i32);

impl EndpointType {
    /// Not told.
    pub const UNKNOWN: Self = Self(0);
    /// Address of an interface.
    pub const LOCAL: Self = Self(1);
    /// Seen by a STUN server.
    pub const STUN: Self = Self(2);
    /// Mapped by the router on request.
    pub const PORT_MAPPED: Self = Self(3);
    /// IPv4 address seen by a STUN server, with the local port, on the chance that the router forwards it.
    pub const STUN_4_LOCAL_PORT: Self = Self(4);
    /// Set by the administrator.
    pub const EXPLICIT: Self = Self(5);
}

message! {
    /// `POST /machine/map`: tell the server about this node, or ask for the state of the tailnet, once or as a stream.
    pub struct MapRequest {
        /// The client's capability version.
        pub version: CapabilityVersion,
        /// `zstd`, or empty for no compression.
        pub compress: String,
        /// Whether the server sends keep-alives.
        pub keep_alive: bool,
        /// Node key.
        pub node_key: NodePublic,
        /// Disco key of this process.
        pub disco_key: DiscoPublic,
        /// Whether the answer is a stream.
        pub stream: bool,
        /// What the node says about itself. A stream request does not change what the server has stored.
        pub hostinfo: Option<Hostinfo>,
        /// The stream to resume.
        pub map_session_handle: String,
        /// The last message that was received on it.
        pub map_session_seq: i64,
        /// Where the node may be reached by UDP.
        #[serde(deserialize_with = "crate::json::endpoints::deserialize")]
        pub endpoints: Vec<SocketAddr>,
        /// How each of `endpoints` was learned, when both have the same length.
        pub endpoint_types: Vec<EndpointType>,
        /// State of tailnet lock.
        #[serde(rename = "TKAHead")]
        pub tka_head: String,
        /// Whether the server stores nothing.
        pub read_only: bool,
        /// Whether the answer needs no peers.
        pub omit_peers: bool,
        /// Behaviour asked for by people who look for errors.
        pub debug_flags: Vec<String>,
    }
}

message! {
    /// A message of a map stream. What is absent has not changed.
    pub struct MapResponse {
        /// Name of this stream, to resume it.
        pub map_session_handle: String,
        /// Number of this message in the stream.
        pub seq: i64,
        /// Whether the message only says that the stream is alive. All else is absent then.
        pub keep_alive: bool,
        /// Something to probe and report.
        pub ping_request: Option<PingRequest>,
        /// A page to show to the user.
        #[serde(rename = "PopBrowserURL")]
        pub pop_browser_url: String,
        /// The receiver itself.
        pub node: Option<Node>,
        /// Relays.
        #[serde(rename = "DERPMap")]
        pub derp_map: Option<DerpMap>,
        /// All peers, sorted by number. Empty: unchanged.
        pub peers: Vec<Node>,
        /// Peers that are new or have changed, sorted by number.
        pub peers_changed: Vec<Node>,
        /// Peers that are gone.
        pub peers_removed: Vec<NodeId>,
        /// Changes of single fields of known peers.
        pub peers_changed_patch: Vec<PeerChange>,
        /// Peers that were just seen (`true`) or are gone since now (`false`).
        pub peer_seen_change: BTreeMap<NodeId, bool>,
        /// Peers that connected to or disconnected from the control server.
        pub online_change: BTreeMap<NodeId, bool>,
        /// How to resolve names.
        #[serde(rename = "DNSConfig")]
        pub dns_config: Option<DnsConfig>,
        /// Name of the tailnet.
        pub domain: String,
        /// Whether the node reports what it listens on.
        pub collect_services: Option<bool>,
        /// The whole packet filter in its old form, in which it cannot be made empty.
        pub packet_filter: Vec<FilterRule>,
        /// Named parts of the packet filter. `None` as a value removes the part; the name `*` with `None` removes all that are
        /// not in this message.
        pub packet_filters: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
        /// Users behind the nodes of this message, in addition to those known.
        pub user_profiles: Vec<UserProfile>,
        /// Warnings for the user in their old form.
        pub health: Option<Vec<String>>,
        /// Warnings for the user, by name. `None` removes one.
        pub display_messages: BTreeMap<String, Option<DisplayMessage>>,
        /// The server's time.
        #[serde(with = "crate::json::time")]
        pub control_time: Option<Timestamp>,
        /// Who may log in to the node by SSH. Without rules: nobody; absent: unchanged.
        #[serde(rename = "SSHPolicy")]
        pub ssh_policy: Option<SshPolicy>,
        /// State of tailnet lock.
        #[serde(rename = "TKAInfo")]
        pub tka_info: Option<TkaInfo>,
        /// Settings for people who look for errors.
        pub debug: Option<Debug>,
        /// How to reach the control server when its name does not resolve.
        pub control_dial_plan: Option<ControlDialPlan>,
    }
}

message! {
    /// Changes of single fields of a peer. What is absent has not changed.
    pub struct PeerChange {
        /// The peer.
        #[serde(rename = "NodeID")]
        pub node_id: NodeId,
        /// Home region.
        #[serde(rename = "DERPRegion")]
        pub derp_region: RegionId,
        /// Capability version.
        pub cap: CapabilityVersion,
        /// Capabilities.
        pub cap_map: Option<CapMap>,
        /// Where it may be reached by UDP. Empty: unchanged.
        #[serde(deserialize_with = "crate::json::endpoints::deserialize")]
        pub endpoints: Vec<SocketAddr>,
        /// Node key.
        pub key: Option<NodePublic>,
        /// Signature of the node key.
        #[serde(with = "crate::json::base64")]
        pub key_signature: Vec<u8>,
        /// Disco key.
        pub disco_key: Option<DiscoPublic>,
        /// Whether it is connected to the control server.
        pub online: Option<bool>,
        /// When it was last connected.
        #[serde(with = "crate::json::time")]
        pub last_seen: Option<Timestamp>,
        /// When the node key ends.
        #[serde(with = "crate::json::time")]
        pub key_expiry: Option<Timestamp>,
    }
}

message! {
    /// State of tailnet lock.
    pub struct TkaInfo {
        /// Hash of the newest change of the lock.
        pub head: String,
        /// Whether the lock is off.
        pub disabled: bool,
    }
}

message! {
    /// A warning for the user.
    pub struct DisplayMessage {
        /// Headline.
        pub title: String,
        /// What happened and what to do.
        pub text: String,
        /// `high`, `medium` or `low`.
        pub severity: String,
        /// Whether connections suffer.
        pub impacts_connectivity: bool,
        /// A page that helps.
        pub primary_action: Option<DisplayMessageAction>,
    }
}

message! {
    /// A page that helps with a [`DisplayMessage`].
    pub struct DisplayMessageAction {
        /// Address of the page.
        #[serde(rename = "URL")]
        pub url: String,
        /// Text of the link.
        pub label: String,
    }
}

message! {
    /// Settings for people who look for errors.
    pub struct Debug {
        /// How long to wait before anything else is done, in seconds.
        pub sleep_seconds: f64,
        /// Whether the client uploads no logs.
        pub disable_log_tail: bool,
        /// Exit code with which the client ends itself.
        pub exit: Option<i32>,
    }
}

message! {
    /// How to reach the control server when its name does not resolve.
    pub struct ControlDialPlan {
        /// Addresses to try.
        pub candidates: Vec<ControlIpCandidate>,
    }
}

message! {
    /// One address of a [`ControlDialPlan`].
    pub struct ControlIpCandidate {
        /// Address.
        #[serde(rename = "IP")]
        pub ip: Option<IpAddr>,
        /// Host of a proxy through which to go.
        #[serde(rename = "ACEHost")]
        pub ace_host: String,
        /// When to start, in seconds after the first.
        pub dial_start_delay_sec: f64,
        /// When to give up, in seconds.
        pub dial_timeout_sec: f64,
        /// Which one to take when several answer; higher wins.
        pub priority: i64,
    }
}
