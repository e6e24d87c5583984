//! Services that stand for something on the tailnet: `tailscale.com/tailnet-fqdn` and `tailscale.com/tailnet-ip`.
//!
//! ```text
//! pod ─► user's Service (ExternalName) ─► Service of the identity's name ─► EndpointSlices: the hosting pod, at ports of this identity ─► target
//! ```
//!
//! The stages of [`crate::service`] call those here: [`validate`] says what the Service asks for, [`lead`] what leads pods to the identity, and
//! [`remove`] takes that away.

mod loops;
mod objects;
mod ports;
mod sources;
mod validate;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use tailwharf_kube_types::{ConditionStatus, ConditionType, Identity, Target};

use crate::diff;
use crate::identity::Observed;
use crate::plan::{Kind, Manifest, ObjectRef, Plan, Step};
use crate::service::Exposure;
use crate::settings::Settings;

pub use loops::backends;
pub use ports::PortsInUse;
pub use sources::{Pod, Pods};
pub(crate) use validate::{demand, validate};

/// What leads pods of the cluster to one identity.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Services with the parent's labels in the operator's namespace.
    pub services: Vec<Service>,
    /// EndpointSlices likewise.
    pub slices: Vec<EndpointSlice>,
}

impl Objects {
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.slices.is_empty()
    }
}

/// A Service that is to stand for something on the tailnet.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// The identity that goes there.
    pub exposure: Exposure,
    /// What `spec` of the user's Service says: `type`, `externalName` and whether there is a selector, as it has to be.
    pub is_led: bool,
    /// The target that leads back to the Service, if one does. Nobody is let in then.
    pub leads_back: Option<Target>,
}

impl Outlet {
    /// The name by which pods reach the identity.
    pub(crate) fn external_name(&self, settings: &Settings) -> String {
        external_name(&self.exposure.wanted.name, settings)
    }
}

/// The name by which pods reach what an identity leads to.
#[must_use]
pub fn external_name(identity: &str, settings: &Settings) -> String {
    format!(
        "{identity}.{}.svc.{}",
        settings.namespace, settings.cluster_domain
    )
}

/// Plans what leads pods to the identity: its Service, the EndpointSlices, and the user's Service.
pub(crate) fn lead(plan: &mut Plan, outlet: &Outlet, settings: &Settings) {
    let Exposure {
        service,
        wanted,
        observed,
        ..
    } = &outlet.exposure;
    let Some(egress) = &wanted.spec.egress else {
        return;
    };
    let frame = objects::Frame::new(wanted, egress, &settings.namespace);
    let existing = observed
        .egress
        .services
        .iter()
        .find(|service| service.metadata.name.as_ref() == Some(&wanted.name));
    // Whether a Service has an address cannot be changed.
    let is_headless = |service: &&Service| {
        service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
    };
    let stale = existing.filter(|service| is_headless(service) != egress.all_ports);
    if let Some(service) = stale {
        plan.steps.push(delete_service(service, settings));
    }
    let existing = existing.filter(|_| stale.is_none());
    apply(
        plan,
        frame.service(),
        existing.map(|service| json!(service)).as_ref(),
    );

    let families = existing.and_then(|service| service.spec.as_ref()?.ip_families.clone());
    let host = host(observed, &wanted.name);
    let wanted_slices: Vec<Manifest> = families
        .unwrap_or_default()
        .iter()
        .map(|family| frame.endpoint_slice(family == "IPv6", host.as_ref()))
        .collect();
    let mut left: BTreeMap<&str, &EndpointSlice> = observed
        .egress
        .slices
        .iter()
        .filter_map(|slice| Some((slice.metadata.name.as_deref()?, slice)))
        .collect();
    for manifest in wanted_slices {
        let existing = left
            .remove(manifest.object.name.as_str())
            .map(|slice| json!(slice));
        apply(plan, manifest, existing.as_ref());
    }
    if existing.is_some() {
        plan.steps
            .extend(left.values().map(|slice| delete_slice(slice, settings)));
    }

    if !outlet.is_led {
        plan.steps.push(Step::SetExternalName {
            object: service.clone(),
            external_name: outlet.external_name(settings),
        });
    }
}

/// Plans the removal of what leads pods to the identity.
pub(crate) fn remove(plan: &mut Plan, observed: &Observed, settings: &Settings) {
    let Objects { services, slices } = &observed.egress;
    plan.steps
        .extend(services.iter().map(|service| delete_service(service, settings)));
    plan.steps
        .extend(slices.iter().map(|slice| delete_slice(slice, settings)));
}

fn delete_service(service: &Service, settings: &Settings) -> Step {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    Step::Delete {
        object: ObjectRef::new(Kind::Service, &settings.namespace, name),
        uid: service.metadata.uid.clone(),
    }
}

fn delete_slice(slice: &EndpointSlice, settings: &Settings) -> Step {
    let name = slice.metadata.name.as_deref().unwrap_or_default();
    Step::Delete {
        object: ObjectRef::new(Kind::EndpointSlice, &settings.namespace, name),
        uid: slice.metadata.uid.clone(),
    }
}

fn apply(plan: &mut Plan, manifest: Manifest, observed: Option<&serde_json::Value>) {
    let body = diff::stamp(manifest.body);
    if observed.is_none_or(|observed| diff::differs(&body, observed)) {
        plan.steps.push(Step::Apply(Manifest { body, ..manifest }));
    }
}

/// The pod at which the identity can be reached now. A target that does not answer is no reason to keep pods from it: it refuses them at once, and
/// knows first when that ends.
fn host(observed: &Observed, name: &str) -> Option<objects::Host> {
    let is_named = |identity: &&Identity| identity.metadata.name.as_deref() == Some(name);
    let status = observed.identities.iter().find(is_named)?.status.as_ref()?;
    let (advertised, _) = status.step(ConditionType::Advertised);
    (advertised == ConditionStatus::True).then_some(())?;
    Some(objects::Host {
        pod: status.host.clone()?,
        addresses: status.host_addresses.clone(),
    })
}
