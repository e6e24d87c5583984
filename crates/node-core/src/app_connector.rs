//! An app connector: a node through which peers reach certain domains. Peers resolve their names by it, and it offers to route the addresses that it finds.
//!
//! Which domains the control server says by a capability of the node; the format is that of official nodes.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use tailwharf_wire::tailcfg::Node;

use crate::dns::{Addresses, Name};
use crate::netmap::is_tailnet_address;

/// The capability that names domains and fixed routes.
const CAPABILITY: &str = "tailscale.com/app-connectors";
/// Stands for all connectors in it.
const ALL: &str = "*";
/// Addresses that are remembered; the one that was found first goes first.
const MAX_LEARNED: usize = 4096;
/// Domains of all applications together.
const MAX_DOMAINS: usize = 4096;
/// Fixed routes of all applications together.
const MAX_ROUTES: usize = 4096;

/// The domains of a connector, and what it learned of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppConnector {
    domains: BTreeSet<Name>,
    /// Domains whose subdomains are meant, without themselves.
    parents: BTreeSet<Name>,
    routes: BTreeSet<IpNet>,
    learned: VecDeque<IpAddr>,
}

impl AppConnector {
    /// Takes what the control server says of this node. What was learned stays.
    pub fn configure(&mut self, own: &Node) {
        self.domains.clear();
        self.parents.clear();
        self.routes.clear();
        let apps = own.cap_map.get(CAPABILITY).into_iter().flatten();
        let is_meant = |app: &&Value| {
            let connectors = texts(app, "connectors");
            connectors
                .into_iter()
                .any(|tag| tag == ALL || own.tags.iter().any(|own| own == tag))
        };
        for app in apps.filter(is_meant) {
            for domain in texts(app, "domains") {
                let (set, text) = match domain.strip_prefix("*.") {
                    Some(parent) => (&mut self.parents, parent),
                    None => (&mut self.domains, domain),
                };
                if let Some(name) =
                    Name::parse(text).filter(|name| !name.as_str().is_empty() && set.len() < MAX_DOMAINS)
                {
                    set.insert(name);
                }
            }
            let routes = texts(app, "routes")
                .into_iter()
                .filter_map(|text| text.parse::<IpNet>().ok());
            self.routes.extend(routes.map(|net| net.trunc()).take(MAX_ROUTES));
        }
    }

    /// Learns from the answer of a resolver to a peer. Returns whether there are new routes.
    pub fn observe(&mut self, answer: &[u8]) -> bool {
        let Some(found) = Addresses::read(answer) else {
            return false;
        };
        if !found.names.iter().any(|name| self.is_meant(name)) {
            return false;
        }
        let mut is_new = false;
        for address in found.addresses {
            let is_known =
                self.learned.contains(&address) || self.routes.iter().any(|net| net.contains(&address));
            if is_known || !may_be_learned(address) {
                continue;
            }
            if self.learned.len() == MAX_LEARNED {
                self.learned.pop_front();
            }
            self.learned.push_back(address);
            is_new = true;
        }
        is_new
    }

    /// The networks to route: the fixed ones, and each address that was found.
    #[must_use]
    pub fn routes(&self) -> Vec<IpNet> {
        let learned = self.learned.iter().copied().map(IpNet::from);
        self.routes.iter().copied().chain(learned).collect()
    }

    fn is_meant(&self, name: &Name) -> bool {
        self.domains.contains(name)
            || self
                .parents
                .iter()
                .any(|parent| name != parent && name.is_within(parent))
    }
}

fn texts<'a>(app: &'a Value, key: &str) -> Vec<&'a str> {
    let list = app.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// An answer from outside may not lead peers to this machine, its links, or the tailnet.
fn may_be_learned(address: IpAddr) -> bool {
    let is_local = match address {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4().is_some(),
    };
    !(is_local || address.is_loopback() || address.is_multicast() || is_tailnet_address(address))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn own(apps: &Value) -> Node {
        Node {
            tags: vec!["tag:connector".into()],
            cap_map: [(
                CAPABILITY.to_owned(),
                apps.as_array().cloned().unwrap_or_default(),
            )]
            .into(),
            ..Node::default()
        }
    }

    fn answer(name: &str, addresses: &[[u8; 4]]) -> Vec<u8> {
        let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.extend([0, 0, 1, 0, 1]);
        for address in addresses {
            message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            message.extend(address);
        }
        message
    }

    fn routes(connector: &AppConnector) -> Vec<String> {
        connector.routes().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_of_its_domains_become_routes_once() {
        let mut connector = AppConnector::default();
        connector.configure(&own(&json!([
            {"name": "a", "connectors": ["tag:connector"], "domains": ["Example.com", "*.example.org"], "routes": ["192.0.2.0/24"]},
            {"name": "b", "connectors": ["tag:other"], "domains": ["example.net"]},
            {"name": "c", "connectors": ["*"], "domains": ["example.edu", 7, ""]},
            "junk",
        ])));
        assert!(connector.observe(&answer("example.com", &[[198, 51, 100, 1], [192, 0, 2, 9]])));
        assert!(!connector.observe(&answer("EXAMPLE.com", &[[198, 51, 100, 1]])));
        assert!(connector.observe(&answer("deep.www.example.org", &[[198, 51, 100, 2]])));
        assert!(connector.observe(&answer("example.edu", &[[10, 0, 0, 1]])));
        for foreign in ["example.org", "www.example.com", "example.net", "notexample.org"] {
            assert!(
                !connector.observe(&answer(foreign, &[[198, 51, 100, 9]])),
                "{foreign}"
            );
        }
        assert_eq!(
            routes(&connector),
            [
                "192.0.2.0/24",
                "198.51.100.1/32",
                "198.51.100.2/32",
                "10.0.0.1/32"
            ]
        );
        // What was learned stays, whatever the control server says now.
        connector.configure(&own(&json!([])));
        assert_eq!(routes(&connector).len(), 3);
    }

    #[test]
    fn an_answer_leads_nobody_into_the_machine_or_the_tailnet() {
        let mut connector = AppConnector::default();
        connector.configure(&own(&json!([{"connectors": ["*"], "domains": ["example.com"]}])));
        let inside = [
            [127, 0, 0, 1],
            [169, 254, 169, 254],
            [100, 64, 0, 1],
            [0, 0, 0, 0],
            [224, 0, 0, 1],
        ];
        assert!(!connector.observe(&answer("example.com", &inside)));
        assert!(!connector.observe(b"junk"));
        for at in 0..MAX_LEARNED + 10 {
            let [.., high, low] = (at as u32).to_be_bytes();
            connector.observe(&answer("example.com", &[[198, 51, high, low]]));
        }
        assert_eq!(connector.routes().len(), MAX_LEARNED);
    }
}
