//! What to tell the user about a Service: its condition, its load balancer addresses, events.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use serde_json::{Value, json};
use tailwharf_kube_types::contract::{PROXY_READY, annotation};
use tailwharf_kube_types::{ConditionStatus, Identity, IdentityReason, Refusal};

use super::validate::is_load_balancer;
use super::{Problem, Snapshot, Validated};
use crate::applied::{Applied, Failure, FailureKind};
use crate::class::ClassProblem;
use crate::egress;
use crate::endpoints::cluster_ips;
use crate::identity::{is_step, only_identity};
use crate::plan::{Event, EventType, Kind, ObjectRef, Plan};
use crate::report::Reason;
use crate::settings::Settings;
use crate::status::{Status, StatusPatch, Verdict, explain, left_behind, sentences};

/// What was refused before is not told again, though it is still in the status.
const REFUSED_LATELY: SignedDuration = SignedDuration::from_mins(10);
/// Where people write the tags of a Service's device.
const TAGS: &str = "annotation tailscale.com/tags";

/// Computes the status last, from what was found, planned and done.
#[must_use]
pub fn status(
    snapshot: &Snapshot,
    validated: &Result<Validated, Vec<Problem>>,
    plan: &Plan,
    applied: &Applied,
    settings: &Settings,
    now: Timestamp,
) -> Status {
    let Some(service) = &snapshot.service else {
        return Status::default();
    };
    if let Some(Failure {
        kind: FailureKind::Conflict,
        ..
    }) = &applied.failure
    {
        return Status::default();
    }
    let verdict = verdict(snapshot, validated, plan, applied, settings);
    let mut events: Vec<Event> = verdict
        .iter()
        .filter_map(|verdict| verdict.news(snapshot.condition()))
        .collect();
    if applied.failure.is_none() {
        events.extend(left_behind(plan));
    }
    if matches!(validated, Ok(Validated::Egress(_))) {
        events.extend(refusals(snapshot, now));
    }
    let patch = if matches!(validated, Ok(Validated::Ignore)) || is_gone(snapshot, validated, plan, applied) {
        None
    } else {
        patch(snapshot, service, verdict.as_ref(), settings, now)
    };
    Status {
        patch,
        identity: None,
        events,
    }
}

/// Tells of pods that were refused lately. The same pod is told again only after a while, see the operator's events.
fn refusals(snapshot: &Snapshot, now: Timestamp) -> impl Iterator<Item = Event> {
    let status = current_identity(snapshot).and_then(|identity| identity.status.as_ref());
    let refused = status.into_iter().flat_map(|status| &status.refused);
    let recent = refused.filter(move |refusal| now.duration_since(refusal.at.0) < REFUSED_LATELY);
    recent.map(|Refusal { address, .. }| {
        let pod = snapshot.pods.as_ref().and_then(|pods| pods.with(*address));
        let who = pod.map_or_else(
            || format!("{address}, which is the address of no pod,"),
            |pod| format!("Pod {}/{} ({address})", pod.namespace, pod.name),
        );
        Event {
            type_: EventType::Warning,
            reason: "EgressRefused",
            message: format!(
                "{who} may not use this Service. To allow it, change annotation {}.",
                annotation::EGRESS_FROM
            ),
        }
    })
}

/// Whether the Service disappeared with the finalizer that the plan removed.
fn is_gone(
    snapshot: &Snapshot,
    validated: &Result<Validated, Vec<Problem>>,
    plan: &Plan,
    applied: &Applied,
) -> bool {
    let finished = applied.failure.is_none() && applied.done == plan.steps.len();
    match validated {
        Ok(Validated::Release(release)) => {
            snapshot.living().is_none()
                && finished
                && (release.remove_finalizer.is_none() || plan.sets_finalizers())
        }
        Ok(Validated::Expose(_) | Validated::Egress(_) | Validated::Grouped | Validated::Ignore) | Err(_) => {
            false
        }
    }
}

