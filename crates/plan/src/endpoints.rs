//! The ready endpoints of Services, for those whose cluster address does not lead to them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};
use tailwharf_kube_types::contract::MAX_BACKENDS;
use tailwharf_kube_types::{Backend, Parent};

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What plans know of an `EndpointSlice`: a slice is mostly topology and conditions, and a large cluster has thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsView {
    /// Namespace.
    pub namespace: String,
    /// The Service that it belongs to; empty if it names none.
    pub service: String,
    /// Ports that the endpoints have.
    pub ports: Vec<EndpointPort>,
    /// Addresses that are ready, in order.
    pub ready: Vec<IpAddr>,
}

/// A port of an [`EndpointsView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Name of the Service's port; empty if that has none.
    pub name: String,
    /// `TCP`, `UDP` or another.
    pub protocol: String,
    /// Its number at the endpoints.
    pub port: u16,
}

impl EndpointsView {
    /// Reads a slice.
    #[must_use]
    pub fn from_slice(slice: EndpointSlice) -> Self {
        let ports = slice.ports.unwrap_or_default().into_iter().filter_map(|port| {
            Some(EndpointPort {
                name: port.name.unwrap_or_default(),
                protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
                port: u16::try_from(port.port?).ok().filter(|port| *port > 0)?,
            })
        });
        // An endpoint that says nothing about it is to be taken as ready.
        let ready = slice.endpoints.iter().filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        // Those of type FQDN have no address.
        let ready: BTreeSet<IpAddr> = ready
            .flat_map(|endpoint| &endpoint.addresses)
            .filter_map(|address| address.parse().ok())
            .collect();
        Self {
            ports: ports.collect(),
            ready: ready.into_iter().collect(),
            namespace: slice.metadata.namespace.unwrap_or_default(),
            service: slice
                .metadata
                .labels
                .and_then(|mut labels| labels.remove(SERVICE_NAME))
                .unwrap_or_default(),
        }
    }

    /// The Service that it belongs to.
    #[must_use]
    pub fn service(&self) -> Option<Parent> {
        (!self.service.is_empty()).then(|| Parent::service(&self.namespace, &self.service))
    }
}

/// Whether connections go to the endpoints of a Service themselves: it has no address in the cluster, or one that leads to endpoints of the same
/// machine only (`internalTrafficPolicy: Local`), and which machine a proxy is on says nothing about clients on the tailnet.
#[must_use]
pub fn needs_endpoints(spec: &ServiceSpec) -> bool {
    is_headless(spec) || spec.internal_traffic_policy.as_deref() == Some("Local")
}

/// Whether a Service is declared to have no address in the cluster.
pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// Where connections to a port of a Service go, and how many endpoints are too many to be listed.
pub(crate) fn backends(
    spec: &ServiceSpec,
    port: &ServicePort,
    endpoints: &[EndpointsView],
) -> (Vec<Backend>, usize) {
    if needs_endpoints(spec) {
        return endpoint_backends(port, endpoints);
    }
    let backend = |address: &String| {
        Some(Backend {
            address: address.clone(),
            port: u16::try_from(port.port).ok()?,
        })
    };
    (cluster_ips(spec).iter().filter_map(backend).collect(), 0)
}

/// The addresses of a Service in the cluster, the preferred first.
pub(crate) fn cluster_ips(spec: &ServiceSpec) -> Vec<String> {
    let all = spec.cluster_ips.clone().filter(|ips| !ips.is_empty());
    let all = all.unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
    all.into_iter()
        .filter(|ip| !ip.is_empty() && ip != "None")
        .collect()
}

fn endpoint_backends(port: &ServicePort, endpoints: &[EndpointsView]) -> (Vec<Backend>, usize) {
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let mut all = BTreeSet::new();
    for slice in endpoints {
        let ports = slice
            .ports
            .iter()
            .filter(|port| port.name == name && port.protocol == protocol);
        for port in ports {
            all.extend(slice.ready.iter().map(|address| (*address, port.port)));
        }
    }
    let too_many = all.len().saturating_sub(MAX_BACKENDS);
    let backends = all.into_iter().take(MAX_BACKENDS).map(|(address, port)| Backend {
        address: address.to_string(),
        port,
    });
    (backends.collect(), too_many)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(endpoints: &serde_json::Value) -> EndpointsView {
        let slice = json!({
            "metadata": {"namespace": "shop", "name": "web-abcde", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "all", "protocol": "TCP"}],
        });
        EndpointsView::from_slice(serde_json::from_value(slice).unwrap())
    }

    #[test]
    fn endpoints_that_are_not_ready_and_ports_without_a_number_are_left_out() {
        let view = slice(&json!([
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
            {"addresses": ["10.1.0.2"]},
            {"addresses": ["10.1.0.1"], "conditions": {"ready": true}},
        ]));
        let text: Vec<_> = view.ready.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.1.0.1", "10.1.0.2"]);
        assert_eq!(view.ports.len(), 1);
        assert_eq!(view.service(), Some(Parent::service("shop", "web")));
    }

    #[test]
    fn a_port_leads_to_the_endpoints_port_of_its_name() {
        let spec: ServiceSpec = serde_json::from_value(json!({
            "clusterIP": "None", "ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}],
        }))
        .unwrap();
        let view = slice(&json!([{"addresses": ["10.1.0.1"]}]));
        let ports = spec.ports.clone().unwrap();
        let found = |port: &ServicePort| backends(&spec, port, std::slice::from_ref(&view)).0;
        assert_eq!(
            found(&ports[0]),
            [Backend {
                address: "10.1.0.1".to_owned(),
                port: 8080
            }]
        );
        assert_eq!(found(&ports[1]), []);
    }

    #[test]
    fn more_endpoints_than_a_listener_holds_are_counted() {
        let spec: ServiceSpec =
            serde_json::from_value(json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}))
                .unwrap();
        let many: Vec<_> = (0..130)
            .map(|n| json!({"addresses": [format!("10.1.0.{n}")]}))
            .collect();
        let ports = spec.ports.clone().unwrap();
        let (backends, too_many) = backends(&spec, &ports[0], &[slice(&json!(many))]);
        assert_eq!((backends.len(), too_many), (MAX_BACKENDS, 2));
    }
}
