//! Which port of a hosting pod stands for which port of a target.
//!
//! All pods of a pool may host any of its identities, so a port belongs to one identity, whichever pod hosts it. An identity keeps its ports: they are
//! written in its spec. Two identities that are made in the same moment may take the same port; then the one whose name comes first keeps it.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use tailwharf_kube_types::contract::EGRESS_PORTS;
use tailwharf_kube_types::{Egress, EgressPort, Identity};

use crate::service::CarriedPort;

/// The ports of pods that stand for ports of targets, with the names of the identities that they belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortsInUse(BTreeSet<(u16, String)>);

impl PortsInUse {
    /// Notes the ports of an identity.
    pub fn add(&mut self, identity: &Identity) {
        self.0.extend(held(identity));
    }

    /// Forgets the ports of an identity.
    pub fn remove(&mut self, identity: &Identity) {
        for port in held(identity) {
            self.0.remove(&port);
        }
    }

    fn holders(&self, port: u16) -> impl Iterator<Item = &str> {
        self.0
            .range((port, String::new())..)
            .take_while(move |(held, _)| *held == port)
            .map(|(_, name)| name.as_str())
    }

    fn is_free_for(&self, port: u16, name: &str) -> bool {
        self.holders(port).all(|holder| holder == name)
    }

    fn is_kept_by(&self, port: u16, name: &str) -> bool {
        self.holders(port).all(|holder| holder >= name)
    }
}

fn held(identity: &Identity) -> impl Iterator<Item = (u16, String)> {
    let name = identity.metadata.name.clone().unwrap_or_default();
    let ports = identity
        .spec
        .egress
        .iter()
        .flat_map(|egress| &egress.ports)
        .map(|port| port.pod_port);
    ports.map(move |port| (port, name.clone()))
}

/// Gives each port of the targets a port of the pod: the one it has, or the next free one from a place that the names tell. `None` when all are taken.
pub(super) fn allot(
    identity: &str,
    wishes: Vec<CarriedPort>,
    before: Option<&Egress>,
    in_use: &PortsInUse,
) -> Option<Vec<EgressPort>> {
    let before = before.map(|egress| egress.ports.as_slice()).unwrap_or_default();
    let mut ours = BTreeSet::new();
    let mut kept = |wish: &CarriedPort| {
        let port = before
            .iter()
            .find(|old| (old.protocol, old.port) == (wish.protocol, wish.number))
            .filter(|old| old.has_valid_pod_port() && in_use.is_kept_by(old.pod_port, identity))?;
        ours.insert(port.pod_port).then_some(port.pod_port)
    };
    let kept: Vec<Option<u16>> = wishes.iter().map(&mut kept).collect();
    let mut allotted = Vec::with_capacity(wishes.len());
    for (wish, kept) in wishes.into_iter().zip(kept) {
        let pod_port = match kept {
            Some(port) => port,
            None => from(identity, &wish)
                .find(|port| !ours.contains(port) && in_use.is_free_for(*port, identity))?,
        };
        ours.insert(pod_port);
        let CarriedPort {
            name,
            protocol,
            number: port,
        } = wish;
        allotted.push(EgressPort {
            name,
            protocol,
            port,
            pod_port,
        });
    }
    Some(allotted)
}

/// All ports there are, beginning at one that differs from name to name.
fn from(identity: &str, wish: &CarriedPort) -> impl Iterator<Item = u16> {
    let (first, last) = (*EGRESS_PORTS.start(), *EGRESS_PORTS.end());
    let digest = Sha256::digest(format!("{identity}/{}/{}", wish.protocol, wish.number));
    let start = first + u16::from_be_bytes([digest[0], digest[1]]) % (last - first + 1);
    (start..=last).chain(first..start)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tailwharf_kube_types::Protocol;

    use super::*;

    fn wish(port: u16) -> CarriedPort {
        CarriedPort {
            name: format!("tcp-{port}"),
            protocol: Protocol::Tcp,
            number: port,
        }
    }

    fn identity(name: &str, ports: &[EgressPort]) -> Identity {
        serde_json::from_value(json!({
            "apiVersion": "tailwharf.dev/v1alpha1", "kind": "Identity", "metadata": {"name": name},
            "spec": {"hostname": "x", "tags": [], "pool": "default", "loginServer": "http://c",
                     "egress": {"targets": ["db"], "ports": ports}},
        }))
        .unwrap()
    }

    fn egress(ports: &[EgressPort]) -> Egress {
        Egress {
            targets: Vec::new(),
            ports: ports.to_vec(),
            all_ports: false,
            from: None,
        }
    }

    fn numbers(ports: &[EgressPort]) -> Vec<u16> {
        ports.iter().map(|port| port.pod_port).collect()
    }

    #[test]
    fn what_was_given_is_kept() {
        let mut in_use = PortsInUse::default();
        let first = allot("ts-a", vec![wish(80), wish(443)], None, &in_use).unwrap();
        in_use.add(&identity("ts-a", &first));
        let again = allot(
            "ts-a",
            vec![wish(22), wish(80), wish(443)],
            Some(&egress(&first)),
            &in_use,
        )
        .unwrap();
        assert_eq!(numbers(&again)[1..], numbers(&first));
        in_use.remove(&identity("ts-a", &first));
        assert_eq!(in_use, PortsInUse::default());
    }

    #[test]
    fn of_two_with_one_port_the_first_keeps_it() {
        let mut in_use = PortsInUse::default();
        let ports = allot("ts-a", vec![wish(80)], None, &in_use).unwrap();
        in_use.add(&identity("ts-a", &ports));
        in_use.add(&identity("ts-b", &ports));
        let of = |name| allot(name, vec![wish(80)], Some(&egress(&ports)), &in_use).unwrap();
        assert_eq!(numbers(&of("ts-a")), numbers(&ports));
        assert_ne!(numbers(&of("ts-b")), numbers(&ports));
    }

    #[test]
    fn thousands_get_one_each_until_none_is_left() {
        let mut in_use = PortsInUse::default();
        let mut seen = BTreeSet::new();
        for number in 0..20_000 / 250 {
            let name = format!("ts-{number}");
            let ports = allot(&name, (1..=250).map(wish).collect(), None, &in_use).unwrap();
            assert!(
                ports
                    .iter()
                    .all(|port| port.has_valid_pod_port() && seen.insert(port.pod_port))
            );
            in_use.add(&identity(&name, &ports));
        }
        assert_eq!(allot("ts-late", vec![wish(80)], None, &in_use), None);
    }
}