/// What the condition is to say; `None`: there is to be none.
fn verdict(
    snapshot: &Snapshot,
    validated: &Result<Validated, Vec<Problem>>,
    plan: &Plan,
    applied: &Applied,
    settings: &Settings,
) -> Option<Verdict> {
    match validated {
        Err(problems) => Some(refused(problems)),
        Ok(Validated::Ignore) => None,
        Ok(Validated::Grouped) => Some(Verdict {
            status: ConditionStatus::False,
            reason: "ProxyPending",
            message: format!(
                "Left to the operator that serves its ProxyGroup. For a device of its own, remove annotation {}.",
                annotation::PROXY_GROUP
            ),
            event: None,
        }),
        Ok(Validated::Expose(_) | Validated::Egress(_)) => Some(match &applied.failure {
            Some(failure) => failed(failure, &explain(failure, TAGS)),
            None => progress(snapshot, plan, settings),
        }),
        Ok(Validated::Release(release)) => match &applied.failure {
            Some(failure) => {
                let hint = format!(
                    "The device is not removed yet. {} To give up, set annotation {}: \"true\"; the device then stays at the control server.",
                    explain(failure, TAGS),
                    annotation::FORCE_REMOVAL,
                );
                Some(failed(failure, &hint))
            }
            None if release.remove_finalizer.is_some() && !plan.sets_finalizers() => Some(Verdict {
                status: ConditionStatus::False,
                reason: "ProxyPending",
                message: "Removing the device.".to_owned(),
                event: None,
            }),
            None => None,
        },
    }
}

/// A class that is not there yet is waited for; everything else is for the user to change.
fn refused(problems: &[Problem]) -> Verdict {
    let (reason, event) = match problems {
        [Problem::Class(ClassProblem::NotReady { .. }) | Problem::PodsUnknown] => ("ProxyPending", None),
        [Problem::Class(ClassProblem::Missing { .. })] => ("ProxyFailed", Some("ProxyFailed")),
        _ => ("ProxyInvalid", Some("INVALIDSERVICE")),
    };
    Verdict {
        status: ConditionStatus::False,
        reason,
        message: sentences(problems),
        event,
    }
}

fn failed(failure: &Failure, message: &str) -> Verdict {
    Verdict {
        status: ConditionStatus::False,
        reason: "ProxyFailed",
        message: message.to_owned(),
        event: Some(failure.kind.event("ProxyFailed")),
    }
}

/// How far the device is, from the plan's report.
fn progress(snapshot: &Snapshot, plan: &Plan, settings: &Settings) -> Verdict {
    let notes = plan.report.iter().filter(|reason| {
        matches!(
            reason,
            Reason::PortsLeftOut { .. } | Reason::EndpointsLeftOut { .. } | Reason::SourcesLeftOut { .. }
        )
    });
    let with_note = |text: String| notes.fold(text, |text, note| format!("{text} {note}"));
    let waiting = plan.report.iter().find(|reason| is_step(reason));
    let Some(waiting) = waiting else {
        let text = current_identity(snapshot).map_or_else(
            || "Reachable on the tailnet.".to_owned(),
            |identity| success(identity, settings),
        );
        return Verdict {
            status: ConditionStatus::True,
            reason: "ProxyCreated",
            message: with_note(text),
            event: None,
        };
    };
    let (reason, event) = match waiting {
        Reason::IdentityNotReady {
            reason: Some(reason), ..
        } => trouble(*reason),
        Reason::TargetLeadsBack { .. } => ("ProxyFailed", Some("TargetLeadsBack")),
        _ => ("ProxyPending", None),
    };
    Verdict {
        status: ConditionStatus::False,
        reason,
        message: with_note(waiting.to_string()),
        event,
    }
}

/// What a device that is ready does for people.
fn success(identity: &Identity, settings: &Settings) -> String {
    if let Some(egress) = &identity.spec.egress {
        let targets: Vec<_> = egress.targets.iter().map(ToString::to_string).collect();
        let name = identity.metadata.name.as_deref().unwrap_or_default();
        return format!(
            "Pods reach {} by the name of this Service, which stands for {}.",
            targets.join(", "),
            egress::external_name(name, settings)
        );
    }
    let name = identity.status.as_ref().and_then(|status| status.fqdn.clone());
    name.map_or_else(
        || "Reachable on the tailnet.".to_owned(),
        |name| format!("Reachable as {name}."),
    )
}

