//! ProxyClasses: whether they can be used.

use jiff::Timestamp;
use kube::Resource as _;
use tailwharf_plan::proxy_class::{Snapshot, build, status, validate};

use super::{Context, Done, done};
use crate::execute::NotLeading;
use crate::world::World;

pub(super) async fn reconcile(context: &Context, name: &str, now: Timestamp) -> Result<Done, NotLeading> {
    let snapshot = fetch(&context.world, name);
    let validated = validate(&snapshot);
    let plan = build(&snapshot);
    let executed = context.executor.execute(&plan).await?;
    let status = status(&snapshot, &validated, now);
    let object = snapshot.class.as_ref().map(|class| class.object_ref(&()));
    let failure = context.executor.tell(&status, object.as_ref()).await?;
    Ok(done(&plan, &executed.or(failure), now))
}

fn fetch(world: &World, name: &str) -> Snapshot {
    Snapshot {
        name: name.to_owned(),
        class: world.proxy_class(name),
        others: world.other_classes(name),
    }
}
