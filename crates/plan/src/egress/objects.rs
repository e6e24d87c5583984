//! The objects that lead pods of the cluster to an identity.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use tailwharf_kube_types::contract::{EGRESS_SERVICE, label};
use tailwharf_kube_types::{Egress, names};

use crate::identity::{Wanted, body};
use crate::plan::{Kind, Manifest, ObjectRef};

/// By which controllers of the cluster tell EndpointSlices that are not theirs; the Go operator writes the same.
const MANAGED_BY: &str = "tailscale.com";

/// The pod that hosts the identity.
pub(super) struct Host {
    pub(super) pod: String,
    pub(super) addresses: Vec<IpAddr>,
}

/// What all objects have in common.
pub(super) struct Frame<'a> {
    namespace: &'a str,
    name: &'a str,
    labels: BTreeMap<String, String>,
    egress: &'a Egress,
}

impl<'a> Frame<'a> {
    pub(super) fn new(wanted: &'a Wanted, egress: &'a Egress, namespace: &'a str) -> Self {
        let mut labels = wanted.parent.labels();
        labels.insert(label::SERVICE_TYPE.to_owned(), EGRESS_SERVICE.to_owned());
        Self {
            namespace,
            name: &wanted.name,
            labels,
            egress,
        }
    }

    /// A Service with the ports of the target, whose address does not change when the identity moves. One of all ports has no address: no such Service
    /// leads all ports anywhere, so its name stands for the hosting pod.
    pub(super) fn service(&self) -> Manifest {
        let object = ObjectRef::new(Kind::Service, self.namespace, self.name);
        if self.egress.all_ports {
            let spec = json!({"type": "ClusterIP", "clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"});
            let body = body(&object, &self.labels, json!({"spec": spec}));
            return manifest(object, body);
        }
        let ports = self.egress.ports.iter().map(|port| {
            json!({
                "name": port.name,
                "protocol": port.protocol,
                "port": port.port,
                "targetPort": port.pod_port,
            })
        });
        let spec = json!({
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "ports": ports.collect::<Vec<_>>(),
        });
        let body = body(&object, &self.labels, json!({"spec": spec}));
        manifest(object, body)
    }

    /// The hosting pod, if there is one with an address of this family.
    pub(super) fn endpoint_slice(&self, ipv6: bool, host: Option<&Host>) -> Manifest {
        let mut labels = self.labels.clone();
        labels.insert("kubernetes.io/service-name".to_owned(), self.name.to_owned());
        labels.insert(
            "endpointslice.kubernetes.io/managed-by".to_owned(),
            MANAGED_BY.to_owned(),
        );
        let endpoint = host.and_then(|host| {
            let address = host.addresses.iter().find(|address| address.is_ipv6() == ipv6)?;
            Some(json!({
                "addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": self.namespace, "name": host.pod},
            }))
        });
        let ports = self
            .egress
            .ports
            .iter()
            .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.pod_port}));
        let rest = json!({
            "addressType": if ipv6 { "IPv6" } else { "IPv4" },
            "endpoints": endpoint.into_iter().collect::<Vec<_>>(),
            "ports": ports.collect::<Vec<_>>(),
        });
        let name = names::endpoint_slice_name(self.name, ipv6);
        let object = ObjectRef::new(Kind::EndpointSlice, self.namespace, &name);
        let body = body(&object, &labels, rest);
        manifest(object, body)
    }
}

const fn manifest(object: ObjectRef, body: Value) -> Manifest {
    Manifest {
        object,
        body,
        slots: Vec::new(),
    }
}
