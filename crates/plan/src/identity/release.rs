//! Removing a device and what belongs to it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tailwharf_kube_types::contract::annotation;

use super::provision::whole_seconds;
use super::{Observed, REGISTRATION_LIMIT, SecretView, secret_manifest, secret_of};
use crate::plan::{Kind, ObjectRef, Plan, Step};
use crate::report::Reason;

/// Plans the removal. Returns whether nothing is left once the plan is done.
///
/// A host that has read the auth key may register a device at any moment. So a Secret without a device is kept for [`REGISTRATION_LIMIT`] after its
/// Identity is gone, and the key is revoked at once: what a host registers, it registered before. If it did not write the device down by the end, the
/// device is found by the node key, which hosts write before they register.
///
/// With `force`, devices stay at the control server and the report names them.
pub(crate) fn release(
    plan: &mut Plan,
    observed: &Observed,
    namespace: &str,
    force: bool,
    now: Timestamp,
) -> bool {
    for device in devices(observed) {
        if force {
            plan.report.add(Reason::DeviceLeftBehind { device });
        } else {
            plan.steps.push(Step::DeleteDevice { device });
        }
    }
    let mut settled = true;
    let mut deletions = Vec::new();
    for secret in &observed.secrets {
        match registering_until(secret, observed, now) {
            Some(until) if now < until && !force => {
                if has_identity(secret, observed) {
                    plan.steps.push(mark_released(secret, namespace, now));
                }
                // After the key is out of the Secret: a revoked key would keep a parent that comes back from its device.
                plan.steps
                    .extend(secret.auth_key_id.clone().map(|key| Step::RevokeAuthKey { key }));
                plan.wake(until);
                plan.report.add(Reason::RegistrationInFlight { until });
                settled = false;
            }
            _ => {
                let unwritten = secret
                    .node_key
                    .clone()
                    .filter(|_| secret.device_id.is_none() && !force);
                deletions.extend(unwritten.map(|node_key| Step::DeleteDeviceOfKey { node_key }));
                deletions.push(Step::Delete {
                    object: ObjectRef::new(Kind::Secret, namespace, &secret.name),
                    uid: Some(secret.uid.clone()).filter(|uid| !uid.is_empty()),
                });
            }
        }
    }
    for identity in &observed.identities {
        let name = identity.metadata.name.as_deref().unwrap_or_default();
        let object = ObjectRef::new(Kind::Identity, namespace, name);
        plan.steps.push(Step::Delete {
            object,
            uid: identity.metadata.uid.clone(),
        });
    }
    plan.steps.append(&mut deletions);
    settled
}

fn has_identity(secret: &SecretView, observed: &Observed) -> bool {
    observed
        .identities
        .iter()
        .any(|identity| secret_of(identity) == secret.name)
}

/// All devices that are known for the parent, whoever wrote them down.
fn devices(observed: &Observed) -> BTreeSet<String> {
    let in_secrets = observed
        .secrets
        .iter()
        .filter_map(|secret| secret.device_id.clone());
    let in_status = observed
        .identities
        .iter()
        .filter_map(|identity| identity.status.as_ref()?.device_id.clone());
    in_secrets.chain(in_status).collect()
}

/// Until when a host may be registering a device with the auth key of this Secret. `None`: no host does.
///
/// The time runs from the moment at which the Identity goes. As long as it is there, a host may still begin.
fn registering_until(secret: &SecretView, observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let identity = observed
        .identities
        .iter()
        .find(|identity| secret_of(identity) == secret.name);
    let in_status = identity.and_then(|identity| identity.status.as_ref()?.device_id.as_ref());
    if secret.device_id.is_some() || in_status.is_some() {
        return None;
    }
    let released = match identity {
        Some(_) => whole_seconds(now),
        None => secret.time(annotation::RELEASED_AT)?,
    };
    released.checked_add(REGISTRATION_LIMIT).ok()
}

/// Writes down when the removal began. The auth key is not among the applied fields, so a host that has not read it yet does not find it any more.
fn mark_released(secret: &SecretView, namespace: &str, now: Timestamp) -> Step {
    let mut annotations = BTreeMap::from([(annotation::RELEASED_AT, whole_seconds(now).to_string())]);
    annotations.extend(
        secret
            .tags()
            .map(|tags| (annotation::DEVICE_TAGS, tags.to_owned())),
    );
    annotations.extend(
        secret
            .auth_key_id
            .clone()
            .map(|key| (annotation::RELEASED_KEY, key)),
    );
    Step::Apply(secret_manifest(
        namespace,
        &secret.name,
        &secret.labels,
        &annotations,
    ))
}
