//! Bringing a device into being, and keeping it as wanted.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;
use tailwharf_kube_types::contract::{PARKED_POOL, annotation};
use tailwharf_kube_types::secret::key;
use tailwharf_kube_types::{Identity, IdentitySpec, names};

use super::{
    HOST_GRACE, KEY_REPLACEMENT_PAUSE, Observed, SecretView, Wanted, host_has_until, join, key_rejected,
    secret_manifest, waits_for,
};
use crate::diff;
use crate::plan::{Manifest, Plan, Slot, SlotUse, Step};
use crate::report::Reason;

/// Plans what is missing to the device, and reports what it waits for.
pub(crate) fn provision(
    plan: &mut Plan,
    wanted: &Wanted,
    observed: &Observed,
    namespace: &str,
    now: Timestamp,
) {
    let secret_name = names::secret_name(&wanted.name);
    let secret = observed.secrets.iter().find(|secret| secret.name == secret_name);
    let identity = observed
        .identities
        .iter()
        .find(|identity| identity.metadata.name.as_ref() == Some(&wanted.name));

    // Nobody hosts a parked one: its device begins with its next spec.
    let living = identity.filter(|identity| identity.spec.pool != PARKED_POOL);
    provision_secret(plan, wanted, &secret_name, secret, identity, namespace, now);

    let joins_pool = living.is_none_or(|identity| identity.spec.pool != wanted.spec.pool);
    let may_read = |secret: String| observed.granted.has(&wanted.spec.pool, &secret);
    if joins_pool && !secrets(&wanted.name, &wanted.spec).all(may_read) {
        plan.report.add(Reason::PoolGrantPending {
            pool: wanted.spec.pool.clone(),
        });
        return;
    }
    let manifest = wanted.manifest(namespace);
    match living {
        Some(identity) => {
            if diff::differs(&manifest.body, &json!(identity)) {
                plan.steps.push(Step::Apply(manifest));
            }
            let waiting =
                waits_for(identity).or_else(|| behind(plan, identity, identity.spec != wanted.spec, now));
            if let Some(reason) = waiting {
                plan.report.add(reason);
            }
        }
        None => {
            plan.steps.push(Step::Apply(manifest));
            plan.report.add(Reason::NotHosted {
                pool: wanted.spec.pool.clone(),
            });
        }
    }
}

/// Names of the Secrets that the host of an identity reads.
pub(crate) fn secrets(name: &str, spec: &IdentitySpec) -> impl Iterator<Item = String> {
    let mut hosts = spec.web.iter().flat_map(|web| &web.hosts);
    let own = hosts
        .any(|host| host.certificate.is_some())
        .then(|| names::certificates_name(name));
    [names::secret_name(name)].into_iter().chain(own)
}

/// The step that makes the Secret of the identity's own certificates, if it is missing. Its data comes later.
pub(crate) fn certificates_secret(wanted: &Wanted, observed: &Observed, namespace: &str) -> Option<Step> {
    let name = names::certificates_name(&wanted.name);
    let manifest = secret_manifest(namespace, &name, &wanted.labels(), &BTreeMap::new());
    let secret = observed.secrets.iter().find(|secret| secret.name == name);
    secret
        .is_none_or(|secret| secret.differs_from(&manifest))
        .then_some(Step::Apply(manifest))
}

/// Plans an Identity that nobody hosts. One that somebody hosts stays as it is.
pub(crate) fn park(plan: &mut Plan, parked: &Wanted, observed: &Observed, namespace: &str) {
    let manifest = parked.manifest(namespace);
    let due = match observed.identities.first() {
        None => true,
        Some(identity) => {
            identity.spec.pool == PARKED_POOL && diff::differs(&manifest.body, &json!(identity))
        }
    };
    if due {
        plan.steps.push(Step::Apply(manifest));
    }
}

