//! What to tell the user about an Ingress: its load balancer addresses, the condition `Accepted` of its Identity, events.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{Ingress, IngressLoadBalancerIngress};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};
use tailwharf_kube_types::contract::{PARKED_POOL, annotation};
use tailwharf_kube_types::identity::web::{HTTP_PORT, HTTPS_PORT, PlainHttp, Web};
use tailwharf_kube_types::{ConditionStatus, ConditionType, Identity, IdentityReason, conditions};

use super::validate::reference;
use super::{Problem, Snapshot, Validated};
use crate::applied::{Applied, FailureKind};
use crate::identity::only_identity;
use crate::plan::{Event, EventType, Kind, ObjectRef, Plan, Step};
use crate::settings::Settings;
use crate::status::{Status, StatusPatch, explain, left_behind, sentence};

/// Where people write the tags of an Ingress's device.
const TAGS: &str = "annotation tailscale.com/tags";
/// Problems that one condition or one look tells of.
const MAX_TOLD: usize = 16;

/// What is wrong.
struct Complaint {
    reason: &'static str,
    message: String,
    events: Vec<Event>,
}

/// Computes the status last, from what was found, planned and done.
#[must_use]
pub fn status(
    snapshot: &Snapshot,
    validated: &Validated,
    plan: &Plan,
    applied: &Applied,
    settings: &Settings,
    now: Timestamp,
) -> Status {
    let conflict = matches!(&applied.failure, Some(failure) if failure.kind == FailureKind::Conflict);
    let (Some(ingress), false) = (
        &snapshot.ingress,
        conflict || matches!(validated, Validated::Ignore),
    ) else {
        return Status::default();
    };
    let complaint = complaint(validated, applied);
    let identity = only_identity(&snapshot.observed).ok().flatten();
    let current = identity.and_then(accepted);
    let told = |complaint: &Complaint| {
        current
            .is_some_and(|current| current.reason == complaint.reason && current.message == complaint.message)
    };
    let mut events = match &complaint {
        Some(complaint) if !told(complaint) => complaint.events.clone(),
        _ => Vec::new(),
    };
    if applied.failure.is_none() {
        events.extend(left_behind(plan));
        events.extend(assumed_root(validated, plan));
        events.extend(without_certificate(validated, identity));
    }
    Status {
        patch: load_balancer_patch(snapshot, ingress, validated, identity),
        identity: identity_patch(validated, identity, complaint.as_ref(), settings, now),
        events,
    }
}

fn accepted(identity: &Identity) -> Option<&Condition> {
    identity.status.as_ref()?.condition(ConditionType::Accepted)
}

fn complaint(validated: &Validated, applied: &Applied) -> Option<Complaint> {
    let one = |reason, message: String| Complaint {
        reason,
        events: vec![warning(reason, message.clone())],
        message,
    };
    match (validated, &applied.failure) {
        (Validated::Ignore, _) | (Validated::Release(_), None) => None,
        (Validated::Release(_), Some(failure)) => {
            let message = format!(
                "The device is not removed yet. {} To give up, set annotation {}: \"true\"; the device then stays at the control server.",
                explain(failure, TAGS),
                annotation::FORCE_REMOVAL,
            );
            Some(one(failure.kind.event("ProxyFailed"), message))
        }
        (Validated::Serve(_), Some(failure)) => {
            Some(one(failure.kind.event("ProxyFailed"), explain(failure, TAGS)))
        }
        (Validated::Serve(serving), None) => problems(&serving.problems),
        (Validated::Reject(rejection), _) => problems(&rejection.problems),
    }
}

fn problems(problems: &[Problem]) -> Option<Complaint> {
    let first = problems.first()?;
    let told = problems.iter().take(MAX_TOLD);
    let sentences: Vec<_> = told
        .clone()
        .map(|problem| sentence(&problem.to_string()))
        .collect();
    let events = told
        .zip(&sentences)
        .map(|(problem, text)| warning(problem.reason(), text.clone()))
        .collect();
    Some(Complaint {
        reason: first.reason(),
        message: sentences.join(" "),
        events,
    })
}

/// Says that an empty path stands for `/`, in the plan that writes such routes for the first time.
fn assumed_root(validated: &Validated, plan: &Plan) -> Option<Event> {
    let Validated::Serve(serving) = validated else {
        return None;
    };
    let routes = |web: &Option<Web>| web.as_ref().map(|web| web.routes.clone());
    let identity = serving.observed.identities.first();
    let served = identity.and_then(|identity| routes(&identity.spec.web));
    let written = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::Apply(manifest) if manifest.object.kind == Kind::Identity));
    let news = written && served != routes(&serving.wanted.spec.web);
    (serving.assumes_root && news).then(|| Event {
        type_: EventType::Normal,
        reason: "PathUndefined",
        message: "A path under spec.rules is empty, which stands for \"/\".".to_owned(),
    })
}

/// What keeps the device from its certificate, in the words of its host, which are those of the authority.
fn without_certificate(validated: &Validated, identity: Option<&Identity>) -> Option<Event> {
    let (Validated::Serve(_), Some(status)) = (validated, &identity?.status) else {
        return None;
    };
    let reason = match status.step(ConditionType::CertificateReady) {
        (ConditionStatus::False, Some(IdentityReason::CertificatesDisabled)) => "HTTPSNotEnabled",
        (
            ConditionStatus::False,
            Some(
                reason @ (IdentityReason::CertificateRefused
                | IdentityReason::CertificateRateLimited
                | IdentityReason::CertificateAuthorityUnreachable
                | IdentityReason::DnsRecordRefused),
            ),
        ) => reason.as_str(),
        _ => return None,
    };
    let condition = status.condition(ConditionType::CertificateReady)?;
    Some(warning(reason, condition.message.clone()))
}

