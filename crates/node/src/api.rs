//! What the rest of tailwharf sees of a tailnet node: its configuration, its status, its sockets and its state store.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use futures::future::BoxFuture;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailwharf_node_core::{RelayReason, WhoIs};
use tailwharf_wire::key::{DiscoPublic, MachinePrivate, NodePrivate, NodePublic};
use tailwharf_wire::tailcfg::{DerpMap, RegionId, StableId, UserProfile};
use tokio::sync::watch;
use url::Url;
use zeroize::Zeroizing;

use crate::funnel::FunnelListener;
use crate::offload::NamedOffload;
use crate::service::{ServiceListener, ServiceName};
use crate::tcp::{TcpListener, TcpStream};
use crate::transit::TransitCounts;
use crate::udp::UdpSocket;

/// How a node joins its tailnet. Fixed for the life of the node; what may change later is in [`Prefs`].
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// URL of the control server, `http` or `https`, without a path.
    pub control_url: Url,
    /// The name the node asks for; the control server may add a suffix.
    pub hostname: String,
    /// The key that registers the node without a login page. Not needed once the state store holds a registered node.
    pub auth_key: Option<AuthKey>,
    /// Tags asked for, each with its `tag:` prefix. Tags of the auth key win.
    pub tags: Vec<String>,
    /// Asks the control server to delete the node some time after it went away.
    pub ephemeral: bool,
    /// What runs the node, told to the control server as `Hostinfo.App`, for example `k8s-operator`.
    pub app: String,
    /// Registers a new node key at the start even if the old one is still good: the same device, and its time of expiry
    /// begins anew.
    pub force_reauth: bool,
    /// The UDP port of direct paths. Without one, the node takes the port that it had before, or a free one.
    pub udp_port: Option<u16>,
    /// Addresses outside by which peers reach that port because somebody saw to it: a port of a firewall, or of a Kubernetes node.
    pub endpoints: Vec<SocketAddr>,
    /// As [`Prefs::routes`], from the start.
    pub routes: Vec<IpNet>,
    /// As [`Prefs::accept_routes`], from the start.
    pub accept_routes: bool,
    /// As [`Prefs::exit_node`], from the start.
    pub exit_node: Option<String>,
    /// As [`Prefs::resolves_for_peers`], from the start.
    pub resolves_for_peers: bool,
    /// As [`Prefs::app_connector`], from the start.
    pub app_connector: bool,
    /// Peers that talked to this node before it moved here, at most 32 of them: the node starts handshakes with them, so
    /// that they need not find out by their timers.
    pub wake: Vec<StableId>,
}

impl NodeConfig {
    /// A node that registers by a login page, has no tags of its own and stays until it is deleted.
    #[must_use]
    pub fn new(control_url: Url, hostname: impl Into<String>) -> Self {
        Self {
            control_url,
            hostname: hostname.into(),
            auth_key: None,
            tags: Vec::new(),
            ephemeral: false,
            app: String::new(),
            force_reauth: false,
            udp_port: None,
            endpoints: Vec::new(),
            routes: Vec::new(),
            accept_routes: false,
            exit_node: None,
            resolves_for_peers: false,
            app_connector: false,
            wake: Vec::new(),
        }
    }
}

/// An auth key. Its text is a secret: it is neither printed nor logged.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthKey(Zeroizing<String>);

impl AuthKey {
    /// Wraps the text of a key; surrounding white space does not count. `None` when nothing is left.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(Zeroizing::new(text.to_owned())))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(redacted)")
    }
}

