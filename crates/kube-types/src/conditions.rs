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
    /// There is a good certificate for each name that is served under TLS. Only for devices that serve one.
    CertificateReady,
    /// A backend of each listener answers.
    BackendReachable,
    /// The Internet reaches the device through Funnel. Only for devices that are to be reached so, and no part of [`Self::Ready`].
    FunnelReady,
    /// The object of the user is served as it asks. The operator writes it, and only while that is not so, on behalf of kinds that have no conditions.
    Accepted,
    /// All steps that the device has.
    Ready,
}

impl ConditionType {
    /// The steps and what else is told, in order.
    const ALL: [Self; 6] = [
        Self::Registered,
        Self::Authorized,
        Self::Advertised,
        Self::CertificateReady,
        Self::BackendReachable,
        Self::FunnelReady,
    ];

    /// The steps that every device has, in order.
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
            Self::CertificateReady => "CertificateReady",
            Self::BackendReachable => "BackendReachable",
            Self::FunnelReady => "FunnelReady",
            Self::Accepted => "Accepted",
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
    /// A backend has no address: its Service is missing, or none of its endpoints is ready.
    BackendWithoutAddress,
    /// A certificate waits for its turn, or is being issued.
    CertificatePending,
    /// The control server does not let the device have certificates for the name.
    CertificatesDisabled,
    /// The Secret that is to hold a certificate is missing, or lacks it.
    CertificateMissing,
    /// A certificate cannot be used: not PEM, expired, for other names, or not of its key.
    CertificateInvalid,
    /// The control server did not take the DNS record that proves the name to the certificate authority.
    DnsRecordRefused,
    /// The certificate authority refused to issue the certificate.
    CertificateRefused,
    /// The certificate authority wants fewer requests and says when to come back.
    CertificateRateLimited,
    /// The certificate authority does not answer.
    CertificateAuthorityUnreachable,
    /// The control server does not let the device be reached through Funnel.
    FunnelUnavailable,
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

    /// A step of which nothing is known while an earlier one is not done.
    #[must_use]
    pub fn waiting(condition: ConditionType) -> Self {
        Self {
            condition,
            status: ConditionStatus::Unknown,
            reason: IdentityReason::WaitingForEarlierStep,
            message: "Waits for the earlier steps.".to_owned(),
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
/// One of [`ConditionType::STEPS`] that is not given is unknown and waits for the earlier ones; of the others those are told that are given. `Ready` is
/// true if all steps are, else it has reason and message of the first that is not. `previous` are the conditions as they stand: a condition whose status does not change keeps its transition time.
#[must_use]
pub fn conditions(
    steps: &[Step],
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut all: Vec<Step> = ConditionType::ALL
        .into_iter()
        .filter_map(|condition| {
            let given = steps.iter().find(|step| step.condition == condition).cloned();
            let waits = ConditionType::STEPS.contains(&condition);
            given.or_else(|| waits.then(|| Step::waiting(condition)))
        })
        .collect();
    let missing =
        |step: &&Step| step.status != ConditionStatus::True && step.condition != ConditionType::FunnelReady;
    let ready = match all.iter().find(missing) {
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
    fn a_certificate_is_a_step_of_those_that_need_one_and_funnel_is_none() {
        let mut steps: Vec<Step> = ConditionType::STEPS.map(|step| Step::done(step, "Done.")).into();
        let funnel = (ConditionType::FunnelReady, IdentityReason::FunnelUnavailable);
        steps.push(Step::blocked(funnel.0, funnel.1, "Allow Funnel."));
        let types = |all: &[Condition]| all.iter().map(|c| c.type_.clone()).collect::<Vec<_>>();
        let all = conditions(&steps, &[], None, at(10));
        assert_eq!(types(&all)[3..], ["BackendReachable", "FunnelReady", "Ready"]);
        assert_eq!(all[5].status, "True");
        steps.push(Step::waiting(ConditionType::CertificateReady));
        let all = conditions(&steps, &[], None, at(10));
        assert_eq!(types(&all)[2..4], ["Advertised", "CertificateReady"]);
        assert_eq!(all[6].status, "False");
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
