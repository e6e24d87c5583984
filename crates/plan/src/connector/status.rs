//! What to tell the user about a Connector.

use std::collections::BTreeSet;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};
use tailwharf_kube_types::connector::{ConnectorDevice, ConnectorSpec, ConnectorStatus};
use tailwharf_kube_types::contract::{CONNECTOR_READY, ROUTES_APPROVED, ROUTES_OVERLAP, annotation};
use tailwharf_kube_types::{ConditionStatus, Connector, Identity, IdentityReason};

use super::{Problem, Serving, Snapshot, Validated};
use crate::applied::{Applied, FailureKind};
use crate::class::ClassProblem;
use crate::identity::{is_step, waits_for};
use crate::plan::{Event, Plan};
use crate::report::Reason;
use crate::status::{Status, StatusPatch, Verdict, explain, left_behind, sentence, sentences};

/// Where people write the tags of a Connector's devices.
const TAGS: &str = "spec.tags";
/// How many networks a message names.
const NAMED: usize = 8;

/// Whether the Connector is an exit node by its own field.
pub(super) fn is_exit_node(spec: &ConnectorSpec) -> bool {
    spec.exit_node == Some(true)
}

/// Computes the status last, from what was found, planned and done.
#[must_use]
pub fn status(
    snapshot: &Snapshot,
    validated: &Result<Validated, Vec<Problem>>,
    plan: &Plan,
    applied: &Applied,
    now: Timestamp,
) -> Status {
    let Some(connector) = &snapshot.connector else {
        return Status::default();
    };
    let conflict = matches!(&applied.failure, Some(failure) if failure.kind == FailureKind::Conflict);
    if conflict || is_gone(validated, plan, applied) {
        return Status {
            patch: None,
            identity: None,
            events: left_behind(plan).collect(),
        };
    }
    let verdicts = verdicts(snapshot, validated, plan, applied);
    let mut events: Vec<Event> = verdicts
        .iter()
        .filter_map(|(type_, verdict)| verdict.news(snapshot.condition(type_)))
        .collect();
    if applied.failure.is_none() {
        events.extend(left_behind(plan));
    }
    let patch = patch(snapshot, connector, &verdicts, now);
    Status {
        patch,
        identity: None,
        events,
    }
}

/// Whether the Connector disappeared with the finalizer that the plan removed, or never had one.
fn is_gone(validated: &Result<Validated, Vec<Problem>>, plan: &Plan, applied: &Applied) -> bool {
    let finished = applied.failure.is_none() && applied.done == plan.steps.len();
    match validated {
        Ok(Validated::Release(release)) => {
            finished && (release.remove_finalizer.is_none() || plan.sets_finalizers())
        }
        Ok(Validated::Ignore) => true,
        Ok(Validated::Serve(_)) | Err(_) => false,
    }
}

/// What the conditions are to say, by type.
fn verdicts(
    snapshot: &Snapshot,
    validated: &Result<Validated, Vec<Problem>>,
    plan: &Plan,
    applied: &Applied,
) -> Vec<(&'static str, Verdict)> {
    let failure = applied.failure.as_ref();
    match validated {
        Err(problems) => vec![(CONNECTOR_READY, refused(problems))],
        Ok(Validated::Serve(serving)) => {
            let ready = match failure {
                Some(failure) => failed(&failure.kind, explain(failure, TAGS)),
                None => progress(snapshot, serving, plan),
            };
            let approved = approved(snapshot, serving).map(|verdict| (ROUTES_APPROVED, verdict));
            let overlap = overlap(serving).map(|verdict| (ROUTES_OVERLAP, verdict));
            [(CONNECTOR_READY, ready)]
                .into_iter()
                .chain(approved)
                .chain(overlap)
                .collect()
        }
        Ok(Validated::Release(_)) => {
            let verdict = match failure {
                Some(failure) => {
                    let hint = format!(
                        "The devices are not removed yet. {} To give up, set annotation {}: \"true\"; the devices then stay at the control server.",
                        explain(failure, TAGS),
                        annotation::FORCE_REMOVAL,
                    );
                    failed(&failure.kind, hint)
                }
                None => pending("Removing the devices.".to_owned()),
            };
            vec![(CONNECTOR_READY, verdict)]
        }
        Ok(Validated::Ignore) => Vec::new(),
    }
}

