//! What a node announces about itself in its Hostinfo, apart from the state of its network.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use ring::digest;
use tailwharf_wire::tailcfg::{C2nVipServicesResponse, Service, VipService};

use crate::api::Prefs;
use crate::service::ServiceName;

/// What is announced. A change is told to the control server at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) prefs: Prefs,
    /// The ports on which services are hosted.
    pub(crate) services: BTreeMap<ServiceName, BTreeSet<u16>>,
    /// The names for which a certificate was fetched.
    pub(crate) certified: BTreeSet<String>,
    /// The routes of the domains that peers reach through this node, if it is an app connector.
    pub(crate) app_routes: Vec<IpNet>,
    /// Whether something is open to the internet.
    pub(crate) funnel: bool,
    /// The port of the peer API, once it listens.
    pub(crate) peer_api: Option<u16>,
}

impl Announced {
    /// All networks that are offered to peers.
    pub(crate) fn routes(&self) -> Vec<IpNet> {
        let mut routes = self.prefs.routes.clone();
        if self.prefs.app_connector {
            routes.extend(
                self.app_routes
                    .iter()
                    .filter(|net| !self.prefs.routes.contains(net)),
            );
        }
        routes
    }

    /// Whether names are resolved for peers.
    pub(crate) fn resolves(&self) -> bool {
        self.prefs.resolves_for_peers || self.prefs.app_connector
    }

    /// The peer API, in the form of `Hostinfo.Services`.
    pub(super) fn hostinfo_services(&self) -> Vec<Service> {
        let Some(port) = self.peer_api else {
            return Vec::new();
        };
        let service = |proto: &str, port| Service {
            proto: proto.to_owned(),
            port,
            ..Service::default()
        };
        let mut services = vec![service("peerapi4", port), service("peerapi6", port)];
        if self.resolves() {
            // The field holds the version of what is offered in place of a port.
            services.push(service("peerapi-dns-proxy", 1));
        }
        services
    }

    /// The services hosted here, in the form in which the control server asks for them.
    pub(super) fn vip_services(&self) -> C2nVipServicesResponse {
        C2nVipServicesResponse {
            vip_services: self.list(),
            services_hash: self.services_hash(),
        }
    }

    /// Changes whenever the list of hosted services does; empty without any.
    pub(super) fn services_hash(&self) -> String {
        if self.services.is_empty() {
            return String::new();
        }
        let list = serde_json::to_vec(&self.list()).unwrap_or_default();
        hex::encode(digest::digest(&digest::SHA256, &list))
    }

    fn list(&self) -> Vec<VipService> {
        self.services
            .iter()
            .map(|(name, ports)| VipService {
                name: name.to_string(),
                ports: ports.iter().map(|port| format!("tcp:{port}")).collect(),
                active: true,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(services: &[(&str, &[u16])]) -> Announced {
        Announced {
            services: services
                .iter()
                .map(|(name, ports)| (name.parse().unwrap(), ports.iter().copied().collect()))
                .collect(),
            ..Announced::default()
        }
    }

    #[test]
    fn the_hash_follows_the_list_and_nothing_else() {
        let one = announced(&[("svc:web", &[443, 80])]);
        let other_name = Announced {
            prefs: Prefs {
                hostname: "other".into(),
                ..Prefs::default()
            },
            ..one.clone()
        };
        assert_eq!(one.services_hash(), other_name.services_hash());
        assert_ne!(
            one.services_hash(),
            announced(&[("svc:web", &[443])]).services_hash()
        );
        assert_eq!(announced(&[]).services_hash(), "");
        let answer = serde_json::to_value(one.vip_services()).unwrap();
        assert_eq!(
            answer["VIPServices"],
            serde_json::json!([{"Name": "svc:web", "Ports": ["tcp:80", "tcp:443"], "Active": true}])
        );
        assert_eq!(answer["ServicesHash"], one.services_hash());
    }

    #[test]
    fn the_peer_api_is_announced_for_both_families_and_names_only_when_it_resolves() {
        let mut announced = Announced {
            peer_api: Some(4000),
            ..Announced::default()
        };
        let kinds = |announced: &Announced| {
            let services = announced.hostinfo_services();
            services
                .into_iter()
                .map(|service| (service.proto, service.port))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            kinds(&announced),
            [("peerapi4".into(), 4000), ("peerapi6".into(), 4000)]
        );
        announced.prefs.resolves_for_peers = true;
        assert_eq!(kinds(&announced)[2], ("peerapi-dns-proxy".into(), 1));
        announced.peer_api = None;
        assert_eq!(kinds(&announced), []);
    }
}
