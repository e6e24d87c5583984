//! Services that ask for a device on the tailnet.

use jiff::Timestamp;
use tailwharf_kube_types::Parent;
use tailwharf_plan::service::{Snapshot, build, status, validate};
use tailwharf_plan::{Applied, Plan, Reason};

use super::{Context, Done, done};
use crate::cache::ObjectKey;
use crate::execute::{Executed, NotLeading};
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
    let mut executed = context.executor.execute(&plan).await?;
    if !is_interim(&plan, &executed.applied) {
        let status = status(&snapshot, &validated, &plan, &executed.applied, settings, now);
        let failure = context.executor.tell(&status, snapshot.service.as_ref()).await?;
        executed = executed.or(failure);
    }
    Ok(done(&plan, &executed, now))
}

fn fetch(world: &World, key: &ObjectKey) -> Snapshot {
    Snapshot {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        service: world.service(key),
        observed: world.observed(&Parent::service(&key.namespace, &key.name)),
    }
}

/// Whether the status would tell of a state that ends within milliseconds: the Secret was made this moment, and the
/// pool's Role is about to name it. The next look tells, whether the Role does or not.
fn is_interim(plan: &Plan, applied: &Applied) -> bool {
    let waits = plan
        .report
        .iter()
        .any(|reason| matches!(reason, Reason::PoolGrantPending { .. }));
    !plan.is_empty() && waits && applied.failure.is_none()
}

impl Executed {
    /// The same, failed by `failure` unless it failed before.
    fn or(self, failure: Option<tailwharf_plan::Failure>) -> Self {
        let Self { applied, least_wait } = self;
        Self {
            applied: Applied {
                failure: applied.failure.or(failure),
                ..applied
            },
            least_wait,
        }
    }
}
