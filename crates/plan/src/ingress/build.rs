//! What to do about an Ingress.

use jiff::Timestamp;
use tailwharf_kube_types::Identity;
use tailwharf_kube_types::names::certificates_name;

use super::{Rejection, Serving, Validated};
use crate::identity::{self, Observed};
use crate::plan::{Kind, ObjectRef, Plan, Step};
use crate::report::Reason;
use crate::settings::Settings;

/// Plans what is missing. The finalizer comes first, so that nothing is made that a deletion could forget, and goes last.
#[must_use]
pub fn build(validated: &Validated, settings: &Settings, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    match validated {
        Validated::Serve(serving) => serve(&mut plan, serving, settings, now),
        Validated::Reject(rejection) => park(&mut plan, rejection, settings),
        Validated::Release(release) => release.plan(&mut plan, settings, now),
        Validated::Ignore => {}
    }
    plan
}

fn serve(plan: &mut Plan, serving: &Serving, settings: &Settings, now: Timestamp) {
    let Serving {
        ingress,
        add_finalizer,
        wanted,
        observed,
        copies,
        certificate_ends,
        endpoints_left_out,
        problems,
        assumes_root: _,
    } = serving;
    plan.set_finalizers(ingress, add_finalizer.as_ref());
    // Certificates are there before the Identity names them, and go after its host has let them go.
    let certificates = ObjectRef::new(
        Kind::Secret,
        &settings.namespace,
        &certificates_name(&wanted.name),
    );
    let names: Vec<&str> = used_certificates(serving).collect();
    if !names.is_empty() {
        plan.steps.extend(identity::certificates_secret(
            wanted,
            observed,
            &settings.namespace,
        ));
    }
    plan.steps.extend(copies.iter().map(|copy| Step::CopyCertificate {
        from: ObjectRef::new(Kind::Secret, &ingress.namespace, &copy.secret),
        resource_version: copy.resource_version.clone(),
        to: certificates.clone(),
        certificate: copy.certificate.clone(),
    }));
    identity::provision(plan, wanted, observed, &settings.namespace, now);
    if took_over(serving) {
        drop_certificates(plan, &certificates, observed, &names);
    }
    if let Some(end) = certificate_ends {
        plan.wake(*end);
    }
    if *endpoints_left_out > 0 {
        plan.report.add(Reason::EndpointsLeftOut {
            count: *endpoints_left_out,
        });
    }
    if !problems.is_empty() {
        plan.report.add(Reason::PartsLeftOut {
            count: problems.len(),
        });
    }
}

fn used_certificates(serving: &Serving) -> impl Iterator<Item = &str> {
    let web = serving.wanted.spec.web.iter();
    web.flat_map(|web| &web.hosts)
        .filter_map(|host| host.certificate.as_deref())
}

/// Whether the host serves what is wanted now.
fn took_over(serving: &Serving) -> bool {
    let Serving { wanted, observed, .. } = serving;
    let identity = observed
        .identities
        .iter()
        .find(|identity| identity.spec == wanted.spec);
    let is_current = |identity: &Identity| {
        let observed = identity
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        observed.is_some() && observed == identity.metadata.generation
    };
    identity.is_some_and(is_current)
}

/// Removes the certificates that are not used any more.
fn drop_certificates(plan: &mut Plan, object: &ObjectRef, observed: &Observed, used: &[&str]) {
    let Some(secret) = observed.secrets.iter().find(|secret| secret.name == object.name) else {
        return;
    };
    if used.is_empty() {
        plan.steps.push(Step::Delete {
            object: object.clone(),
            uid: Some(secret.uid.clone()).filter(|uid| !uid.is_empty()),
        });
        return;
    }
    let unused = secret
        .certificates
        .iter()
        .filter(|name| !used.contains(&name.as_str()));
    let certificates: Vec<String> = unused.cloned().collect();
    if !certificates.is_empty() {
        plan.steps.push(Step::DropCertificates {
            from: object.clone(),
            certificates,
        });
    }
}

/// Makes an Identity that nobody hosts, so that there is a place for what is wrong. A device that exists stays as it is.
fn park(plan: &mut Plan, rejection: &Rejection, settings: &Settings) {
    if let Some(parked) = &rejection.parked {
        identity::park(plan, parked, &rejection.observed, &settings.namespace);
    }
    plan.report.add(Reason::Rejected);
}
