//! The pool of proxy pods, and which Secrets they may read.

use jiff::Timestamp;
use tailwharf_plan::pool::build;

use super::{Context, Done, done};
use crate::execute::NotLeading;

pub(super) async fn reconcile(context: &Context, now: Timestamp) -> Result<Done, NotLeading> {
    let snapshot = context.world.pool();
    let plan = build(&snapshot, &context.world.settings);
    let executed = context.executor.execute(&plan).await?;
    if let Some(failure) = &executed.applied.failure {
        tracing::warn!(
            kind = failure.kind.category(),
            message = failure.message,
            "the pool's objects are not in order; it is tried again"
        );
    }
    Ok(done(&plan, &executed, now))
}
