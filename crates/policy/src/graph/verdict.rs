//! Single questions to the policy as a whole.

use std::net::IpAddr;

use super::filter::INTERNET;
use super::peers::same_user;
use super::plan::{PartyId, RulePlan, SetId};
use super::{Entry, Graph, Slot};
use crate::model::{Autogroup, Selector, SshVerdict, WITH_PORTS};
use tailwharf_wire::tailcfg::{NodeId, PortRange};

/// The protocols of a rule that names none: ICMP, TCP, UDP, ICMPv6.
const DEFAULT_PROTOCOLS: &[u8] = &[1, 6, 17, 58];

/// Somebody who wants to log in to a node.
pub(crate) struct SshQuestion<'a> {
    pub(crate) source: NodeId,
    pub(crate) target: NodeId,
    /// The user of the machine.
    pub(crate) user: &'a str,
}

/// A packet with what is known of its ends.
struct Packet<'a> {
    source: IpAddr,
    sender: Option<(Slot, &'a Entry)>,
    destination: IpAddr,
    receiver: Option<(Slot, &'a Entry)>,
}

impl Graph {
    /// Whether the policy as a whole lets a packet pass, wherever its destination is. `protocol` is an IP protocol number;
    /// the port counts only for protocols that have ports.
    pub fn allows(&self, source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> bool {
        let packet = Packet {
            source,
            sender: self.holder_of(source),
            destination,
            receiver: self.holder_of(destination),
        };
        let port_fits = |ports: &[PortRange]| {
            !WITH_PORTS.contains(&protocol) || ports.iter().any(|range| range.contains(port))
        };
        let opens = |rule: &RulePlan| {
            rule.flows.iter().any(|flow| {
                let protocols = match flow.protocols.as_slice() {
                    [] => DEFAULT_PROTOCOLS,
                    protocols => protocols,
                };
                protocols.contains(&protocol)
                    && flow
                        .targets
                        .iter()
                        .any(|(target, ports)| port_fits(ports) && self.leads_there(&packet, *target))
            })
        };
        self.plan
            .rules
            .iter()
            .any(|rule| self.admits(rule.source, &packet) && opens(rule))
    }

    /// Whether the sender of a packet belongs to a party.
    fn admits(&self, party: PartyId, packet: &Packet<'_>) -> bool {
        let plan = self.plan.party(party);
        if plan.fixed.contains(packet.source)
            || (plan.has_everywhere && self.everywhere.contains(packet.source))
        {
            return true;
        }
        packet.sender.is_some_and(|(slot, entry)| {
            self.members(party).contains(slot) && self.contribution(entry, party).contains(&packet.source)
        })
    }

    /// Whether a destination means where a packet goes. No set stands for the devices of the same user.
    fn leads_there(&self, packet: &Packet<'_>, target: Option<SetId>) -> bool {
        let Some(set) = target else {
            return match (packet.sender, packet.receiver) {
                (Some((_, sender)), Some((_, receiver))) => same_user(sender, receiver),
                _ => false,
            };
        };
        let service = |is_meant: &dyn Fn(&crate::Service) -> bool| {
            let mut services = self.services.values();
            services.any(|service| service.addresses.contains(&packet.destination) && is_meant(service))
        };
        match &self.plan.set(set).selector {
            Selector::Any => true,
            Selector::Addresses(set) => set.contains(packet.destination),
            Selector::Auto(Autogroup::Internet) => INTERNET.contains(packet.destination),
            Selector::Service(name) => service(&|service| service.name == *name),
            selector => {
                let owned = packet.receiver.is_some_and(|(_, receiver)| {
                    receiver.sets.binary_search(&set).is_ok() && receiver.is_meant_itself(selector)
                });
                owned
                    || matches!(selector, Selector::Tag(tag) if service(&|service| service.tags.contains(tag)))
            }
        }
    }

    /// What happens to somebody who wants to log in to a node by SSH. The stricter of two rules counts.
    pub(crate) fn ssh_verdict(&self, question: &SshQuestion<'_>) -> SshVerdict {
        let slots = (self.by_id.get(&question.source), self.by_id.get(&question.target));
        let (Some(&from), Some(&to)) = slots else {
            return SshVerdict::Deny;
        };
        let (Some(source), Some(target)) = (self.entry(from), self.entry(to)) else {
            return SshVerdict::Deny;
        };
        let rule = self.plan.ssh.iter().find(|rule| {
            let reached = self.members(rule.target).contains(to) || (rule.own && same_user(source, target));
            reached
                && self.members(rule.source).contains(from)
                && rule.entry.users.allows(source.login.as_deref(), question.user)
        });
        match rule {
            None => SshVerdict::Deny,
            Some(rule) if rule.entry.check.is_some() => SshVerdict::Check,
            Some(_) => SshVerdict::Accept,
        }
    }
}

impl Entry {
    /// Whether a selector to whose set the node belongs means the node itself, and not only a service that it hosts.
    fn is_meant_itself(&self, selector: &Selector) -> bool {
        match selector {
            Selector::Tag(tag) => matches!(&self.node.owner, crate::Owner::Tags(tags) if tags.contains(tag)),
            _ => true,
        }
    }
}
