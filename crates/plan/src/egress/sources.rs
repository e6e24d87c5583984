//! From the pods that may use an egress Service to the addresses by which the proxy knows them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use tailwharf_kube_types::Sources;
use tailwharf_kube_types::contract::MAX_SOURCES;
use tailwharf_kube_types::sources::Labels;

/// What is of interest of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// The addresses that are its own. One that has ended has none any more, and one in its machine's network never has.
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    /// Reads a pod.
    #[must_use]
    pub fn of(pod: core::Pod) -> Self {
        let shares_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let status = pod.status.unwrap_or_default();
        let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let addresses = status.pod_ips.into_iter().flatten().map(|address| address.ip);
        Self {
            namespace: pod.metadata.namespace.unwrap_or_default(),
            name: pod.metadata.name.unwrap_or_default(),
            labels: pod.metadata.labels.unwrap_or_default(),
            addresses: match shares_network || has_ended {
                true => Vec::new(),
                false => addresses.filter_map(|ip| ip.parse().ok()).collect(),
            },
        }
    }
}

/// The pods of the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pods {
    /// The labels of each namespace.
    pub namespaces: BTreeMap<String, Arc<Labels>>,
    /// All pods.
    pub pods: Vec<Arc<Pod>>,
}

impl Pods {
    /// The addresses of the pods that are among `sources`, which somebody of namespace `home` wrote: as few ranges as say just that, in order; and how
    /// many ranges are left out, since there are too many.
    pub(super) fn ranges(&self, sources: &Sources, home: &str) -> (Vec<IpNet>, usize) {
        let none = Arc::default();
        let selected = self.pods.iter().filter(|pod| {
            let of_namespace = self.namespaces.get(&pod.namespace).unwrap_or(&none);
            sources.select(home, &pod.namespace, of_namespace, &pod.labels)
        });
        let addresses = selected.flat_map(|pod| pod.addresses.iter().copied().map(IpNet::from));
        let mut ranges = IpNet::aggregate(&addresses.collect());
        ranges.sort();
        let left_out = ranges.len().saturating_sub(MAX_SOURCES);
        ranges.truncate(MAX_SOURCES);
        (ranges, left_out)
    }

    /// The pod with an address.
    pub(crate) fn with(&self, address: IpAddr) -> Option<&Pod> {
        let has_it = |pod: &&Arc<Pod>| pod.addresses.contains(&address);
        self.pods.iter().find(has_it).map(Arc::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod(number: u32) -> Arc<Pod> {
        Arc::new(Pod {
            namespace: "shop".to_owned(),
            name: format!("front-{number}"),
            addresses: vec![Ipv4Addr::from(0x0af4_0000 + number).into()],
            ..Pod::default()
        })
    }

    fn all() -> Sources {
        r#"{"namespaceSelector": {}}"#.parse().unwrap()
    }

    #[test]
    fn pods_without_an_address_of_their_own_have_none() {
        let addresses = |spec, phase| {
            let pod = json!({
                "metadata": {"name": "a", "namespace": "b"}, "spec": spec,
                "status": {"phase": phase, "podIPs": [{"ip": "10.244.0.7"}, {"ip": "fd00::7"}]},
            });
            Pod::of(serde_json::from_value(pod).unwrap()).addresses.len()
        };
        let plain = json!({"containers": []});
        assert_eq!(addresses(plain.clone(), "Running"), 2);
        assert_eq!(addresses(plain, "Succeeded"), 0);
        assert_eq!(
            addresses(json!({"containers": [], "hostNetwork": true}), "Running"),
            0
        );
    }

    #[test]
    fn what_is_too_much_is_left_out_and_counted() {
        let pods = Pods {
            pods: (0..9000).step_by(2).map(pod).collect(),
            ..Pods::default()
        };
        let (ranges, left_out) = pods.ranges(&all(), "shop");
        assert_eq!((ranges.len(), left_out), (MAX_SOURCES, 4500 - MAX_SOURCES));
    }

    proptest! {
        #[test]
        fn ranges_hold_the_pods_and_nobody_else(numbers in prop::collection::btree_set(0u32..600, 0..200)) {
            let pods = Pods { pods: numbers.iter().copied().map(pod).collect(), ..Pods::default() };
            let (ranges, left_out) = pods.ranges(&all(), "shop");
            prop_assert_eq!(left_out, 0);
            for number in 0..700 {
                let address = pod(number).addresses[0];
                let holds = ranges.iter().any(|range| range.contains(&address));
                prop_assert_eq!(holds, numbers.contains(&number));
            }
            prop_assert!(ranges.is_sorted());
        }
    }
}
