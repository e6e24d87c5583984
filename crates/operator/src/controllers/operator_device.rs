//! The operator's own device, which shows on the tailnet that the operator runs.

use jiff::Timestamp;
use tailwharf_plan::operator_device::{build, parent};

use super::{Context, Done, done};
use crate::execute::NotLeading;

pub(super) async fn reconcile(context: &Context, now: Timestamp) -> Result<Done, NotLeading> {
    let settings = &context.world.settings;
    let observed = context.world.observed(&parent(settings));
    let plan = build(&observed, settings, now);
    let executed = context.executor.execute(&plan).await?;
    if let Some(failure) = &executed.applied.failure {
        tracing::warn!(
            kind = failure.kind.category(),
            message = failure.message,
            "the operator's own device is not in order; it is tried again"
        );
    }
    Ok(done(&plan, &executed, now))
}
