//! Services that ask for a device on the tailnet.

use std::time::Duration;

use jiff::Timestamp;
use tailwharf_kube_types::Parent;
use tailwharf_kube_types::contract::annotation;
use tailwharf_plan::identity::SecretView;
use tailwharf_plan::service::{Snapshot, build, status, validate};
use tailwharf_plan::{Applied, Plan, Reason, Step};

use super::{Context, Done, done};
use crate::cache::ObjectKey;
use crate::execute::NotLeading;
use crate::world::World;

/// How long a device that is being made is nothing to tell of.
const INTERIM: Duration = Duration::from_secs(2);

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
    if is_interim(&snapshot, &plan, &executed.applied, now) {
        return Ok(done(&plan, &executed, now).within(INTERIM));
    }
    let status = status(&snapshot, &validated, &plan, &executed.applied, settings, now);
    let failure = context.executor.tell(&status, snapshot.service.as_ref()).await?;
    Ok(done(&plan, &executed.or(failure), now))
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
/// pool's Role is about to name it. If it is not soon, the next look tells.
fn is_interim(snapshot: &Snapshot, plan: &Plan, applied: &Applied, now: Timestamp) -> bool {
    let waits = plan
        .report
        .iter()
        .any(|reason| matches!(reason, Reason::PoolGrantPending { .. }));
    let minted = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::MintAuthKey { .. }));
    let minted_at = |secret: &SecretView| {
        secret
            .annotations
            .get(annotation::KEY_MINTED_AT)?
            .parse::<Timestamp>()
            .ok()
    };
    let minted_lately = snapshot.observed.secrets.iter().filter_map(minted_at).any(|at| {
        let age = now.duration_since(at);
        !age.is_negative() && age.unsigned_abs() < INTERIM
    });
    waits && (minted || minted_lately) && applied.failure.is_none()
}
