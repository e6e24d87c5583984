//! Why a target on the tailnet cannot be reached, and what to do about it.

use std::net::SocketAddr;

use tailwharf_kube_types::{IdentityReason, Target};
use tailwharf_node::DialError;

/// A target cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    /// Nobody has the name or address, or the policy hides who does.
    #[error("no device {0} is visible on the tailnet")]
    Unknown(Target),
    /// The control server says that the device is away, and it does not answer.
    #[error("{0} is not connected to the tailnet")]
    Offline(Target),
    /// The policy.
    #[error("the tailnet policy does not allow connections to {0} at {1}")]
    Denied(Target, SocketAddr),
    /// Nothing listens there.
    #[error("{0} refuses connections at {1}")]
    Refused(Target, SocketAddr),
    /// No answer.
    #[error("{0} does not answer at {1}")]
    TimedOut(Target, SocketAddr),
    /// The target is this very device.
    #[error("{0} is this device itself")]
    IsSelf(Target),
    /// Our device cannot open connections.
    #[error("the device cannot open connections: {0}")]
    Unavailable(&'static str),
}

impl TargetError {
    /// From the node's words about one address of a target.
    pub(super) fn new(error: &DialError, target: &Target, at: SocketAddr) -> Self {
        let target = target.clone();
        match error {
            DialError::UnknownName(_) | DialError::UnknownAddress(_) => Self::Unknown(target),
            DialError::Refused(_) => Self::Refused(target, at),
            DialError::Denied(_) => Self::Denied(target, at),
            DialError::TimedOut(_) => Self::TimedOut(target, at),
            DialError::Unavailable(what) => Self::Unavailable(what),
            DialError::Closed => Self::Unavailable("it is shut down"),
        }
    }

    /// The condition's reason.
    #[must_use]
    pub(crate) fn reason(&self) -> IdentityReason {
        match self {
            Self::Unknown(_) => IdentityReason::TargetUnknown,
            Self::Offline(_) => IdentityReason::TargetOffline,
            Self::Denied(..) => IdentityReason::TargetDenied,
            Self::Refused(..) => IdentityReason::TargetRefused,
            Self::TimedOut(..) | Self::Unavailable(_) => IdentityReason::TargetTimeout,
            Self::IsSelf(_) => IdentityReason::TargetIsSelf,
        }
    }

    /// What to do about it.
    #[must_use]
    pub(crate) const fn hint(&self) -> &'static str {
        match self {
            Self::Unknown(_) => {
                "Check the name or address, and that the policy lets the tags of this Service see the device."
            }
            Self::Offline(_) => "Connect it again; it is tried again by itself.",
            Self::Denied(..) => {
                "Add a rule to the tailnet policy from the tags of this Service to the device and port."
            }
            Self::Refused(..) => "Check that something listens at this port of the device.",
            Self::TimedOut(..) => "Check that the device is up and its firewall lets connections in.",
            Self::IsSelf(_) => "Name another device: connections would go round in a circle.",
            Self::Unavailable(_) => "It is tried again.",
        }
    }
}
