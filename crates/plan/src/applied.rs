//! What became of a plan.

use serde::Serialize;
use tailwharf_kube_types::Tag;

/// What execution did: all steps, or those before the one that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// How many steps were done.
    pub done: usize,
    /// Why execution stopped, if it did.
    pub failure: Option<Failure>,
}

impl Applied {
    /// All steps were done.
    #[must_use]
    pub const fn complete(steps: usize) -> Self {
        Self {
            done: steps,
            failure: None,
        }
    }

    /// Execution stopped at a step.
    #[must_use]
    pub const fn stopped(done: usize, failure: Failure) -> Self {
        Self {
            done,
            failure: Some(failure),
        }
    }
}

/// Why a step failed, with the text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// What the other side said, without anything that changes from one attempt to the next (times, ids of requests).
    pub message: String,
}

/// What kind of failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum FailureKind {
    /// The object changed since it was read.
    Conflict,
    /// The control server gives no auth key for these tags.
    AuthKeyRefused {
        /// The tags that were asked for.
        tags: Vec<Tag>,
    },
    /// The control server refused for another reason, such as the operator's credentials.
    ControlServerRefused,
    /// The control server does not answer, or asks to slow down.
    ControlServerUnreachable,
    /// The Kubernetes API refused the object.
    ClusterRefused,
    /// An object of this name exists that was not made for the same parent; it is left as it is.
    NameTaken,
    /// The Kubernetes API does not answer.
    ClusterUnreachable,
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// At once, from fresh caches.
    AtOnce,
    /// With growing pauses.
    BackOff,
}

impl FailureKind {
    /// When to try again.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Conflict => Retry::AtOnce,
            Self::AuthKeyRefused { .. }
            | Self::ControlServerRefused
            | Self::ControlServerUnreachable
            | Self::ClusterRefused
            | Self::NameTaken
            | Self::ClusterUnreachable => Retry::BackOff,
        }
    }

    /// A fixed word for metrics.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::AuthKeyRefused { .. } => "auth_key_refused",
            Self::ControlServerRefused => "control_server_refused",
            Self::ControlServerUnreachable => "control_server_unreachable",
            Self::ClusterRefused => "cluster_refused",
            Self::NameTaken => "name_taken",
            Self::ClusterUnreachable => "cluster_unreachable",
        }
    }
}
