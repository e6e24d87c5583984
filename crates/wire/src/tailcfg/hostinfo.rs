//! What a node says about itself.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{RegionId, StableId, message};

message! {
    /// What a node says about itself.
    pub struct Hostinfo {
        /// Version of the client software.
        #[serde(rename = "IPNVersion")]
        pub ipn_version: String,
        /// Identity of the log stream of the user interface.
        #[serde(rename = "FrontendLogID")]
        pub frontend_log_id: String,
        /// Identity of the log stream of the node: 64 hex digits.
        #[serde(rename = "BackendLogID")]
        pub backend_log_id: String,
        /// Operating system, in Go's words: `linux`, `macOS`, `windows`.
        #[serde(rename = "OS")]
        pub os: String,
        /// Version of the operating system or kernel.
        #[serde(rename = "OSVersion")]
        pub os_version: String,
        /// Whether the node runs in a container.
        pub container: Option<bool>,
        /// Kind of hosting environment.
        pub env: String,
        /// Linux distribution.
        pub distro: String,
        /// Version of the distribution.
        pub distro_version: String,
        /// Code name of the distribution's version.
        pub distro_code_name: String,
        /// Which product embeds the node, such as `k8s-operator`.
        pub app: String,
        /// Whether there is a desktop.
        pub desktop: Option<bool>,
        /// How the client was packaged.
        pub package: String,
        /// Model of a phone.
        pub device_model: String,
        /// Where to send push messages.
        pub push_device_token: String,
        /// Host name, which is what the node wants to be called.
        pub hostname: String,
        /// Whether the node refuses connections from outside.
        pub shields_up: bool,
        /// Whether the node is only visible because it belongs to somebody with whom a node was shared.
        pub sharee_node: bool,
        /// Whether the node sends no logs.
        pub no_logs_no_support: bool,
        /// Whether the node may be configured by the control server.
        pub remote_config: bool,
        /// Whether the node would like to be wired for Funnel.
        pub wire_ingress: bool,
        /// Whether the node has a Funnel endpoint that is on.
        pub ingress_enabled: bool,
        /// Whether the control server may update the node's software.
        pub allows_update: bool,
        /// Machine type, as of `uname -m`.
        pub machine: String,
        /// Processor architecture, in Go's words.
        pub go_arch: String,
        /// Variant of the architecture.
        pub go_arch_var: String,
        /// Version of the Go compiler.
        pub go_version: String,
        /// Subnets that the node offers to route.
        #[serde(rename = "RoutableIPs")]
        pub routable_ips: Vec<IpNet>,
        /// Tags that the node asks for.
        pub request_tags: Vec<String>,
        /// Where to send packets that wake the node.
        #[serde(rename = "WoLMACs")]
        pub wol_macs: Vec<String>,
        /// What the node listens on.
        pub services: Vec<Service>,
        /// State of the network around the node.
        pub net_info: Option<NetInfo>,
        /// SSH host keys.
        #[serde(rename = "sshHostKeys")]
        pub ssh_host_keys: Vec<String>,
        /// Cloud in which the node runs.
        pub cloud: String,
        /// Whether the node has a userspace network stack.
        pub userspace: Option<bool>,
        /// Whether subnet routing happens in userspace.
        pub userspace_router: Option<bool>,
        /// Whether the node is an app connector.
        pub app_connector: Option<bool>,
        /// Hash over the list of services that the node hosts. A change tells control to ask for the list.
        pub services_hash: String,
        /// Whether the node relays for its peers.
        pub peer_relay: bool,
        /// The exit node in use.
        #[serde(rename = "ExitNodeID")]
        pub exit_node_id: StableId,
        /// Where the node is.
        pub location: Option<Location>,
        /// Whether the state on disk is encrypted.
        pub state_encrypted: Option<bool>,
    }
}

message! {
    /// A port on which a node listens.
    pub struct Service {
        /// `tcp`, `udp`, `peerapi4`, `peerapi6` or `peerapi-dns-proxy`.
        pub proto: String,
        /// Port.
        pub port: u16,
        /// Name of the program.
        pub description: String,
    }
}

/// A service that a node hosts, in the answer to a c2n request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VipService {
    /// Name, `svc:…`.
    pub name: String,
    /// Ports: `*`, `tcp:443` or `tcp:80-90`.
    pub ports: Vec<String>,
    /// Whether the node takes connections now.
    pub active: bool,
}

/// Answer to the c2n request `GET /vip-services`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct C2nVipServicesResponse {
    /// The services that the node hosts.
    #[serde(rename = "VIPServices", skip_serializing_if = "Vec::is_empty")]
    pub vip_services: Vec<VipService>,
    /// The value of [`Hostinfo::services_hash`] that belongs to them.
    pub services_hash: String,
}

message! {
    /// A place on earth.
    pub struct Location {
        /// Name of the country.
        pub country: String,
        /// ISO 3166-1 code of the country.
        pub country_code: String,
        /// Name of the city.
        pub city: String,
        /// Code of the city.
        pub city_code: String,
        /// Degrees north.
        pub latitude: f64,
        /// Degrees east.
        pub longitude: f64,
        /// Which of several exit nodes of one place is preferred; higher wins.
        pub priority: i64,
    }
}

message! {
    /// State of the network around a node.
    pub struct NetInfo {
        /// Whether the NAT maps one socket to several addresses.
        #[serde(rename = "MappingVariesByDestIP")]
        pub mapping_varies_by_dest_ip: Option<bool>,
        /// Whether IPv6 reaches the internet.
        #[serde(rename = "WorkingIPv6")]
        pub working_ipv6: Option<bool>,
        /// Whether the system has IPv6.
        #[serde(rename = "OSHasIPv6")]
        pub os_has_ipv6: Option<bool>,
        /// Whether UDP reaches the internet.
        #[serde(rename = "WorkingUDP")]
        pub working_udp: Option<bool>,
        /// Whether ICMPv4 works.
        #[serde(rename = "WorkingICMPv4")]
        pub working_icmp_v4: Option<bool>,
        /// Whether a port mapping is held.
        pub have_port_map: bool,
        /// Whether the router speaks UPnP.
        #[serde(rename = "UPnP")]
        pub upnp: Option<bool>,
        /// Whether the router speaks NAT-PMP.
        #[serde(rename = "PMP")]
        pub pmp: Option<bool>,
        /// Whether the router speaks PCP.
        #[serde(rename = "PCP")]
        pub pcp: Option<bool>,
        /// Home region.
        #[serde(rename = "PreferredDERP")]
        pub preferred_derp: RegionId,
        /// `wired`, `wifi`, `mobile` or empty.
        pub link_type: String,
        /// Seconds to regions, by `<region>-v4` and `<region>-v6`.
        #[serde(rename = "DERPLatency")]
        pub derp_latency: BTreeMap<String, f64>,
        /// Which firewall is set up and how that was chosen.
        pub firewall_mode: String,
    }
}