/// The part of a node's configuration that can change while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefs {
    /// The name the node asks for.
    pub hostname: String,
    /// Tags asked for, each with its `tag:` prefix.
    pub tags: Vec<String>,
    /// Networks that this node offers to route for peers; an exit node offers `0.0.0.0/0` and `::/0`. The control server decides; [`NodeStatus::routes`] says
    /// which it approved. A node without a device of the kernel carries what peers send there by sockets of this machine, as far as the packet filter allows
    /// it: nothing else has to be done for it. Default routes lead to the internet alone, not to private networks or this machine. Networks within
    /// [`tailwharf_node_core::VIA`] lead to the IPv4 addresses in them.
    pub routes: Vec<IpNet>,
    /// Lets dials and datagrams reach the subnets that peers route. Without, they reach peers and services alone. A device has its own setting.
    pub accept_routes: bool,
    /// The peer, by name or address, that takes dials and datagrams to what no other peer routes. A device has its own setting.
    pub exit_node: Option<String>,
    /// Offers to resolve names for peers that may use this node as their exit.
    pub resolves_for_peers: bool,
    /// Offers to be an app connector: to resolve for peers the domains that the control server says, and to route the addresses that it finds, beside
    /// [`Prefs::routes`].
    pub app_connector: bool,
}

/// How far a node has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The node has not reached its control server yet.
    Starting,
    /// A person has to open the URL and sign in.
    NeedsLogin {
        /// The login page.
        url: String,
    },
    /// The node is registered, and an administrator of the tailnet has to approve it.
    NeedsApproval,
    /// The control server does not accept the node; it has stopped trying. A new auth key, or a change at the control
    /// server and a new start, helps.
    Refused {
        /// The reason, in the server's words.
        reason: String,
    },
    /// The control server knows the node; its first map is awaited.
    Registered,
    /// The node has its map and is connected to its control server.
    Online,
    /// The control server is out of reach. Traffic goes on with the last map, if there was one; it reconnects by itself.
    Disconnected {
        /// What went wrong last.
        reason: String,
    },
    /// The node has been shut down or logged out.
    Stopped,
}

/// How packets go to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPath {
    /// The peer's device id.
    pub device_id: StableId,
    /// The peer's full name without a final dot.
    pub fqdn: String,
    /// The way of its packets.
    pub kind: PathKind,
}

/// A way of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// By UDP, without anybody between.
    Direct {
        /// The peer's address outside of the tailnet.
        address: SocketAddr,
    },
    /// Through a relay.
    Relay {
        /// The region of the relay; zero if none is known.
        region: RegionId,
        /// Why not directly.
        why: RelayReason,
    },
}

/// What a node tells about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// How far the node has come.
    pub phase: Phase,
    /// The device id at the control server, known once registered.
    pub device_id: Option<StableId>,
    /// The full name without a final dot.
    pub fqdn: Option<String>,
    /// The addresses on the tailnet, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The relay region where peers find this node.
    pub home_region: Option<RegionId>,
    /// Whether the connection to the relay of the home region stands.
    pub relay_connected: bool,
    /// How packets go to the peers that talked last, at most 64 of them.
    pub paths: Vec<PeerPath>,
    /// Which work the kernel does for whole batches of packets, and which it does not do, and why.
    pub offloads: Vec<NamedOffload>,
    /// The tags that the control server gave the node.
    pub tags: Vec<String>,
    /// When the node key ends and somebody has to sign in again. `None`: never, or not known yet.
    pub key_expiry: Option<Timestamp>,
    /// The addresses of the services that the control server lets this node host, by name (`svc:…`).
    pub services: BTreeMap<String, Vec<IpAddr>>,
    /// Those of [`Prefs::routes`], and of the routes of an app connector, that the control server routes to this node.
    pub routes: Vec<IpNet>,
    /// The ports on which the node may be reached from the internet; none if it may not.
    pub funnel_ports: Vec<RangeInclusive<u16>>,
    /// The names for which the node may get certificates.
    pub cert_domains: Vec<String>,
    /// What is wrong, for people: warnings of the control server, and our own.
    pub health: Vec<String>,
}

