//! Conditions of an [`crate::Identity`]: the steps on its way to being ready, each with a reason and a sentence that says what comes next.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::{Deserialize, Serialize};

/// The steps of an identity, in the order in which they are taken, and their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// The control server knows the node's key.
    Registered,
    /// The control server lets the node onto the tailnet.
    Authorized,
    /// Peers can see and reach the node: a netmap is here and the home relay is connected.
    Advertised,
    /// A backend of each listener answers.
    BackendReachable,
    /// All of the above.
    Ready,
}

impl ConditionType {
    /// All but [`Self::Ready`], in order.
    pub const STEPS: [Self; 4] = [
        Self::Registered,
        Self::Authorized,
        Self::Advertised,
        Self::BackendReachable,
    ];

    /// `type` of the condition.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "Registered",
            Self::Authorized => "Authorized",
            Self::Advertised => "Advertised",
            Self::BackendReachable => "BackendReachable",
            Self::Ready => "Ready",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `status` of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known yet.
    Unknown,
}

impl ConditionStatus {
    /// `status` of the condition.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }

    /// Reads a condition's `status`; anything but `True` and `False` is unknown.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "True" => Self::True,
            "False" => Self::False,
            _ => Self::Unknown,
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Why a condition has its status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum IdentityReason {
            $($(#[$doc])* $name,)*
        }

        impl IdentityReason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// `reason` of the condition.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// The step is done.
    Done,
    /// An earlier step is not done.
    WaitingForEarlierStep,
    /// No pod of the pool hosts the identity yet.
    NotHosted,
    /// The host shuts down; another pod takes over.
    Draining,
    /// The identity's Secret is missing or the pod may not read it yet.
    SecretUnavailable,
    /// The identity's Secret holds something that is not a node's state.
    SecretInvalid,
    /// Neither a key of an earlier registration nor an auth key is in the Secret.
    AuthKeyMissing,
    /// The control server refused the auth key: expired, used up, revoked, or not for these tags.
    AuthKeyRejected,
    /// The node is registering.
    Registering,
    /// The control server wants someone to sign in, since it does not accept the node's key any more.
    LoginRequired,
    /// The control server refused the node for another reason.
    ControlServerRefused,
    /// The control server does not answer.
    ControlServerUnreachable,
    /// An administrator has to approve the device.
    ApprovalPending,
    /// The node's key has expired.
    KeyExpired,
    /// No netmap has come yet.
    NetmapPending,
    /// The home relay does not answer.
    RelayUnreachable,
    /// Listeners are being opened.
    ListenersPending,
    /// A listener could not be opened.
    ListenerFailed,
    /// Nothing is to be served.
    NoListeners,
    /// No backend was tried yet.
    BackendNotProbed,
    /// A backend refuses connections.
    BackendRefused,
    /// A backend does not answer.
    BackendTimeout,
    /// The name of a backend cannot be resolved.
    BackendUnresolved,
    /// Egress: no device with the name or address is visible on the tailnet.
    TargetUnknown,
    /// Egress: the target is not connected to the tailnet.
    TargetOffline,
    /// Egress: the tailnet policy does not allow connections to the target.
    TargetDenied,
    /// Egress: nothing listens at the target.
    TargetRefused,
    /// Egress: the target does not answer.
    TargetTimeout,
    /// Egress: the target is the device itself.
    TargetIsSelf,
}

impl IdentityReason {
    /// Reads a condition's `reason`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for IdentityReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// State of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which step.
    pub condition: ConditionType,
    /// Whether it is done.
    pub status: ConditionStatus,
    /// Why.
    pub reason: IdentityReason,
    /// One sentence with what comes next, for people.
    pub message: String,
}

impl Step {
    /// A step that is done.
    #[must_use]
    pub fn done(condition: ConditionType, message: impl Into<String>) -> Self {
        Self {
            condition,
            status: ConditionStatus::True,
            reason: IdentityReason::Done,
            message: message.into(),
        }
    }

    /// A step that is not done.
    #[must_use]
    pub fn blocked(condition: ConditionType, reason: IdentityReason, message: impl Into<String>) -> Self {
        Self {
            condition,
            status: ConditionStatus::False,
            reason,
            message: message.into(),
        }
    }
}

/// The conditions of an identity, from what is known of its steps.
///
/// A step that is not given is unknown and waits for the earlier ones. `Ready` is true if all steps are, else it has reason and message of the
/// first that is not. `previous` are the conditions as they stand: a condition whose status does not change keeps its transition time.
#[must_use]
pub fn conditions(
    steps: &[Step],
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut all: Vec<Step> = ConditionType::STEPS
        .into_iter()
        .map(|condition| {
            steps
                .iter()
                .find(|step| step.condition == condition)
                .cloned()
                .unwrap_or_else(|| Step {
                    condition,
                    status: ConditionStatus::Unknown,
                    reason: IdentityReason::WaitingForEarlierStep,
                    message: "Waits for the earlier steps.".to_owned(),
                })
        })
        .collect();
    let ready = match all.iter().find(|step| step.status != ConditionStatus::True) {
        None => Step::done(ConditionType::Ready, "The device is reachable on the tailnet."),
        Some(first) => Step {
            condition: ConditionType::Ready,
            status: ConditionStatus::False,
            ..first.clone()
        },
    };
    all.push(ready);
    all.into_iter()
        .map(|step| {
            condition(
                step.condition.as_str(),
                step.status,
                step.reason.as_str(),
                &step.message,
                generation,
                previous,
                now,
            )
        })
        .collect()
}

/// One condition in Kubernetes' form. It keeps the transition time of the one in `previous` of the same type if its status is the same.
#[must_use]
pub fn condition(
    type_: &str,
    status: ConditionStatus,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    previous: &[Condition],
    now: Timestamp,
) -> Condition {
    let same = previous
        .iter()
        .find(|old| old.type_ == type_ && old.status == status.as_str());
    Condition {
        type_: type_.to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: same.map_or_else(
            || Time(whole_seconds(now)),
            |old| old.last_transition_time.clone(),
        ),
    }
}

/// Kubernetes keeps times of conditions in whole seconds.
fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

impl crate::IdentityStatus {
    /// The condition of a type, if the host has set it.
    #[must_use]
    pub fn condition(&self, condition: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.type_ == condition.as_str())
    }

    /// Status and reason of a condition; unknown if the host has not set it.
    #[must_use]
    pub fn step(&self, condition: ConditionType) -> (ConditionStatus, Option<IdentityReason>) {
        self.condition(condition)
            .map_or((ConditionStatus::Unknown, None), |c| {
                (
                    ConditionStatus::parse(&c.status),
                    IdentityReason::parse(&c.reason),
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn ready_is_the_first_step_that_is_not_done() {
        let steps = [
            Step::done(ConditionType::Registered, "Registered."),
            Step::blocked(
                ConditionType::Authorized,
                IdentityReason::ApprovalPending,
                "Approve the device.",
            ),
        ];
        let conditions = conditions(&steps, &[], Some(3), at(10));
        assert_eq!(conditions.len(), 5);
        let ready = &conditions[4];
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_str()),
            ("False", "ApprovalPending")
        );
        assert_eq!(ready.message, "Approve the device.");
        assert_eq!(
            (conditions[2].status.as_str(), conditions[2].reason.as_str()),
            ("Unknown", "WaitingForEarlierStep")
        );
    }

    #[test]
    fn times_move_with_the_status_only() {
        let done: Vec<Step> = ConditionType::STEPS.map(|step| Step::done(step, "Done.")).into();
        let first = conditions(&done, &[], None, at(10));
        let second = conditions(&done, &first, None, at(20));
        assert_eq!(first, second);
        let third = conditions(&done[..3], &second, None, at(30));
        assert_eq!(third[0].last_transition_time, Time(at(10)));
        assert_eq!(third[4].last_transition_time, Time(at(30)));
    }

    #[test]
    fn reasons_round_trip() {
        for reason in IdentityReason::ALL {
            assert_eq!(IdentityReason::parse(reason.as_str()), Some(*reason));
        }
    }
}
