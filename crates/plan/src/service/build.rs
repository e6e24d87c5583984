//! What to do about a Service.

use jiff::Timestamp;

use super::{Exposure, Release, Validated};
use crate::egress;
use crate::identity;
use crate::plan::{ObjectRef, Plan, Step};
use crate::report::Reason;
use crate::settings::Settings;

/// Plans what is missing. The finalizer comes first, so that nothing is made that a deletion could forget, and goes last.
#[must_use]
pub fn build(validated: &Validated, settings: &Settings, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    match validated {
        Validated::Expose(exposure) => {
            expose(&mut plan, exposure, settings, now);
            egress::remove(&mut plan, &exposure.observed, settings);
        }
        Validated::Egress(outlet) => {
            expose(&mut plan, &outlet.exposure, settings, now);
            egress::lead(&mut plan, outlet, settings);
        }
        Validated::Release(release) => remove(&mut plan, release, settings, now),
        Validated::Ignore => {}
    }
    plan
}

fn expose(plan: &mut Plan, exposure: &Exposure, settings: &Settings, now: Timestamp) {
    let Exposure {
        service,
        add_finalizer,
        wanted,
        observed,
        left_out,
    } = exposure;
    set_finalizers(plan, service, add_finalizer.as_ref());
    identity::provision(plan, wanted, observed, &settings.namespace, now);
    if !left_out.is_empty() {
        plan.report.add(Reason::PortsLeftOut {
            ports: left_out.clone(),
        });
    }
}

fn remove(plan: &mut Plan, release: &Release, settings: &Settings, now: Timestamp) {
    let Release {
        service,
        remove_finalizer,
        observed,
        force,
    } = release;
    egress::remove(plan, observed, settings);
    if identity::release(plan, observed, &settings.namespace, *force, now) {
        set_finalizers(plan, service, remove_finalizer.as_ref());
    }
}

fn set_finalizers(plan: &mut Plan, service: &ObjectRef, change: Option<&(String, Vec<String>)>) {
    if let Some((resource_version, finalizers)) = change {
        plan.steps.push(Step::SetFinalizers {
            object: service.clone(),
            resource_version: resource_version.clone(),
            finalizers: finalizers.clone(),
        });
    }
}