/// Whether the host has not taken over the last change although it had the time to.
fn behind(plan: &mut Plan, identity: &Identity, changes_now: bool, now: Timestamp) -> Option<Reason> {
    let observed = identity
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    if !changes_now && observed == identity.metadata.generation {
        return None;
    }
    let until = if changes_now {
        now.checked_add(HOST_GRACE).ok()
    } else {
        host_has_until(identity)
    };
    match until {
        Some(until) if now < until => {
            plan.wake(until);
            None
        }
        _ => Some(Reason::HostBehind),
    }
}

/// The Secret carries an auth key until the device exists, and the tags that key or device have.
///
/// Tags that change while a host may be using the key are left for later: once the device exists, it gets the new ones. So what is written down is
/// always what the device has.
fn provision_secret(
    plan: &mut Plan,
    wanted: &Wanted,
    name: &str,
    secret: Option<&SecretView>,
    identity: Option<&Identity>,
    namespace: &str,
    now: Timestamp,
) {
    let wanted_tags = join(&wanted.spec.tags);
    let minted_at = secret.and_then(|secret| secret.annotations.get(annotation::KEY_MINTED_AT).cloned());
    let manifest = |tags: &str, minted_at: Option<String>| {
        let mut annotations = BTreeMap::from([(annotation::DEVICE_TAGS, tags.to_owned())]);
        annotations.extend(minted_at.map(|time| (annotation::KEY_MINTED_AT, time)));
        secret_manifest(namespace, name, &wanted.labels(), &annotations)
    };
    let differs = |manifest: &Manifest| secret.is_none_or(|secret| secret.differs_from(manifest));

    if let Some(device) = secret.and_then(|secret| secret.device_id.clone()) {
        if secret.and_then(SecretView::tags) != Some(&wanted_tags) {
            plan.steps.push(Step::SetDeviceTags {
                device,
                tags: wanted.spec.tags.clone(),
            });
        }
        let manifest = manifest(&wanted_tags, minted_at);
        if differs(&manifest) {
            plan.steps.push(Step::Apply(manifest));
        }
        return;
    }

    let kept = secret
        .and_then(SecretView::tags)
        .map(|tags| manifest(tags, minted_at));
    let usable = secret.is_some_and(|secret| secret.has_auth_key)
        && kept.is_some_and(|kept| !differs(&kept))
        && !replacement_due(plan, secret, identity, &wanted_tags, now);
    if usable {
        return;
    }
    if secret.is_none()
        && let Some(device) = identity.and_then(|identity| identity.status.as_ref()?.device_id.clone())
    {
        // Someone deleted the Secret, and with it the key of this device.
        plan.steps.push(Step::DeleteDevice { device });
    }
    plan.steps.push(Step::MintAuthKey {
        slot: Slot::AuthKey,
        tags: wanted.spec.tags.clone(),
        ephemeral: wanted.spec.ephemeral,
        description: wanted.name.clone(),
    });
    let mut manifest = manifest(&wanted_tags, Some(whole_seconds(now).to_string()));
    manifest.slots.push(SlotUse {
        slot: Slot::AuthKey,
        data_key: key::AUTH_KEY.to_owned(),
    });
    plan.steps.push(Step::Apply(manifest));
}

/// Whether the auth key was refused and is to be replaced now: because it is for other tags than wanted, or because it was refused for a while.
fn replacement_due(
    plan: &mut Plan,
    secret: Option<&SecretView>,
    identity: Option<&Identity>,
    wanted_tags: &str,
    now: Timestamp,
) -> bool {
    if !identity.is_some_and(key_rejected) {
        return false;
    }
    if secret.and_then(SecretView::tags) != Some(wanted_tags) {
        return true;
    }
    let due = secret
        .and_then(|secret| secret.time(annotation::KEY_MINTED_AT))
        .and_then(|minted| minted.checked_add(KEY_REPLACEMENT_PAUSE).ok());
    match due {
        Some(at) if now < at => {
            plan.wake(at);
            plan.report.add(Reason::KeyReplacementPending { at });
            false
        }
        _ => true,
    }
}

pub(super) fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
