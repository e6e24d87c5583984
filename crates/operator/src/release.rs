//! Leaving a cluster: no object is to have a device any more, so the controllers remove what they made. This knows when they are done.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use tailwharf_kube_types::contract::label;
use tokio::time::{Instant, interval};

use crate::error::is_not_found;
use crate::world::World;

/// How often to look at what is left.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often to say what is left.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Stops the operators of a Deployment, so that nobody makes anew what goes. One that is not there needs no stopping.
pub(crate) async fn stop_operators(
    client: &Client,
    namespace: &str,
    deployment: &str,
) -> Result<(), kube::Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let none = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    match deployments
        .patch_scale(deployment, &PatchParams::default(), &none)
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns once nothing is left that was made for somebody.
pub(crate) async fn released(world: &World) {
    let mut looks = interval(LOOK_EVERY);
    let mut told: Option<Instant> = None;
    loop {
        looks.tick().await;
        let left = world.remains();
        if left.is_empty() {
            return;
        }
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            tracing::info!(
                left = left.join(", "),
                "removing devices and what was made for them"
            );
            told = Some(Instant::now());
        }
    }
}

/// Removes the Leases of pods that have ended, and that of the operators.
pub(crate) async fn remove_leases(client: &Client, namespace: &str, own: &str) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let members = ListParams::default().labels(label::POOL);
    let mut looks = interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let now = Timestamp::now();
        if !leases
            .list(&members)
            .await?
            .iter()
            .any(|lease| is_held(lease, now))
        {
            break;
        }
    }
    leases
        .delete_collection(&DeleteParams::default(), &members)
        .await?;
    match leases.delete(own, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether somebody holds a Lease that has not ended.
fn is_held(lease: &Lease, now: Timestamp) -> bool {
    let Some(spec) = &lease.spec else { return false };
    let (Some(_), Some(renewed)) = (&spec.holder_identity, &spec.renew_time) else {
        return false;
    };
    let life = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    renewed.0.checked_add(life).is_ok_and(|end| now < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_until_it_ends_or_is_given_back() {
        let lease = |holder: serde_json::Value| -> Lease {
            serde_json::from_value(json!({"spec": {
                "holderIdentity": holder, "leaseDurationSeconds": 3, "renewTime": "2026-01-01T00:00:00.000000Z",
            }}))
            .unwrap()
        };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(is_held(&lease(json!("pod")), at("2026-01-01T00:00:02Z")));
        assert!(!is_held(&lease(json!("pod")), at("2026-01-01T00:00:03Z")));
        assert!(!is_held(&lease(json!(null)), at("2026-01-01T00:00:02Z")));
        assert!(!is_held(&Lease::default(), at("2026-01-01T00:00:02Z")));
    }
}