impl NodeStatus {
    /// The status of a node of which nothing is known.
    #[must_use]
    pub fn starting() -> Self {
        Self {
            phase: Phase::Starting,
            device_id: None,
            fqdn: None,
            addresses: Vec::new(),
            home_region: None,
            relay_connected: false,
            paths: Vec::new(),
            offloads: Vec::new(),
            tags: Vec::new(),
            key_expiry: None,
            services: BTreeMap::new(),
            routes: Vec::new(),
            funnel_ports: Vec::new(),
            cert_domains: Vec::new(),
            health: Vec::new(),
        }
    }

    /// Whether peers can reach the node: it has its map, is connected to the control server and to its relay.
    #[must_use]
    pub fn reachable(&self) -> bool {
        self.phase == Phase::Online && self.relay_connected
    }
}

/// One tailnet node.
pub trait TailnetNode: Send + Sync + 'static {
    /// The status now and each change of it.
    fn status(&self) -> watch::Receiver<NodeStatus>;

    /// Accepts TCP connections to `port` on all addresses of the node.
    ///
    /// # Errors
    /// [`SocketError::PortInUse`] when the port has a listener already, [`SocketError::Closed`] after shutdown.
    fn listen_tcp(&self, port: u16) -> Result<TcpListener, SocketError>;

    /// Accepts TCP connections to `port` of a service, and offers to the control server to host it. Connections come once
    /// it has been approved there; the status names the service's addresses then.
    ///
    /// # Errors
    /// [`SocketError::PortInUse`] when this node serves the port already, [`SocketError::Closed`] after shutdown.
    fn listen_service(&self, service: &ServiceName, port: u16) -> Result<ServiceListener, SocketError>;

    /// Accepts connections from the internet to `port`, which gateways of the tailnet pass on, and tells the control server that the node is to be reached from
    /// there. Whether it may be says [`NodeStatus::funnel_ports`]; without that no connection comes.
    ///
    /// # Errors
    /// As [`TailnetNode::listen_tcp`].
    fn listen_funnel(&self, port: u16) -> Result<FunnelListener, SocketError>;

    /// Receives and sends UDP datagrams on `port` of all addresses of the node; port 0 picks a free one.
    ///
    /// # Errors
    /// As [`TailnetNode::listen_tcp`].
    fn bind_udp(&self, port: u16) -> Result<UdpSocket, SocketError>;

    /// Opens a TCP connection to an address on the tailnet: of a node, of a service, or as [`Prefs`] say of a subnet that a peer routes, or any that an exit
    /// node takes.
    ///
    /// # Errors
    /// [`DialError`] names what is in the way; the wait is bounded by 30 s.
    fn dial_tcp(&self, to: SocketAddr) -> BoxFuture<'_, Result<TcpStream, DialError>>;

    /// Opens a TCP connection to a node by its MagicDNS name, short or full.
    ///
    /// # Errors
    /// As [`TailnetNode::dial_tcp`], and [`DialError::UnknownName`].
    fn dial_name<'a>(&'a self, name: &'a str, port: u16) -> BoxFuture<'a, Result<TcpStream, DialError>>;

    /// The addresses behind a MagicDNS name, short or full; IPv4 first. Empty when the map has no such name.
    fn resolve(&self, name: &str) -> Vec<IpAddr>;

    /// Who is behind a source address seen by a listener, and what the policy lets it do at this node. `None` for an address
    /// that the map does not have.
    fn whois(&self, addr: SocketAddr) -> Option<WhoIs>;

    /// As [`TailnetNode::whois`], with what the caller may do at `local`: the address that it connected to, which may be that
    /// of a service.
    fn whois_at(&self, addr: SocketAddr, local: IpAddr) -> Option<WhoIs>;

    /// The disco key of this run of the node; peers tell two runs of one node apart by it.
    fn disco_key(&self) -> DiscoPublic;

    /// What the node has carried between peers and the networks of [`Prefs::routes`].
    fn transit(&self) -> TransitCounts;

    /// Changes what the node tells the control server about itself, and how it routes.
    fn set_prefs(&self, prefs: Prefs);

    /// Closes all sockets and connections. The node stays registered. Returns when everything has ended.
    fn shutdown(&self) -> BoxFuture<'_, ()>;

    /// Tells the control server to forget the node's key, forgets it here, then shuts down.
    ///
    /// # Errors
    /// [`LogoutError`] when the control server could not be told; the node is shut down all the same.
    fn logout(&self) -> BoxFuture<'_, Result<(), LogoutError>>;
}

