//! Connectors: devices that route networks outside of the tailnet.

use jiff::Timestamp;
use kube::Resource as _;
use tailwharf_kube_types::Parent;
use tailwharf_plan::Plan;
use tailwharf_plan::connector::{Snapshot, build, status, validate};

use super::{Context, Done, INTERIM, done, is_interim};
use crate::execute::NotLeading;
use crate::world::World;

pub(super) async fn reconcile(context: &Context, name: &str, now: Timestamp) -> Result<Done, NotLeading> {
    let settings = &context.world.settings;
    if !context.world.lists_connectors() && !settings.releasing {
        // One that is not known may exist: its devices stay.
        return Ok(Done::left_alone());
    }
    let snapshot = fetch(&context.world, name);
    let validated = validate(&snapshot, settings);
    let plan = validated
        .as_ref()
        .map_or_else(|_| Plan::default(), |validated| build(validated, settings, now));
    let executed = context.executor.execute(&plan).await?;
    if is_interim(&snapshot.observed, &plan, &executed.applied, now) {
        return Ok(done(&plan, &executed, now).within(INTERIM));
    }
    let status = status(&snapshot, &validated, &plan, &executed.applied, now);
    let object = snapshot
        .connector
        .as_ref()
        .map(|connector| connector.object_ref(&()));
    let failure = context.executor.tell(&status, object.as_ref()).await?;
    Ok(done(&plan, &executed.or(failure), now))
}

fn fetch(world: &World, name: &str) -> Snapshot {
    let connector = world.connector(name);
    let class = connector
        .as_ref()
        .and_then(|connector| connector.spec.proxy_class.as_deref())
        .filter(|class| !class.is_empty());
    Snapshot {
        name: name.to_owned(),
        class: class.map(|class| world.named_class(class)),
        observed: world.observed(&Parent::connector(name)),
        ranges: world.ranges(),
        connector,
    }
}