fn pending(message: String) -> Verdict {
    Verdict {
        status: ConditionStatus::False,
        reason: "ConnectorCreating",
        message,
        event: None,
    }
}

fn failed(kind: &FailureKind, message: String) -> Verdict {
    Verdict {
        status: ConditionStatus::False,
        reason: "ConnectorCreationFailed",
        message,
        event: Some(kind.event("ConnectorCreationFailed")),
    }
}

/// A class that is not there yet is waited for; everything else is for the user to change.
fn refused(problems: &[Problem]) -> Verdict {
    let message = sentences(problems);
    match problems {
        [Problem::Class(ClassProblem::NotReady { .. })] => pending(message),
        [Problem::Class(ClassProblem::Missing { .. })] => Verdict {
            status: ConditionStatus::False,
            reason: "ConnectorCreationFailed",
            message,
            event: Some("ConnectorCreationFailed"),
        },
        _ => Verdict {
            status: ConditionStatus::False,
            reason: "ConnectorInvalid",
            message,
            event: Some("ConnectorInvalid"),
        },
    }
}

/// How far the devices are.
fn progress(snapshot: &Snapshot, serving: &Serving, plan: &Plan) -> Verdict {
    let wanted = serving.devices.len();
    let Some(waiting) = plan.report.iter().find(|reason| is_step(reason)) else {
        return Verdict {
            status: ConditionStatus::True,
            reason: "ConnectorCreated",
            message: match wanted {
                0 => "No device, since spec.replicas is 0.".to_owned(),
                _ => format!("On the tailnet as {}.", names(snapshot, serving)),
            },
            event: None,
        };
    };
    let rejected = matches!(
        waiting,
        Reason::IdentityNotReady {
            reason: Some(IdentityReason::AuthKeyRejected | IdentityReason::ControlServerRefused),
            ..
        }
    );
    let message = match wanted {
        1 => waiting.to_string(),
        _ => {
            let ready = identities(snapshot, serving)
                .filter(|identity| waits_for(identity).is_none())
                .count();
            format!("{ready} of {wanted} devices are ready. {waiting}")
        }
    };
    if rejected {
        Verdict {
            status: ConditionStatus::False,
            reason: "ConnectorCreationFailed",
            message,
            event: Some("AuthKeyRejected"),
        }
    } else {
        pending(message)
    }
}

/// Whether the tailnet lets the devices route what they advertise. `None`: there is nothing to route, or no device told yet.
fn approved(snapshot: &Snapshot, serving: &Serving) -> Option<Verdict> {
    let advertised = &serving.router.routes;
    if advertised.is_empty() {
        return None;
    }
    let told = || identities(snapshot, serving).filter(|identity| waits_for(identity).is_none());
    told().next()?;
    let missing: BTreeSet<&IpNet> = advertised
        .iter()
        .filter(|route| told().any(|identity| !routes_of(identity).contains(route)))
        .collect();
    if missing.is_empty() {
        return Some(Verdict {
            status: ConditionStatus::True,
            reason: "RoutesApproved",
            message: format!("The tailnet routes {} here.", list(advertised.iter())),
            event: None,
        });
    }
    let message = format!(
        "The tailnet does not route {} here yet: approve it in the console of the control server, or name it under autoApprovers of the policy.",
        list(advertised.iter().filter(|route| missing.contains(route))),
    );
    Some(Verdict {
        status: ConditionStatus::False,
        reason: "RoutesPending",
        message,
        event: Some("RoutesPending"),
    })
}

fn overlap(serving: &Serving) -> Option<Verdict> {
    if serving.overlaps.is_empty() {
        return None;
    }
    let found: Vec<String> = serving
        .overlaps
        .iter()
        .take(NAMED)
        .map(ToString::to_string)
        .collect();
    let message = format!(
        "{} Peers find this cluster there, whatever else the network has at these addresses. Advertise narrower networks, or give the network \
         addresses of its own by a 4via6 route.",
        sentence(&found.join("; ")),
    );
    Some(Verdict {
        status: ConditionStatus::True,
        reason: "RoutesOverlapCluster",
        message,
        event: Some("RoutesOverlapCluster"),
    })
}

