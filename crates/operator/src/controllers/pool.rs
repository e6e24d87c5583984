//! A pool of proxy pods, and which Secrets they may read.

use jiff::Timestamp;
use tailwharf_plan::pool::build;

use super::{Context, Done, done};
use crate::execute::NotLeading;

pub(super) async fn reconcile(context: &Context, name: &str, now: Timestamp) -> Result<Done, NotLeading> {
    let snapshot = context.world.pool(name);
    let plan = build(&snapshot, &context.world.settings);
    let executed = context.executor.execute(&plan).await?;
    if let Some(failure) = &executed.applied.failure {
        tracing::warn!(
            pool = name,
            kind = failure.kind.category(),
            message = failure.message,
            "the pool's objects are not in order; it is tried again"
        );
    }
    Ok(done(&plan, &executed, now))
}
