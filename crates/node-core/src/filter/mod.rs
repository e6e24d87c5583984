//! The packet filter: what peers may send to this node. It stands before the stack, so nothing reaches a listener that it did not allow.
//!
//! The rules are those of official nodes: a TCP segment that does not ask for a new connection passes, UDP passes when it answers something we sent, ICMP
//! answers pass, later fragments pass (without their first they are of no use), TSMP passes. Everything else needs a rule.

mod addr_set;
mod conntrack;
mod local;
mod rules;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use tailwharf_wire::tailcfg::CapMap;

pub(crate) use self::conntrack::Conntrack;
pub(crate) use self::local::Local;
pub use self::rules::{FilterPart, RuleError};
use self::rules::{Packet, Ports};
use crate::netmap::Peer;
use crate::packet::{Fragment, Parsed, proto};

/// The one link-local address that may be reached through the tailnet: the metadata service of cloud providers.
const METADATA_SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// Where addresses of the internet begin in IPv6.
const FIRST_GLOBAL_V6: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0);
const DNS_PORT: u16 = 53;

/// What the filter says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Accept,
    /// It is dropped.
    Drop(DropReason),
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// To a multicast or link-local address.
    Scope,
    /// To an address that is not ours.
    NotLocal,
    /// No rule allows it.
    NoRule,
}

/// A compiled packet filter. The default drops everything that needs a rule.
#[derive(Debug, Default)]
pub struct Filter {
    local: Local,
    parts: Box<[Arc<FilterPart>]>,
}

impl Filter {
    /// A filter of these parts, for a node to which `local` is routed.
    #[must_use]
    pub fn new(local: &[IpNet], parts: Box<[Arc<FilterPart>]>) -> Self {
        Self {
            local: Local::new(local),
            parts,
        }
    }

    /// Judges a packet that came from `peer`.
    pub(crate) fn check(&self, packet: &Parsed, peer: &Peer, conntrack: &Conntrack) -> Verdict {
        if is_scoped(packet.dst) {
            return Verdict::Drop(DropReason::Scope);
        }
        if packet.fragment == Fragment::Later {
            return Verdict::Accept;
        }
        if !self.local.contains(packet.dst) {
            return Verdict::Drop(DropReason::NotLocal);
        }
        let allows = |ports| {
            let packet = Packet {
                source: packet.src,
                destination: packet.dst,
                protocol: packet.proto,
                peer,
            };
            self.allows(&packet, ports)
        };
        let accepted = match packet.proto {
            proto::TSMP => true,
            proto::TCP => !packet.is_bare_syn() || allows(Ports::Exact(packet.dst_port)),
            proto::UDP | proto::SCTP => conntrack.is_answer(packet) || allows(Ports::Exact(packet.dst_port)),
            proto::ICMP | proto::ICMP6 => packet.is_icmp_answer() || allows(Ports::Any),
            _ => allows(Ports::All),
        };
        if accepted {
            Verdict::Accept
        } else {
            Verdict::Drop(DropReason::NoRule)
        }
    }

    /// Whether `peer` may open TCP connections from this address to that one.
    #[must_use]
    pub fn admits(&self, peer: &Peer, source: IpAddr, destination: SocketAddr) -> bool {
        let packet = Packet {
            source,
            destination: destination.ip(),
            protocol: proto::TCP,
            peer,
        };
        self.local.contains(destination.ip()) && self.allows(&packet, Ports::Exact(destination.port()))
    }

    /// Whether `peer` may use this node as its exit to the internet, for which two addresses stand as official nodes have it.
    #[must_use]
    pub fn admits_to_internet(&self, peer: &Peer, source: IpAddr) -> bool {
        let destination = match source {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => FIRST_GLOBAL_V6.into(),
        };
        let packet = Packet {
            source,
            destination,
            protocol: proto::TCP,
            peer,
        };
        self.allows(&packet, Ports::Exact(DNS_PORT))
    }

    /// Capabilities that `peer`, talking from `source`, has at our address `destination`.
    #[must_use]
    pub fn capabilities(&self, source: IpAddr, peer: &Peer, destination: IpAddr) -> CapMap {
        let mut caps = CapMap::new();
        for part in &self.parts {
            part.grant(source, peer, destination, &mut caps);
        }
        caps
    }

    fn allows(&self, packet: &Packet<'_>, ports: Ports) -> bool {
        !packet.peer.answers_only && self.parts.iter().any(|part| part.allows(packet, ports))
    }
}

/// Addresses that mean something only on one link.
pub(crate) fn is_scoped(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || (v4.is_link_local() && address != METADATA_SERVICE),
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
