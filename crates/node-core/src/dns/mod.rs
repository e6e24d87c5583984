//! MagicDNS: what of a query the netmap answers, and whom to ask for the rest. Pure; whoever asks the others is in the shell.

mod message;
mod reading;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tailwharf_wire::tailcfg::{DnsConfig, Resolver};

pub use self::message::{
    Answer, MAX_UDP, Name, Query, QueryError, Record, RecordData, RecordType, ResponseCode, is_truncated,
};
pub use self::reading::Addresses;
use crate::netmap::{Netmap, Peer, is_tailnet_address};
use crate::transit::VIA;

/// The address at which a node answers its own machine, over IPv4.
pub const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 100);
/// The address at which a node answers its own machine, over IPv6.
pub const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53);

/// For how many seconds names of the tailnet may be remembered.
const TTL: u32 = 600;
/// For how many seconds an absence may be remembered. Short: a device that is looked for may be on its way.
const NEGATIVE_TTL: u32 = 10;

/// The node capability by which names below a node's own name lead to it, too.
const SUBDOMAINS: &str = "dns-subdomain-resolve";

/// What to do with a query.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision<'a> {
    /// This is the answer.
    Answer(Answer),
    /// Ask one of these; the first is preferred.
    Forward(&'a [Resolver]),
    /// The tailnet names nobody to ask: the machine's own resolvers know, if any.
    System,
}

/// Decides what to do with a query. `None` as `netmap`'s DNS configuration means that the tailnet answers nothing.
#[must_use]
pub fn decide<'a>(netmap: &'a Netmap, query: &Query) -> Decision<'a> {
    let Some(config) = netmap.dns() else {
        return Decision::System;
    };
    if let Some(address) = query.name.reverse_address() {
        return decide_reverse(netmap, config, query, address);
    }
    if let Some(addresses) = known(netmap, config, &query.name) {
        return Decision::Answer(answer_addresses(query, &addresses));
    }
    forward(netmap, config, query)
}

/// Decides what to do with a query of a peer that uses this node as its exit: what the tailnet's own resolvers or those of this machine answer, and nothing
/// about the tailnet, whose names the peer may not all see.
#[must_use]
pub fn decide_for_peer<'a>(netmap: &'a Netmap, query: &Query) -> Decision<'a> {
    let Some(config) = netmap.dns() else {
        return Decision::System;
    };
    let is_filtered = |entry: &String| {
        // With a dot before it an entry stands for all names below, too.
        let (name, below) = match entry.strip_prefix('.') {
            Some(suffix) => (Name::parse(suffix), true),
            None => (Name::parse(entry), false),
        };
        name.is_some_and(|name| query.name == name || (below && query.name.is_within(&name)))
    };
    let is_of_tailnet = known_always(netmap, config, &query.name).is_some()
        || own_zone(netmap, config, &query.name).is_some();
    if is_of_tailnet || config.exit_node_filtered_set.iter().any(is_filtered) {
        return Decision::Answer(Answer {
            code: ResponseCode::Refused,
            ..Answer::default()
        });
    }
    if config.resolvers.is_empty() {
        Decision::System
    } else {
        Decision::Forward(&config.resolvers)
    }
}

/// The addresses behind a name for programs on this node: full, or short with the search list. IPv4 first; empty if the netmap does not have it.
#[must_use]
pub fn lookup(netmap: &Netmap, name: &str) -> Vec<IpAddr> {
    let Some(name) = Name::parse(name).filter(|name| !name.as_str().is_empty()) else {
        return Vec::new();
    };
    let none = DnsConfig::default();
    let config = netmap.dns().map_or(&none, |config| config);
    let searched = config
        .domains
        .iter()
        .filter_map(|domain| Name::parse(&format!("{name}{domain}")));
    let mut candidates = std::iter::once(name.clone()).chain(searched);
    let found = candidates.find_map(|candidate| known_always(netmap, config, &candidate));
    found
        .or_else(|| {
            // Without a search list a label alone is still the name of a node.
            let by_label =
                |peer: &&std::sync::Arc<Peer>| peer.first_label().eq_ignore_ascii_case(name.as_str());
            let peer = netmap
                .self_peer()
                .filter(by_label)
                .or_else(|| netmap.peer_by_name(name.as_str()).filter(by_label))?;
            Some(peer.addresses.to_vec())
        })
        .unwrap_or_default()
}

/// As [`known_always`], for queries from outside: names of nodes are told while MagicDNS is on.
fn known(netmap: &Netmap, config: &DnsConfig, name: &Name) -> Option<Vec<IpAddr>> {
    if config.proxied {
        known_always(netmap, config, name)
    } else {
        extra(config, name)
    }
}

/// The addresses of a full name that the netmap has. `Some` and empty: the name exists without any.
fn known_always(netmap: &Netmap, config: &DnsConfig, name: &Name) -> Option<Vec<IpAddr>> {
    if let Some(addresses) = extra(config, name) {
        return Some(addresses);
    }
    let named = |peer: &&std::sync::Arc<Peer>, name: &Name| peer.name.eq_ignore_ascii_case(name.as_str());
    let node = |name: &Name| {
        let own = netmap.self_peer().filter(|own| named(own, name));
        own.or_else(|| netmap.peers().find(|peer| named(peer, name)))
    };
    let found = node(name).or_else(|| {
        let parent = node(&name.parent()?)?;
        parent.cap_map.contains_key(SUBDOMAINS).then_some(parent)
    });
    found
        .map(|node| node.addresses.to_vec())
        .or_else(|| Some(vec![site_address(netmap, config, name)?]))
}

