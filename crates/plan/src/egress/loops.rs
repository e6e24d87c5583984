//! Targets that lead back to the Service itself: it stands for a device of the same cluster that passes connections on to it.

use std::sync::Arc;

use tailwharf_kube_types::{Identity, Target};

/// The addresses to which a device passes connections on.
pub fn backends(identity: &Identity) -> impl Iterator<Item = &str> {
    let web = identity.spec.web.iter().flat_map(|web| &web.backends);
    let listeners = identity
        .spec
        .listeners
        .iter()
        .flat_map(|listener| &listener.backends);
    let all = web.flat_map(|backend| &backend.addresses).chain(listeners);
    all.map(|backend| backend.address.as_str())
}

/// The first target that is one of the devices.
pub(super) fn leads_back(targets: &[Target], devices: &[Arc<Identity>]) -> Option<Target> {
    let is_device = |target: &&Target| devices.iter().any(|device| is_of(target, device));
    targets.iter().find(is_device).cloned()
}

fn is_of(target: &Target, device: &Identity) -> bool {
    let Some(status) = &device.status else {
        return false;
    };
    match target {
        Target::Ip(address) => status.addresses.contains(address),
        Target::Name(name) => status.fqdn.as_deref().is_some_and(|fqdn| {
            let fqdn = fqdn.trim_end_matches('.');
            let short = fqdn.split('.').next().unwrap_or_default();
            name.eq_ignore_ascii_case(fqdn) || name.eq_ignore_ascii_case(short)
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn front() -> Identity {
        serde_json::from_value(json!({
            "metadata": {"name": "ts-front-abcde"},
            "spec": {
                "hostname": "front", "tags": [], "pool": "default", "loginServer": "http://c",
                "listeners": [{"name": "tcp-80", "protocol": "TCP", "port": 80, "backends": [{"address": "ts-db-x.tailscale.svc.cluster.local", "port": 80}]}],
            },
            "status": {"fqdn": "front.tail.ts.net", "addresses": ["100.64.0.7"]},
        }))
        .unwrap()
    }

    #[test]
    fn a_device_is_known_by_its_names_and_addresses() {
        let devices = [Arc::new(front())];
        for (text, is_back) in [
            ("front", true),
            ("front.tail.ts.net", true),
            ("100.64.0.7", true),
            ("front.other.ts.net", false),
            ("100.64.0.8", false),
        ] {
            let target: Target = text.parse().unwrap();
            let found = leads_back(std::slice::from_ref(&target), &devices);
            assert_eq!(found.is_some(), is_back, "{text}");
        }
        assert_eq!(
            backends(&front()).collect::<Vec<_>>(),
            ["ts-db-x.tailscale.svc.cluster.local"]
        );
    }
}
