//! What to do about a Service.

use jiff::Timestamp;

use super::{Exposure, Validated};
use crate::egress;
use crate::identity;
use crate::plan::Plan;
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
            if let Some(target) = &outlet.leads_back {
                plan.report.add(Reason::TargetLeadsBack {
                    target: target.clone(),
                });
            }
            expose(&mut plan, &outlet.exposure, settings, now);
            egress::lead(&mut plan, outlet, settings);
        }
        Validated::Release(release) => {
            egress::remove(&mut plan, &release.observed, settings);
            release.plan(&mut plan, settings, now);
        }
        Validated::Grouped | Validated::Ignore => {}
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
    plan.set_finalizers(service, add_finalizer.as_ref());
    identity::provision(plan, wanted, observed, &settings.namespace, now);
    if !left_out.ports.is_empty() {
        plan.report.add(Reason::PortsLeftOut {
            ports: left_out.ports.clone(),
        });
    }
    if left_out.endpoints > 0 {
        plan.report.add(Reason::EndpointsLeftOut {
            count: left_out.endpoints,
        });
    }
    if left_out.sources > 0 {
        plan.report.add(Reason::SourcesLeftOut {
            count: left_out.sources,
        });
    }
}