/// The address that stands for one of IPv4 at a site, if a name of the tailnet, or one without a zone, asks for that: `10-1-2-3-via-7`.
fn site_address(netmap: &Netmap, config: &DnsConfig, name: &Name) -> Option<IpAddr> {
    let (label, zone) = name.as_str().split_once('.').unwrap_or((name.as_str(), ""));
    let (address, site) = label.rsplit_once("-via-")?;
    let address: Ipv4Addr = address.replace('-', ".").parse().ok()?;
    let site: u16 = match site.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok()?,
        None => site.parse().ok()?,
    };
    let is_here = zone.is_empty() || own_zone(netmap, config, name).is_some_and(|own| own.as_str() == zone);
    let bits = VIA.network().to_bits() | u128::from(site) << 32 | u128::from(address.to_bits());
    is_here.then(|| Ipv6Addr::from_bits(bits).into())
}

/// The addresses of a record that the tailnet adds.
fn extra(config: &DnsConfig, name: &Name) -> Option<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = config
        .extra_records
        .iter()
        .filter(|record| matches!(record.kind.as_str(), "" | "A" | "AAAA"))
        .filter(|record| {
            record
                .name
                .trim_end_matches('.')
                .eq_ignore_ascii_case(name.as_str())
        })
        .filter_map(|record| record.value.parse().ok())
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    (!addresses.is_empty()).then_some(addresses)
}

fn answer_addresses(query: &Query, addresses: &[IpAddr]) -> Answer {
    let asked = |address: &&IpAddr| match query.kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        kind => kind == RecordType::ANY,
    };
    let records: Vec<Record> = addresses
        .iter()
        .filter(asked)
        .map(|address| Record {
            owner: None,
            ttl: TTL,
            data: RecordData::Address(*address),
        })
        .collect();
    Answer {
        authoritative: true,
        authority: if records.is_empty() {
            vec![zone(&query.name)]
        } else {
            Vec::new()
        },
        records,
        ..Answer::default()
    }
}

fn decide_reverse<'a>(
    netmap: &'a Netmap,
    config: &'a DnsConfig,
    query: &Query,
    address: IpAddr,
) -> Decision<'a> {
    if !config.proxied {
        return forward(netmap, config, query);
    }
    let own = netmap.self_peer().filter(|own| own.addresses.contains(&address));
    let node = own.or_else(|| netmap.peer_by_address(address));
    let name = node
        .map(|node| &*node.name)
        .or_else(|| {
            let records = config.extra_records.iter();
            records
                .filter(|record| record.value.parse() == Ok(address))
                .map(|record| record.name.as_str())
                .next()
        })
        .or_else(|| (address == SERVICE_V4).then_some("magicdns.localhost-tailscale-daemon"))
        .and_then(Name::parse);
    let Some(name) = name else {
        return forward(netmap, config, query);
    };
    let is_asked = matches!(query.kind, RecordType::PTR | RecordType::ANY);
    let pointer = Record {
        owner: None,
        ttl: TTL,
        data: RecordData::Pointer(name),
    };
    Decision::Answer(Answer {
        authoritative: true,
        records: if is_asked { vec![pointer] } else { Vec::new() },
        ..Answer::default()
    })
}

/// Whom to ask for a name that the netmap does not have: those of the longest suffix that has resolvers of its own, else those for all names.
fn forward<'a>(netmap: &Netmap, config: &'a DnsConfig, query: &Query) -> Decision<'a> {
    let route = config
        .routes
        .iter()
        .filter_map(|(suffix, resolvers)| Some((Name::parse(suffix)?, resolvers)))
        .filter(|(suffix, _)| query.name.is_within(suffix))
        .max_by_key(|(suffix, _)| suffix.as_str().len());
    match route {
        Some((suffix, resolvers)) if resolvers.is_empty() => return Decision::Answer(absent(&suffix)),
        Some((_, resolvers)) => return Decision::Forward(resolvers),
        None => {}
    }
    if let Some(zone) = own_zone(netmap, config, &query.name) {
        return Decision::Answer(absent(&zone));
    }
    if config.resolvers.is_empty() {
        Decision::System
    } else {
        Decision::Forward(&config.resolvers)
    }
}

/// The zone of the tailnet in which a name lies, about which nobody else knows.
fn own_zone(netmap: &Netmap, config: &DnsConfig, name: &Name) -> Option<Name> {
    if !config.proxied {
        return None;
    }
    if let Some(address) = name.reverse_address() {
        return is_tailnet_address(address).then(|| name.clone());
    }
    let suffix = netmap
        .self_peer()
        .and_then(|own| Name::parse(&own.name)?.parent())?;
    (!suffix.as_str().is_empty() && name.is_within(&suffix)).then_some(suffix)
}

fn absent(zone_name: &Name) -> Answer {
    Answer {
        code: ResponseCode::NxDomain,
        authoritative: true,
        records: Vec::new(),
        authority: vec![zone(zone_name)],
    }
}

fn zone(owner: &Name) -> Record {
    Record {
        owner: Some(owner.clone()),
        ttl: NEGATIVE_TTL,
        data: RecordData::Zone {
            server: owner.clone(),
            negative_ttl: NEGATIVE_TTL,
        },
    }
}
