//! What to do about a Connector.

use jiff::Timestamp;

use super::{Serving, Validated};
use crate::identity;
use crate::plan::Plan;
use crate::settings::Settings;

/// Plans what is missing. The finalizer comes first, so that nothing is made that a deletion could forget, and goes last.
#[must_use]
pub fn build(validated: &Validated, settings: &Settings, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    match validated {
        Validated::Serve(serving) => serve(&mut plan, serving, settings, now),
        Validated::Release(release) => release.plan(&mut plan, settings, now),
        Validated::Ignore => {}
    }
    plan
}

fn serve(plan: &mut Plan, serving: &Serving, settings: &Settings, now: Timestamp) {
    plan.set_finalizers(&serving.connector, serving.add_finalizer.as_ref());
    for device in &serving.devices {
        identity::provision(plan, device, &serving.observed, &settings.namespace, now);
    }
    identity::release(plan, &serving.surplus, &settings.namespace, false, now);
}
