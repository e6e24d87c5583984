//! The nameserver for pods, and its records.

use jiff::Timestamp;
use tailwharf_plan::nameserver::{build, status};

use super::{Context, Done, done};
use crate::execute::NotLeading;

pub(super) async fn reconcile(context: &Context, now: Timestamp) -> Result<Done, NotLeading> {
    let settings = &context.world.settings;
    if !context.world.lists_dns_configs() && !settings.releasing {
        // One that is not known may exist: what was made for it stays.
        return Ok(Done::left_alone());
    }
    let snapshot = context.world.nameserver();
    let plan = build(&snapshot, settings);
    let executed = context.executor.execute(&plan).await?;
    let patches = status(&snapshot, &executed.applied, now);
    let failure = context.executor.write_statuses(&patches).await?;
    let executed = executed.or(failure);
    Ok(done(&plan, &executed, now))
}