/// What a node must keep to be the same node after a restart. Holds private keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeState {
    /// Identifies the machine to the control server; survives a logout.
    pub machine_key: MachinePrivate,
    /// The node's WireGuard and relay identity; replaced when it expires and after a logout.
    pub node_key: NodePrivate,
    /// The expired key that `node_key` is to replace. Present only until the control server has taken `node_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_node_key: Option<NodePublic>,
    /// The device id. Present means: the control server has registered `node_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_id: Option<StableId>,
    /// The full name without a final dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    /// The addresses on the tailnet, IPv4 first.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Who registered the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<UserProfile>,
    /// The relay region where peers look for this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_region: Option<RegionId>,
    /// The last relay map, so that the relay connection need not wait for the control server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derp_map: Option<DerpMap>,
    /// The UDP port of direct paths, kept so that NATs and firewalls see the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_port: Option<u16>,
}

/// Keeps the state of one node.
pub trait StateStore: Send + Sync + 'static {
    /// Reads the state; `None` when nothing was ever saved.
    fn load(&self) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>>;

    /// Replaces the state. When it returns without an error, a later `load` gives this state even after a crash.
    fn save<'a>(&'a self, state: &'a NodeState) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// A state store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state could not be read.
    #[error("cannot read the node's state from {place}")]
    Read {
        /// Where the store keeps it.
        place: String,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The state could not be written.
    #[error("cannot write the node's state to {place}")]
    Write {
        /// Where the store keeps it.
        place: String,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state could not be loaded or saved.
    #[error("the state store failed")]
    Store(#[from] StoreError),
    /// The control URL cannot be used.
    #[error("control server URL {url}: {what}")]
    ControlUrl {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The thread that carries the packets of a device could not be started.
    #[error("the thread for the packets of the TUN device cannot be started")]
    Thread(#[source] std::io::Error),
}

/// A listener or socket could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// Another listener or socket of this node has the port.
    #[error("port {0} is already in use on this node")]
    PortInUse(u16),
    /// No ephemeral port is left.
    #[error("no free port is left on this node")]
    NoFreePort,
    /// The node has been shut down.
    #[error("the node has been shut down")]
    Closed,
}

/// A connection could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The map has no node of that name.
    #[error("no node named {0} is visible on the tailnet")]
    UnknownName(String),
    /// No node owns the address, or the policy hides it.
    #[error("no node with the address {0} is visible on the tailnet")]
    UnknownAddress(IpAddr),
    /// The peer answered that nothing listens there.
    #[error("{0} refused the connection")]
    Refused(SocketAddr),
    /// The peer's packet filter does not let us in.
    #[error("the tailnet policy does not allow connections to {0}")]
    Denied(SocketAddr),
    /// No answer came in time.
    #[error("{0} did not answer in time")]
    TimedOut(SocketAddr),
    /// The node has no address yet, or no free port.
    #[error("the node cannot open connections now: {0}")]
    Unavailable(&'static str),
    /// The node has been shut down.
    #[error("the node has been shut down")]
    Closed,
}

/// A logout could not be told to the control server.
#[derive(Debug, thiserror::Error)]
pub enum LogoutError {
    /// The control server did not take the logout.
    #[error("the control server was not told about the logout; delete the device there")]
    Control(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The state could not be saved without the old key.
    #[error("the state store failed")]
    Store(#[from] StoreError),
}