fn warning(reason: &'static str, message: String) -> Event {
    Event {
        type_: EventType::Warning,
        reason,
        message,
    }
}

/// The conditions that the operator keeps on the Identity: `Accepted` while something is wrong, and `Ready` in place of the host where there is none.
fn identity_patch(
    validated: &Validated,
    identity: Option<&Identity>,
    complaint: Option<&Complaint>,
    settings: &Settings,
    now: Timestamp,
) -> Option<StatusPatch> {
    let (name, parked) = match validated {
        Validated::Serve(serving) => (serving.wanted.name.clone(), false),
        Validated::Reject(rejection) => {
            let parked = identity.is_none_or(|identity| identity.spec.pool == PARKED_POOL);
            (rejection.parked.as_ref()?.name.clone(), parked)
        }
        Validated::Release(_) => (identity?.metadata.name.clone()?, false),
        Validated::Ignore => return None,
    };
    let previous = identity.and_then(|identity| Some(identity.status.as_ref()?.conditions.as_slice()));
    let previous = previous.unwrap_or_default();
    let generation = identity.and_then(|identity| identity.metadata.generation);
    let wanted = complaint.map(|complaint| {
        let make = |type_: ConditionType| {
            conditions::condition(
                type_.as_str(),
                ConditionStatus::False,
                complaint.reason,
                &complaint.message,
                generation,
                previous,
                now,
            )
        };
        let mut all = vec![make(ConditionType::Accepted)];
        all.extend(parked.then(|| make(ConditionType::Ready)));
        all
    });
    let changes = match &wanted {
        None => identity.and_then(accepted).is_some(),
        Some(wanted) => wanted.iter().any(|wanted| {
            !previous.iter().any(|current| {
                current.type_ == wanted.type_
                    && (&current.reason, &current.message) == (&wanted.reason, &wanted.message)
            })
        }),
    };
    // Without an Identity there is nothing to take back, and a plan that failed before it made one has nothing to write to.
    let exists = identity.is_some() || parked;
    (changes && exists).then(|| {
        let object = ObjectRef::new(Kind::Identity, &settings.namespace, &name);
        let status = json!({"conditions": wanted.unwrap_or_default()});
        StatusPatch::new(object, &status)
    })
}

/// The addresses of the device, once it serves them; none for an Ingress that has none any more. One that is being deleted is left as it is.
fn load_balancer_patch(
    snapshot: &Snapshot,
    ingress: &Ingress,
    validated: &Validated,
    identity: Option<&Identity>,
) -> Option<StatusPatch> {
    snapshot.living()?;
    let current = current(ingress);
    let wanted = match validated {
        Validated::Serve(_) | Validated::Reject(_) => identity.map(addresses).unwrap_or_default(),
        // What another controller has written meanwhile stays.
        Validated::Release(_) | Validated::Ignore => {
            return (!current.is_empty()).then(|| StatusPatch::new(reference(snapshot), &json!({})));
        }
    };
    let read: Vec<IngressLoadBalancerIngress> = wanted
        .iter()
        .filter_map(|entry| serde_json::from_value(entry.clone()).ok())
        .collect();
    (read != current)
        .then(|| StatusPatch::new(reference(snapshot), &json!({"loadBalancer": {"ingress": wanted}})))
}

fn current(ingress: &Ingress) -> Vec<IngressLoadBalancerIngress> {
    let entries = || {
        let balancer = ingress.status.as_ref()?.load_balancer.as_ref()?;
        balancer.ingress.clone()
    };
    entries().unwrap_or_default()
}

/// The device's name with the ports that it serves, and, if it serves domains of its owner, its addresses for their DNS records.
fn addresses(identity: &Identity) -> Vec<Value> {
    let (Some(web), Some(status)) = (&identity.spec.web, &identity.status) else {
        return Vec::new();
    };
    let ports = ports(identity, web);
    let (Some(fqdn), false) = (&status.fqdn, ports.is_empty()) else {
        return Vec::new();
    };
    let ports: Vec<Value> = ports
        .into_iter()
        .map(|port| json!({"port": port, "protocol": "TCP"}))
        .collect();
    let name = json!({"hostname": fqdn.trim_end_matches('.'), "ports": ports});
    let own_domains = web.hosts.iter().any(|host| host.certificate.is_some());
    let ips = status.addresses.iter().filter(|_| own_domains);
    let ips = ips.map(|ip| json!({"ip": ip.to_string(), "ports": ports}));
    [name].into_iter().chain(ips).collect()
}

/// HTTPS needs its certificate; a redirection to it makes no sense without.
fn ports(identity: &Identity, web: &Web) -> Vec<u16> {
    let step = identity
        .status
        .as_ref()
        .map(|status| status.step(ConditionType::CertificateReady));
    let https = step.is_some_and(|(status, _)| status == ConditionStatus::True);
    let http = match web.http {
        PlainHttp::Closed => false,
        PlainHttp::Redirect => https,
        PlainHttp::Serve => true,
    };
    [(https, HTTPS_PORT), (http, HTTP_PORT)]
        .into_iter()
        .filter_map(|(open, port)| open.then_some(port))
        .collect()
}
