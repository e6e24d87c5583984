//! What a ProxyClass makes of a pool's StatefulSet.

use serde_json::{Map, Value, json};
use tailwharf_kube_types::contract::label;
use tailwharf_kube_types::proxy_class::{Container, PodClass, ProxyClassSpec};

use super::merge::merge;

/// Labels that the operator needs to find its objects again.
const PROTECTED: [&str; 5] = [
    label::MANAGED,
    label::PARENT_TYPE,
    label::PARENT_NAME,
    label::PARENT_NAMESPACE,
    label::POOL,
];

/// Variables that the operator sets.
const RESERVED: [&str; 5] = [
    "POD_NAME",
    "POD_NAMESPACE",
    "POD_UID",
    "POD_IPS",
    "TAILWHARF_POOL",
];

/// Whether an image is that of Tailscale's own proxies, by its name. Classes made for those name it, or a mirror of it; it does not hold what the pods
/// run here.
pub(crate) fn is_of_tailscale(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    last.split(':').next() == Some("tailscale")
}

/// Brings a StatefulSet to what a class wants.
pub(super) fn dress(body: &mut Value, class: &ProxyClassSpec) {
    let Some(wanted) = &class.stateful_set else {
        return;
    };
    add(&mut body["metadata"]["labels"], wanted.labels.as_ref());
    add(&mut body["metadata"]["annotations"], wanted.annotations.as_ref());
    if let Some(pod) = &wanted.pod {
        dress_pod(&mut body["spec"]["template"], pod);
    }
    if let Some(patch) = &wanted.patch {
        merge(body, patch);
    }
}

fn dress_pod(template: &mut Value, class: &PodClass) {
    let PodClass {
        labels,
        annotations,
        affinity,
        tailscale_container,
        tailscale_init_container,
        security_context,
        image_pull_secrets,
        node_name,
        node_selector,
        tolerations,
        topology_spread_constraints,
        priority_class_name,
        dns_policy,
        dns_config,
    } = class;
    add(&mut template["metadata"]["labels"], labels.as_ref());
    add(&mut template["metadata"]["annotations"], annotations.as_ref());
    let pod = &mut template["spec"];
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            pod[field] = value;
        }
    };
    set("affinity", affinity.clone());
    set("imagePullSecrets", image_pull_secrets.clone());
    set("nodeName", node_name.as_ref().map(|name| json!(name)));
    set("nodeSelector", node_selector.as_ref().map(|labels| json!(labels)));
    set("tolerations", tolerations.clone());
    set("topologySpreadConstraints", topology_spread_constraints.clone());
    set(
        "priorityClassName",
        priority_class_name.as_ref().map(|name| json!(name)),
    );
    set("dnsPolicy", dns_policy.as_ref().map(|policy| json!(policy)));
    set("dnsConfig", dns_config.clone());
    if let Some(context) = security_context {
        merge(&mut pod["securityContext"], context);
    }
    if let Some(container) = tailscale_container {
        dress_container(&mut pod["containers"][0], container);
    }
    // Most pods have none: nothing has to be prepared as root.
    if let Some(container) = tailscale_init_container
        && pod["initContainers"].is_array()
    {
        dress_container(&mut pod["initContainers"][0], container);
    }
}

fn dress_container(target: &mut Value, class: &Container) {
    let Container {
        env,
        image,
        image_pull_policy,
        resources,
        security_context,
        debug,
    } = class;
    let mut more: Vec<Value> = Vec::new();
    if debug.as_ref().is_some_and(|debug| debug.enable == Some(true)) {
        more.push(json!({"name": "TAILWHARF_LOG", "value": "debug"}));
    }
    let others = env
        .iter()
        .flatten()
        .filter(|variable| !RESERVED.contains(&variable.name.as_str()));
    more.extend(others.map(|variable| json!(variable)));
    if !more.is_empty() {
        merge(target, &json!({ "env": more }));
    }
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            target[field] = value;
        }
    };
    let image = image.as_ref().filter(|image| !is_of_tailscale(image));
    set("image", image.map(|image| json!(image)));
    set(
        "imagePullPolicy",
        image_pull_policy.as_ref().map(|policy| json!(policy)),
    );
    if let Some(context) = security_context {
        merge(&mut target["securityContext"], context);
        // Kubernetes takes one of the two only.
        if context["privileged"] == json!(true) {
            merge(
                &mut target["securityContext"],
                &json!({"allowPrivilegeEscalation": null}),
            );
        }
    }
    let resources = resources.as_ref().and_then(Value::as_object);
    for (field, value) in resources.into_iter().flatten() {
        target["resources"][field] = value.clone();
    }
}

/// Adds labels or annotations, but for those that the operator needs.
fn add(target: &mut Value, more: Option<&std::collections::BTreeMap<String, String>>) {
    let Some(more) = more.filter(|more| !more.is_empty()) else {
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in more {
        if !PROTECTED.contains(&key.as_str()) {
            target[key] = json!(value);
        }
    }
}
