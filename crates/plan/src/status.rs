//! What every kind tells its users in the same words.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;
use serde_json::{Value, json};
use tailwharf_kube_types::{ConditionStatus, conditions, values};

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

impl StatusPatch {
    /// The patch that sets these fields of the status.
    pub(crate) fn new(object: ObjectRef, status: &Value) -> Self {
        let body = json!({
            "apiVersion": object.kind.api_version(), "kind": object.kind.as_str(), "metadata": object.metadata(), "status": status,
        });
        Self { object, body }
    }
}

/// What a condition says.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) status: ConditionStatus,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Reason of the warning event that goes with a change to this verdict.
    pub(crate) event: Option<&'static str>,
}

impl Verdict {
    /// The event, if the condition does not tell this verdict yet.
    pub(crate) fn news(&self, current: Option<&Condition>) -> Option<Event> {
        let reason = self.event?;
        let told = current.is_some_and(|current| self.is_told(current));
        (!told).then(|| Event {
            type_: EventType::Warning,
            reason,
            message: self.message.clone(),
        })
    }

    pub(crate) fn is_told(&self, current: &Condition) -> bool {
        current.status == self.status.as_str()
            && current.reason == self.reason
            && current.message == self.message
    }

    /// The condition of this type, which keeps the transition time of the one in `previous` if its status is the same.
    pub(crate) fn condition(
        &self,
        type_: &str,
        generation: Option<i64>,
        previous: &[Condition],
        now: Timestamp,
    ) -> Condition {
        let Self {
            status,
            reason,
            message,
            event: _,
        } = self;
        conditions::condition(type_, *status, reason, message, generation, previous, now)
    }
}

impl FailureKind {
    /// Reason of the warning event; `other` for failures that have no name of their own.
    pub(crate) const fn event(&self, other: &'static str) -> &'static str {
        match self {
            Self::AuthKeyRefused { .. } => "AuthKeyRefused",
            Self::ControlServerRefused => "ControlServerRefused",
            Self::ControlServerUnreachable => "ControlServerUnreachable",
            Self::NameTaken => "NameTaken",
            Self::Conflict | Self::ClusterRefused | Self::ClusterUnreachable => other,
        }
    }
}

/// A failure in words, and what to do about it. `tags_at` says where the object's tags are written.
pub(crate) fn explain(failure: &Failure, tags_at: &str) -> String {
    let said = sentence(&failure.message);
    match &failure.kind {
        FailureKind::AuthKeyRefused { tags } => format!(
            "The control server gives no auth key for {}. {said} Make the operator's OAuth client an owner of these tags, or change {tags_at}.",
            values::Tag::join(tags),
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

/// Problems as sentences in one text.
pub(crate) fn sentences<P: std::fmt::Display>(problems: &[P]) -> String {
    problems
        .iter()
        .map(|problem| sentence(&problem.to_string()))
        .collect::<Vec<_>>()
        .join(" ")
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
