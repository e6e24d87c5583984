//! Packet filters.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{CapMap, message};

message! {
    /// What some sources may do at this node: reach ports (`dst_ports`) or use capabilities (`cap_grant`), never both.
    pub struct FilterRule {
        /// Sources: an IP address, a prefix, a range `a-b`, `*`, or `cap:<node capability>`.
        #[serde(rename = "SrcIPs")]
        pub src_ips: Vec<String>,
        /// Destinations.
        pub dst_ports: Vec<NetPortRange>,
        /// IP protocols. Empty: TCP, UDP, ICMP and ICMPv6.
        #[serde(rename = "IPProto")]
        pub ip_proto: Vec<i32>,
        /// Capabilities that the sources have at this node.
        pub cap_grant: Vec<CapGrant>,
    }
}

/// Ports of some addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetPortRange {
    /// Addresses, in the forms of [`FilterRule::src_ips`].
    #[serde(rename = "IP")]
    pub ip: String,
    /// Ports.
    pub ports: PortRange,
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl PortRange {
    /// All ports.
    pub const ANY: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// The range of one port.
    #[must_use]
    pub const fn single(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether `port` is in the range.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

message! {
    /// Capabilities that sources have at some destinations.
    pub struct CapGrant {
        /// Addresses of the node at which the capabilities are valid.
        pub dsts: Vec<IpNet>,
        /// Capabilities without values, the old form of `cap_map`.
        pub caps: Vec<String>,
        /// Capabilities.
        pub cap_map: CapMap,
    }
}
