//! Services that ask for a device on the tailnet.

use jiff::Timestamp;
use kube::Resource as _;
use tailwharf_kube_types::Parent;
use tailwharf_plan::Plan;
use tailwharf_plan::service::{Snapshot, build, status, validate};

use super::{Context, Done, INTERIM, done, is_interim};
use crate::cache::ObjectKey;
use crate::execute::NotLeading;
use crate::world::World;

pub(super) async fn reconcile(
    context: &Context,
    key: &ObjectKey,
    now: Timestamp,
) -> Result<Done, NotLeading> {
    let settings = &context.world.settings;
    let snapshot = fetch(&context.world, key);
    let validated = validate(&snapshot, settings);
    let plan = validated
        .as_ref()
        .map_or_else(|_| Plan::default(), |validated| build(validated, settings, now));
    let executed = context.executor.execute(&plan).await?;
    if is_interim(&snapshot.observed, &plan, &executed.applied, now) {
        return Ok(done(&plan, &executed, now).within(INTERIM));
    }
    let status = status(&snapshot, &validated, &plan, &executed.applied, settings, now);
    let object = snapshot.service.as_ref().map(|service| service.object_ref(&()));
    let failure = context.executor.tell(&status, object.as_ref()).await?;
    Ok(done(&plan, &executed.or(failure), now))
}

fn fetch(world: &World, key: &ObjectKey) -> Snapshot {
    let service = world.service(key);
    let class = service
        .as_ref()
        .and_then(|service| world.class_of(service.meta()));
    Snapshot {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        endpoints: service
            .as_ref()
            .map(|service| world.endpoints(service))
            .unwrap_or_default(),
        devices: world.devices_leading_to(key),
        pods: service.as_ref().and_then(|service| world.pods_for(service)),
        service,
        class,
        observed: world.observed(&Parent::service(&key.namespace, &key.name)),
    }
}
