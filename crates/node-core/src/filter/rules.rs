//! Filter rules, compiled.

use ipnet::IpNet;
use tailwharf_wire::tailcfg::{CapMap, FilterRule, PortRange};

use std::net::IpAddr;

use super::addr_set::{AddrSet, Builder};
use crate::netmap::Peer;
use crate::packet::proto;

/// Why a filter rule was left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A source that is no address, prefix, range, `*` or `cap:`.
    #[error("filter rule {rule}: cannot read the source {text:?}")]
    Source {
        /// Position of the rule in its part.
        rule: usize,
        /// The text.
        text: String,
    },
    /// A destination that is no address, prefix, range or `*`.
    #[error("filter rule {rule}: cannot read the destination {text:?}")]
    Destination {
        /// Position of the rule in its part.
        rule: usize,
        /// The text.
        text: String,
    },
}

/// One named part of the packet filter.
#[derive(Debug, Default)]
pub struct FilterPart {
    rules: Box<[Rule]>,
    grants: Box<[Grant]>,
}

/// Prefix of a source that names a node capability in place of addresses.
const CAP_SOURCE: &str = "cap:";

/// Protocols of a rule that names none: TCP, UDP and both ICMPs.
const DEFAULT_PROTOCOLS: [u8; 4] = [proto::TCP, proto::UDP, proto::ICMP, proto::ICMP6];

#[derive(Debug)]
struct Rule {
    sources: Sources,
    protocols: Box<[u8]>,
    destinations: Box<[Destination]>,
}

#[derive(Debug)]
struct Destination {
    addresses: AddrSet,
    ports: PortRange,
}

#[derive(Debug)]
struct Grant {
    sources: Sources,
    destinations: Box<[IpNet]>,
    caps: CapMap,
}

#[derive(Debug)]
struct Sources {
    addresses: AddrSet,
    node_caps: Box<[String]>,
}

impl Sources {
    fn compile(rule: usize, texts: &[String]) -> Result<Self, RuleError> {
        let mut addresses = Builder::default();
        let mut node_caps = Vec::new();
        for text in texts {
            if let Some(cap) = text.strip_prefix(CAP_SOURCE) {
                node_caps.push(cap.to_owned());
            } else if !addresses.add_text(text) {
                return Err(RuleError::Source {
                    rule,
                    text: text.clone(),
                });
            }
        }
        Ok(Self {
            addresses: addresses.build(),
            node_caps: node_caps.into(),
        })
    }

    fn contain(&self, source: IpAddr, peer: &Peer) -> bool {
        self.addresses.contains(source) || self.node_caps.iter().any(|cap| peer.cap_map.contains_key(cap))
    }
}

impl Rule {
    fn compile(number: usize, rule: &FilterRule) -> Result<Self, RuleError> {
        let mut destinations = Vec::with_capacity(rule.dst_ports.len());
        for destination in &rule.dst_ports {
            let mut addresses = Builder::default();
            if !addresses.add_text(&destination.ip) {
                return Err(RuleError::Destination {
                    rule: number,
                    text: destination.ip.clone(),
                });
            }
            destinations.push(Destination {
                addresses: addresses.build(),
                ports: destination.ports,
            });
        }
        let protocols: Box<[u8]> = if rule.ip_proto.is_empty() {
            DEFAULT_PROTOCOLS.into()
        } else {
            rule.ip_proto
                .iter()
                .filter_map(|number| u8::try_from(*number).ok())
                .collect()
        };
        let sources = Sources::compile(number, &rule.src_ips)?;
        Ok(Self {
            sources,
            protocols,
            destinations: destinations.into(),
        })
    }

    fn allows(&self, packet: &Packet<'_>, ports: Ports) -> bool {
        (ports == Ports::Any || self.protocols.contains(&packet.protocol))
            && self.destinations.iter().any(|to| {
                let port = match ports {
                    Ports::Exact(port) => to.ports.contains(port),
                    Ports::Any => true,
                    Ports::All => to.ports == PortRange::ANY,
                };
                port && to.addresses.contains(packet.destination)
            })
            && self.sources.contain(packet.source, packet.peer)
    }
}

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) peer: &'a Peer,
}

/// Which ports a rule has to cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    /// This one.
    Exact(u16),
    /// Any at all, of any protocol: enough to answer a ping.
    Any,
    /// All, for protocols that have no ports.
    All,
}

impl FilterPart {
    /// Compiles rules. Those that cannot be read are left out and reported in `errors`.
    #[must_use]
    pub fn compile(rules: &[FilterRule], errors: &mut Vec<RuleError>) -> Self {
        let (mut compiled, mut grants) = (Vec::new(), Vec::new());
        for (number, rule) in rules.iter().enumerate() {
            if let Err(error) = Self::compile_rule(number, rule, &mut compiled, &mut grants) {
                errors.push(error);
            }
        }
        Self {
            rules: compiled.into(),
            grants: grants.into(),
        }
    }

    fn compile_rule(
        number: usize,
        rule: &FilterRule,
        rules: &mut Vec<Rule>,
        grants: &mut Vec<Grant>,
    ) -> Result<(), RuleError> {
        if !rule.dst_ports.is_empty() {
            rules.push(Rule::compile(number, rule)?);
        }
        for grant in &rule.cap_grant {
            let mut caps = grant.cap_map.clone();
            for cap in &grant.caps {
                caps.entry(cap.clone()).or_default();
            }
            let sources = Sources::compile(number, &rule.src_ips)?;
            grants.push(Grant {
                sources,
                destinations: grant.dsts.as_slice().into(),
                caps,
            });
        }
        Ok(())
    }

    pub(super) fn allows(&self, packet: &Packet<'_>, ports: Ports) -> bool {
        self.rules.iter().any(|rule| rule.allows(packet, ports))
    }

    /// Adds the capabilities that `peer`, talking from `source`, has at `destination`.
    pub(super) fn grant(&self, source: IpAddr, peer: &Peer, destination: IpAddr, caps: &mut CapMap) {
        for grant in &self.grants {
            if grant.destinations.iter().any(|net| net.contains(&destination))
                && grant.sources.contain(source, peer)
            {
                for (cap, values) in &grant.caps {
                    caps.entry(cap.clone())
                        .or_default()
                        .extend(values.iter().cloned());
                }
            }
        }
    }
}
