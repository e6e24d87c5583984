//! What the system should be set to, from what the node knows. No system is touched here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tailwharf_node_core::dns::SERVICE_V4;
use tailwharf_node_core::netmap::{Netmap, Peer};
use tailwharf_wire::tailcfg::DnsConfig;

use super::TunSettings;

/// Where names are resolved, as seen by programs of this machine (Tailscale calls it the service address).
pub(super) const RESOLVER: Ipv4Addr = SERVICE_V4;
/// The routes of an exit node.
pub(super) const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// The state that the system should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Addresses of the device.
    pub(super) addresses: BTreeSet<IpNet>,
    /// Networks behind the device.
    pub(super) routes: BTreeSet<IpNet>,
    /// Networks that stay where they are, whatever the exit node routes.
    pub(super) kept: BTreeSet<IpNet>,
    /// How names are resolved. `None`: as before.
    pub(super) dns: Option<Dns>,
    /// Whether this machine passes on packets of peers.
    pub(super) forwards: bool,
}

/// What programs of this machine are told about names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dns {
    /// Endings that may be left out.
    pub(super) search: Vec<String>,
    /// Endings of names that only the tailnet resolves.
    pub(super) own: Vec<String>,
    /// Whether the tailnet says how all other names are resolved.
    pub(super) all: bool,
}

/// The plan for a netmap. `lan`: the networks of this machine's other interfaces.
pub(super) fn plan(netmap: &Netmap, settings: &TunSettings, lan: &[IpNet]) -> Plan {
    let Some(own) = netmap.self_node() else {
        return Plan::default();
    };
    let mut plan = Plan {
        addresses: netmap.addresses().map(IpNet::from).collect(),
        forwards: !settings.advertised().is_empty(),
        ..Plan::default()
    };
    for peer in netmap.peers().filter(|peer| !peer.expired) {
        plan.routes
            .extend(peer.addresses.iter().copied().map(IpNet::from));
        if settings.accept_routes {
            plan.routes.extend(subnets(peer));
        }
    }
    // What this node itself serves is not behind the device.
    for served in own.routes().iter().chain(&settings.advertise_routes) {
        if served.prefix_len() > 0 {
            plan.routes.remove(&served.trunc());
        }
    }
    if settings.exit_node.is_some() {
        // Also while there is no such node: what should go through it must not take another way.
        plan.routes.extend(EVERYTHING);
        if settings.exit_node_allow_lan {
            plan.kept.extend(lan.iter().map(IpNet::trunc));
        }
    }
    if settings.accept_dns
        && let Some(dns) = netmap.dns().and_then(|dns| names(dns))
    {
        plan.addresses.insert(IpAddr::from(RESOLVER).into());
        plan.dns = Some(dns);
    }
    plan
}

/// The subnets that a peer routes.
fn subnets(peer: &Peer) -> impl Iterator<Item = IpNet> + '_ {
    peer.allowed_ips
        .iter()
        .filter(|net| net.prefix_len() > 0 && !peer.addresses.contains(&net.addr()))
        .copied()
}

fn names(dns: &DnsConfig) -> Option<Dns> {
    if !dns.proxied && dns.resolvers.is_empty() && dns.routes.is_empty() {
        return None;
    }
    let plain = |name: &str| name.trim_end_matches('.').to_owned();
    let own = dns.domains.iter().map(|name| plain(name));
    let routed = dns.routes.keys().map(|name| plain(name));
    Some(Dns {
        search: own.clone().collect(),
        own: own.chain(routed).collect::<BTreeSet<_>>().into_iter().collect(),
        all: !dns.resolvers.is_empty(),
    })
}

#[cfg(test)]
mod tests {
    use tailwharf_node_core::netmap::Interner;
    use tailwharf_wire::tailcfg::{MapResponse, Node};

    use super::*;
    use crate::routing::exit_node;

    fn node(id: i64, name: &str, address: &str, routes: &[&str]) -> Node {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let allowed = std::iter::once(net(address)).chain(routes.iter().map(|text| net(text)));
        serde_json::from_value(serde_json::json!({
            "ID": id, "StableID": format!("n{id}"), "Name": format!("{name}.tail1234.ts.net."),
            "Key": format!("nodekey:{}", format!("{id:02x}").repeat(32)),
            "Addresses": [address],
            "AllowedIPs": allowed.map(|net| net.to_string()).collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    fn netmap() -> Netmap {
        let response = MapResponse {
            node: Some(node(1, "own", "100.64.0.1/32", &["10.1.0.0/16"])),
            peers: vec![
                node(2, "router", "100.64.0.2/32", &["10.1.0.0/16", "10.2.0.0/16"]),
                node(3, "exit", "100.64.0.3/32", &["0.0.0.0/0", "::/0"]),
            ],
            dns_config: Some(DnsConfig {
                proxied: true,
                domains: vec!["tail1234.ts.net".into()],
                ..DnsConfig::default()
            }),
            ..MapResponse::default()
        };
        Netmap::default().apply(&response, &Interner::default()).0
    }

    fn text(nets: &BTreeSet<IpNet>) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn peers_are_behind_the_device_and_their_subnets_if_wanted() {
        let settings = TunSettings::default();
        let without = plan(&netmap(), &settings, &[]);
        assert_eq!(text(&without.addresses), ["100.64.0.1/32", "100.100.100.100/32"]);
        assert_eq!(text(&without.routes), ["100.64.0.2/32", "100.64.0.3/32"]);
        let settings = TunSettings {
            accept_routes: true,
            ..settings
        };
        let with = plan(&netmap(), &settings, &[]);
        assert_eq!(
            text(&with.routes),
            ["10.2.0.0/16", "100.64.0.2/32", "100.64.0.3/32"],
            "not what it serves itself"
        );
    }

    #[test]
    fn everything_goes_through_an_exit_node_even_while_it_is_away() {
        let lan = ["192.168.7.5/24".parse().unwrap()];
        let mut settings = TunSettings {
            exit_node: Some("nobody".into()),
            ..TunSettings::default()
        };
        let strict = plan(&netmap(), &settings, &lan);
        assert!(EVERYTHING.iter().all(|net| strict.routes.contains(net)));
        assert!(strict.kept.is_empty());
        settings.exit_node_allow_lan = true;
        assert_eq!(text(&plan(&netmap(), &settings, &lan).kept), ["192.168.7.0/24"]);
    }

    #[test]
    fn an_exit_node_has_to_offer_it() {
        let found = |name| exit_node(&netmap(), name).map(|id| id.to_string());
        assert_eq!(found("exit").as_deref(), Some("n3"));
        assert_eq!(found("100.64.0.3").as_deref(), Some("n3"));
        assert_eq!(found("router"), None);
        assert_eq!(found("nobody"), None);
    }

    #[test]
    fn names_stay_as_they_are_if_asked() {
        let mut settings = TunSettings::default();
        let dns = plan(&netmap(), &settings, &[]).dns.unwrap();
        assert_eq!(dns.search, ["tail1234.ts.net"]);
        assert!(!dns.all);
        settings.accept_dns = false;
        let without = plan(&netmap(), &settings, &[]);
        assert_eq!(without.dns, None);
        assert_eq!(text(&without.addresses), ["100.64.0.1/32"]);
    }

    #[test]
    fn without_a_map_nothing_is_set() {
        assert_eq!(
            plan(&Netmap::default(), &TunSettings::default(), &[]),
            Plan::default()
        );
    }
}
