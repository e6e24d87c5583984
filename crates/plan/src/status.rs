//! What every kind tells its users in the same words.

use serde::Serialize;
use serde_json::Value;
use tailwharf_kube_types::contract::annotation;
use tailwharf_kube_types::values;

use crate::applied::{Failure, FailureKind};
use crate::plan::{Event, EventType, ObjectRef, Plan};
use crate::report::Reason;

/// What to tell the user about an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// The change of its status, if there is one.
    pub patch: Option<StatusPatch>,
    /// The change of the conditions that the operator keeps on its Identity, for kinds that have no conditions of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<StatusPatch>,
    /// Events on it. They tell of changes, so a plan that changes nothing has none.
    pub events: Vec<Event>,
}

/// A server-side apply of the status subresource by the operator's field manager.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatusPatch {
    /// Whose status.
    pub object: ObjectRef,
    /// The fields to apply.
    pub body: Value,
}

/// Reason of the event that tells of a failure.
pub(crate) const fn event_reason(kind: &FailureKind) -> &'static str {
    match kind {
        FailureKind::AuthKeyRefused { .. } => "AuthKeyRefused",
        FailureKind::ControlServerRefused => "ControlServerRefused",
        FailureKind::ControlServerUnreachable => "ControlServerUnreachable",
        FailureKind::NameTaken => "NameTaken",
        FailureKind::Conflict | FailureKind::ClusterRefused | FailureKind::ClusterUnreachable => {
            "ProxyFailed"
        }
    }
}

/// What a failure means and what to do about it.
pub(crate) fn explain(failure: &Failure) -> String {
    let said = sentence(&failure.message);
    match &failure.kind {
        FailureKind::AuthKeyRefused { tags } => format!(
            "The control server gives no auth key for {}. {said} Make the operator's OAuth client an owner of these tags, or change annotation {}.",
            values::Tag::join(tags),
            annotation::TAGS,
        ),
        FailureKind::ControlServerRefused => {
            format!("The control server refused the operator. {said} Check the operator's OAuth client.")
        }
        FailureKind::ControlServerUnreachable => {
            format!("The control server does not answer. {said} It is tried again.")
        }
        FailureKind::ClusterRefused => format!("The Kubernetes API refused an object. {said}"),
        FailureKind::NameTaken => format!("{said} Remove or rename that object."),
        FailureKind::Conflict | FailureKind::ClusterUnreachable => {
            format!("The Kubernetes API did not take a change. {said} It is tried again.")
        }
    }
}

/// Events about devices that stay at the control server.
pub(crate) fn left_behind(plan: &Plan) -> impl Iterator<Item = Event> {
    plan.report
        .iter()
        .filter(|reason| matches!(reason, Reason::DeviceLeftBehind { .. }))
        .map(|reason| Event {
            type_: EventType::Warning,
            reason: "DeviceLeftBehind",
            message: reason.to_string(),
        })
}

/// A text with a capital first letter and a full stop, short enough for a condition.
pub(crate) fn sentence(text: &str) -> String {
    const LONGEST: usize = 900;
    let text: String = text.trim().trim_end_matches('.').chars().take(LONGEST).collect();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), chars.as_str()),
        None => String::new(),
    }
}