/// Items as a text, and how many are left out of it.
fn list(items: impl Iterator<Item = impl ToString>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    match items.len().checked_sub(NAMED) {
        None | Some(0) => items.join(", "),
        Some(more) => format!("{} and {more} more", items[..NAMED].join(", ")),
    }
}

/// The Identities of the wanted devices, in the order of their ordinals.
fn identities<'a>(snapshot: &'a Snapshot, serving: &'a Serving) -> impl Iterator<Item = &'a Identity> {
    serving.devices.iter().filter_map(|device| {
        snapshot
            .observed
            .identities
            .iter()
            .find(|identity| identity.metadata.name.as_ref() == Some(&device.name))
    })
}

fn routes_of(identity: &Identity) -> &[IpNet] {
    identity
        .status
        .as_ref()
        .map(|status| status.routes.as_slice())
        .unwrap_or_default()
}

fn names(snapshot: &Snapshot, serving: &Serving) -> String {
    list(identities(snapshot, serving).filter_map(|identity| identity.status.as_ref()?.fqdn.as_deref()))
}

/// The devices that are on the tailnet.
fn devices(snapshot: &Snapshot) -> Vec<ConnectorDevice> {
    let mut known: Vec<&Identity> = snapshot.observed.identities.iter().collect();
    known.sort_by_key(|identity| ordinal(identity));
    let device = |identity: &Identity| {
        let status = identity.status.as_ref()?;
        let fqdn = status.fqdn.as_ref()?;
        Some(ConnectorDevice {
            hostname: Some(fqdn.trim_end_matches('.').to_owned()),
            tailnet_ips: Some(status.addresses.iter().map(ToString::to_string).collect()),
        })
    };
    known.into_iter().filter_map(device).collect()
}

/// The number at the end of an Identity's name.
fn ordinal(identity: &Identity) -> Option<u32> {
    let name = identity.metadata.name.as_deref()?;
    name.rsplit_once('-')?.1.parse().ok()
}

fn patch(
    snapshot: &Snapshot,
    connector: &Connector,
    verdicts: &[(&'static str, Verdict)],
    now: Timestamp,
) -> Option<StatusPatch> {
    let spec = &connector.spec;
    let devices = devices(snapshot);
    let first = devices.first().cloned().unwrap_or_default();
    let previous = snapshot.conditions();
    let conditions = verdicts
        .iter()
        .map(|(type_, verdict)| verdict.condition(type_, connector.metadata.generation, previous, now))
        .collect();
    let routes = spec
        .subnet_router
        .as_ref()
        .map(|router| router.advertise_routes.join(","));
    let wanted = ConnectorStatus {
        conditions: Some(conditions),
        subnet_routes: Some(routes.unwrap_or_default()),
        is_exit_node: Some(is_exit_node(spec)),
        is_app_connector: Some(spec.app_connector.is_some()),
        tailnet_ips: first.tailnet_ips,
        hostname: first.hostname,
        devices: Some(devices),
    };
    let status = json!(wanted);
    if connector
        .status
        .as_ref()
        .is_some_and(|current| same(current, &status))
    {
        return None;
    }
    Some(StatusPatch::new(snapshot.reference(), &status))
}

/// Whether the status says this already. Conditions of other types are somebody else's, unless they are ours and not wanted any more.
fn same(current: &ConnectorStatus, wanted: &Value) -> bool {
    let ours = [CONNECTOR_READY, ROUTES_APPROVED, ROUTES_OVERLAP];
    let mut current = current.clone();
    if let Some(conditions) = &mut current.conditions {
        conditions.retain(|condition| ours.contains(&condition.type_.as_str()));
        conditions.sort_by_key(|condition| ours.iter().position(|type_| *type_ == condition.type_));
    }
    json!(current) == *wanted
}
