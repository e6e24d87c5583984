//! Ingresses of the operator's class.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use kube::Resource as _;
use tailwharf_kube_types::Parent;
use tailwharf_plan::ingress::{
    CertificateSecret, Snapshot, build, certificate_secrets, is_ours, status, validate,
};

use super::{Context, Done, INTERIM, done, is_interim};
use crate::cache::ObjectKey;
use crate::execute::NotLeading;
use crate::queue::Next;

/// How long to wait for the first look at a Secret that was not watched before.
const SECRET_WAIT: Duration = Duration::from_millis(500);

pub(super) async fn reconcile(
    context: &Context,
    key: &ObjectKey,
    now: Timestamp,
) -> Result<Done, NotLeading> {
    let settings = &context.world.settings;
    let snapshot = fetch(context, key);
    if is_reading(&snapshot) {
        return Ok(Done {
            next: Next::After(SECRET_WAIT),
            result: "certificate_pending",
        });
    }
    let validated = validate(&snapshot, settings, now);
    let plan = build(&validated, settings, now);
    let executed = context.executor.execute(&plan).await?;
    if is_interim(&snapshot.observed, &plan, &executed.applied, now) {
        return Ok(done(&plan, &executed, now).within(INTERIM));
    }
    let status = status(&snapshot, &validated, &plan, &executed.applied, settings, now);
    let object = snapshot.ingress.as_ref().map(|ingress| ingress.object_ref(&()));
    let failure = context.executor.tell(&status, object.as_ref()).await?;
    Ok(done(&plan, &executed.or(failure), now))
}

fn fetch(context: &Context, key: &ObjectKey) -> Snapshot {
    let world = &context.world;
    let ingress = world.ingress(key);
    let ours = ingress
        .as_ref()
        .filter(|ingress| is_ours(ingress, &world.settings));
    let secrets: BTreeSet<&str> = ours.into_iter().flat_map(certificate_secrets).collect();
    Snapshot {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        services: ours.map(|ingress| world.targets(ingress)).unwrap_or_default(),
        certificates: world.certificates(&context.executor.client, key, &secrets),
        class: ours.and_then(|ingress| world.class_of(ingress.meta())),
        rivals: ours.map(|ingress| world.rivals(key, ingress)).unwrap_or_default(),
        observed: world.observed(&Parent::ingress(&key.namespace, &key.name)),
        ingress,
    }
}

/// Whether the first look at a Secret is still to come. It takes a moment, and what would be told of it now is wrong.
fn is_reading(snapshot: &Snapshot) -> bool {
    let living = snapshot
        .ingress
        .as_ref()
        .is_some_and(|ingress| ingress.metadata.deletion_timestamp.is_none());
    let states = &mut snapshot.certificates.values();
    living && states.any(|state| *state == CertificateSecret::Pending)
}
