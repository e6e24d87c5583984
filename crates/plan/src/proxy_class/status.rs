//! What to tell the user about a ProxyClass.

use jiff::Timestamp;
use serde_json::json;
use tailwharf_kube_types::ConditionStatus;
use tailwharf_kube_types::contract::PROXY_CLASS_READY;
use tailwharf_kube_types::proxy_class::ProxyClassSpec;

use super::{Problem, Snapshot};
use crate::plan::{Event, EventType};
use crate::pool::is_of_tailscale;
use crate::status::{Status, StatusPatch, Verdict, sentences};

/// Computes the status last.
#[must_use]
pub fn status(snapshot: &Snapshot, validated: &Result<(), Vec<Problem>>, now: Timestamp) -> Status {
    let Some(class) = snapshot
        .class
        .as_ref()
        .filter(|class| class.metadata.deletion_timestamp.is_none())
    else {
        return Status::default();
    };
    let verdict = match validated {
        Ok(()) => Verdict {
            status: ConditionStatus::True,
            reason: "ProxyClassValid",
            message: usable(&class.spec),
            event: None,
        },
        Err(problems) => Verdict {
            status: ConditionStatus::False,
            reason: "ProxyClassInvalid",
            message: sentences(problems),
            event: Some("ProxyClassInvalid"),
        },
    };
    let current = class.condition();
    let generation = class.metadata.generation;
    let is_told =
        current.is_some_and(|current| verdict.is_told(current) && current.observed_generation == generation);
    if is_told {
        return Status::default();
    }
    let previous = current.map(std::slice::from_ref).unwrap_or_default();
    let condition = verdict.condition(PROXY_CLASS_READY, generation, previous, now);
    let events = verdict
        .news(current)
        .into_iter()
        .chain(reserved_variables(&class.spec))
        .collect();
    Status {
        patch: Some(StatusPatch::new(
            snapshot.reference(),
            &json!({"conditions": [condition]}),
        )),
        identity: None,
        events,
    }
}

/// That the class can be used, and which of its fields change nothing.
fn usable(spec: &ProxyClassSpec) -> String {
    let pod = spec.stateful_set.as_ref().and_then(|set| set.pod.as_ref());
    let container = pod.and_then(|pod| pod.tailscale_container.as_ref());
    let image = container.and_then(|container| container.image.as_deref());
    let fields = [
        (
            image.is_some_and(is_of_tailscale),
            "tailscaleContainer.image, which is Tailscale's",
        ),
        (
            pod.is_some_and(|pod| pod.tailscale_init_container.is_some()),
            "tailscaleInitContainer",
        ),
        (spec.metrics.is_some(), "metrics"),
        (spec.tailscale.is_some(), "tailscale.acceptRoutes"),
        (
            spec.use_lets_encrypt_staging_environment.is_some(),
            "useLetsEncryptStagingEnvironment",
        ),
        (spec.static_endpoints.is_some(), "staticEndpoints"),
    ];
    let idle: Vec<&str> = fields
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
    if idle.is_empty() {
        "The class can be used.".to_owned()
    } else {
        format!(
            "The class can be used. Fields that change nothing in this version: {}.",
            idle.join(", ")
        )
    }
}

/// A warning about environment variables that have a meaning for other proxies, and none or another one here.
fn reserved_variables(spec: &ProxyClassSpec) -> Option<Event> {
    let pod = spec.stateful_set.as_ref()?.pod.as_ref()?;
    let containers = [&pod.tailscale_container, &pod.tailscale_init_container];
    let names: Vec<&str> = containers
        .into_iter()
        .flatten()
        .flat_map(|container| container.env.iter().flatten())
        .map(|variable| variable.name.as_str())
        .filter(|name| {
            name.starts_with("TS_")
                || name.eq_ignore_ascii_case("EXPERIMENTAL_TS_CONFIGFILE_PATH")
                || name.eq_ignore_ascii_case("EXPERIMENTAL_ALLOW_PROXYING_CLUSTER_TRAFFIC_VIA_INGRESS")
        })
        .collect();
    (!names.is_empty()).then(|| Event {
        type_: EventType::Warning,
        reason: "CustomTSEnvVar",
        message: format!(
            "The environment variables {} have no effect: remove them, or use the fields of the class.",
            names.join(", ")
        ),
    })
}