/// The condition's reason while a device is not ready, and the event that tells of it if someone has to do something.
const fn trouble(reason: IdentityReason) -> (&'static str, Option<&'static str>) {
    match reason {
        IdentityReason::AuthKeyRejected | IdentityReason::ControlServerRefused => {
            ("ProxyFailed", Some("AuthKeyRejected"))
        }
        IdentityReason::TargetUnknown
        | IdentityReason::TargetOffline
        | IdentityReason::TargetDenied
        | IdentityReason::TargetRefused
        | IdentityReason::TargetTimeout => ("ProxyPending", Some(reason.as_str())),
        IdentityReason::TargetIsSelf => ("ProxyFailed", Some(reason.as_str())),
        _ => ("ProxyPending", None),
    }
}

fn patch(
    snapshot: &Snapshot,
    service: &Service,
    verdict: Option<&Verdict>,
    settings: &Settings,
    now: Timestamp,
) -> Option<StatusPatch> {
    let current = snapshot.condition();
    let ingress = verdict.and_then(|_| load_balancer(snapshot, service, settings));
    let same_condition = match (verdict, current) {
        (Some(verdict), Some(current)) => verdict.is_told(current),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    let same_ingress = ingress
        .as_ref()
        .is_none_or(|wanted| *wanted == current_ingress(service));
    if same_condition && same_ingress {
        return None;
    }
    let object = ObjectRef::new(Kind::Service, &snapshot.namespace, &snapshot.name);
    let mut status = json!({});
    if let Some(verdict) = verdict {
        let previous = current.map(std::slice::from_ref).unwrap_or_default();
        status["conditions"] = json!([verdict.condition(PROXY_READY, None, previous, now)]);
    }
    if let Some(ingress) = ingress {
        status["loadBalancer"] = json!({"ingress": ingress.iter().map(Ingress::to_json).collect::<Vec<_>>()});
    }
    Some(StatusPatch::new(object, &status))
}

/// One entry of `status.loadBalancer.ingress`.
#[derive(PartialEq)]
enum Ingress {
    Hostname(String),
    Ip(String),
}

impl Ingress {
    fn to_json(&self) -> Value {
        match self {
            Self::Hostname(name) => json!({"hostname": name}),
            Self::Ip(ip) => json!({"ip": ip}),
        }
    }
}

fn current_ingress(service: &Service) -> Vec<Ingress> {
    let entries = || service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref();
    let read = |entry: &LoadBalancerIngress| match (&entry.hostname, &entry.ip) {
        (Some(name), _) => Some(Ingress::Hostname(name.clone())),
        (None, Some(ip)) => Some(Ingress::Ip(ip.clone())),
        (None, None) => None,
    };
    entries().into_iter().flatten().filter_map(read).collect()
}

/// Name of the device, and its addresses of the families of the Service's cluster addresses. `None` if the Service is no load balancer of ours.
fn load_balancer(snapshot: &Snapshot, service: &Service, settings: &Settings) -> Option<Vec<Ingress>> {
    let spec = service
        .spec
        .as_ref()
        .filter(|spec| is_load_balancer(spec, settings))?;
    let Some(status) = current_identity(snapshot).and_then(|identity| identity.status.as_ref()) else {
        return Some(Vec::new());
    };
    let Some(name) = &status.fqdn else {
        return Some(Vec::new());
    };
    let cluster: Vec<IpAddr> = cluster_ips(spec)
        .iter()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let same_family = |ip: &&IpAddr| cluster.iter().any(|cluster| cluster.is_ipv4() == ip.is_ipv4());
    let ips = status
        .addresses
        .iter()
        .filter(same_family)
        .map(|ip| Ingress::Ip(ip.to_string()));
    Some(
        [Ingress::Hostname(name.trim_end_matches('.').to_owned())]
            .into_iter()
            .chain(ips)
            .collect(),
    )
}

fn current_identity(snapshot: &Snapshot) -> Option<&Identity> {
    only_identity(&snapshot.observed).ok().flatten()
}
