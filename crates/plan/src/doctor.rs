//! What is wrong with an installation, and what to do: what `tailwharf doctor` prints.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use tailwharf_kube_types::{ConditionStatus, ConditionType, Identity, PathKind, names};

use crate::migrate::{is_own_operator, is_running_go_operator};
use crate::overview::Overview;

/// The oldest Kubernetes that is supported, as major and minor version.
pub const OLDEST_KUBERNETES: (u32, u32) = (1, 29);
/// A Lease that was not renewed for so long belongs to nobody who lives.
const LEASE_LIFE: SignedDuration = SignedDuration::from_secs(30);

/// What was found. `Err` holds why it could not be read.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The operator's namespace.
    pub namespace: String,
    /// When it was looked at.
    pub now: Timestamp,
    /// Version of the cluster, as major and minor.
    pub version: Result<(u32, u32), String>,
    /// The definitions that tailwharf has, and whether the cluster serves them in the version that is needed.
    pub definitions: Vec<(String, Definition)>,
    /// Rights of the operator's account that its manifest grants, and whether it has them.
    pub rights: Result<Vec<(String, bool)>, String>,
    /// Deployments of the namespace.
    pub deployments: Result<Vec<Deployment>, String>,
    /// The operators' Lease.
    pub lease: Option<Lease>,
    /// StatefulSets of the namespace.
    pub stateful_sets: Result<Vec<StatefulSet>, String>,
    /// Identities of the namespace.
    pub identities: Result<Vec<Identity>, String>,
    /// What the control server said to the operator's credentials; `None`: it was not asked.
    pub control: Option<Control>,
}

/// What the control server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// It made an auth key with these tags, which was revoked.
    GivesKeys {
        /// The tags.
        tags: String,
    },
    /// The credentials cannot be read.
    NoCredentials {
        /// Why.
        message: String,
    },
    /// It does not answer.
    Unreachable {
        /// Why.
        message: String,
    },
    /// It refuses the credentials.
    Refused {
        /// Its words.
        message: String,
    },
    /// It refuses the tags.
    TagsRefused {
        /// The tags.
        tags: String,
        /// Its words.
        message: String,
    },
}

/// How a definition of a custom resource is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Definition {
    /// Served.
    Served,
    /// Not there.
    Missing,
    /// There, but not in this version.
    OtherVersion(String),
    /// It could not be read.
    Unknown(String),
}

/// One look at one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub about: &'static str,
    /// How it is.
    pub grade: Grade,
    /// What was found.
    pub text: String,
    /// What to do, if something is to be done.
    pub next: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// In order.
    Good,
    /// Worth to know.
    Note,
    /// It could not be looked at, or works in part.
    Warning,
    /// Somebody has to do something.
    Fault,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis(pub Vec<Finding>);

impl Diagnosis {
    /// The worst of all.
    #[must_use]
    pub fn worst(&self) -> Grade {
        self.0
            .iter()
            .map(|finding| finding.grade)
            .max()
            .unwrap_or(Grade::Good)
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding {
            about,
            grade,
            text,
            next,
        } in &self.0
        {
            let mark = match grade {
                Grade::Good => "ok",
                Grade::Note => "note",
                Grade::Warning => "warning",
                Grade::Fault => "FAULT",
            };
            writeln!(f, "{about:<14} {mark:<8} {text}")?;
            if let Some(next) = next {
                writeln!(f, "{:<23} Next: {next}", "")?;
            }
        }
        Ok(())
    }
}

fn finding(about: &'static str, grade: Grade, text: impl Into<String>, next: Option<String>) -> Finding {
    Finding {
        about,
        grade,
        text: text.into(),
        next,
    }
}

fn good(about: &'static str, text: impl Into<String>) -> Finding {
    finding(about, Grade::Good, text, None)
}

fn unread(about: &'static str, message: &str) -> Finding {
    let next = "run this as somebody who may read the operator's namespace".to_owned();
    finding(
        about,
        Grade::Warning,
        format!("could not be looked at: {message}"),
        Some(next),
    )
}

/// Judges what was found.
#[must_use]
pub fn diagnose(facts: &Facts) -> Diagnosis {
    let mut findings = vec![cluster(facts)];
    findings.extend(definitions(facts));
    findings.push(rights(facts));
    findings.extend(operator(facts));
    findings.extend(pools(facts));
    findings.extend(devices(facts));
    findings.extend(facts.control.as_ref().map(control));
    Diagnosis(findings)
}

fn cluster(facts: &Facts) -> Finding {
    const ABOUT: &str = "cluster";
    let (oldest_major, oldest_minor) = OLDEST_KUBERNETES;
    match &facts.version {
        Ok(version) if *version >= OLDEST_KUBERNETES => {
            good(ABOUT, format!("Kubernetes {}.{}", version.0, version.1))
        }
        Ok((major, minor)) => finding(
            ABOUT,
            Grade::Fault,
            format!("Kubernetes {major}.{minor} is older than {oldest_major}.{oldest_minor}"),
            Some("upgrade the cluster".to_owned()),
        ),
        Err(message) => finding(
            ABOUT,
            Grade::Fault,
            format!("it does not answer: {message}"),
            Some("check the kubeconfig (KUBECONFIG) and its current context".to_owned()),
        ),
    }
}

/// The definition that nothing works without.
const IDENTITIES: &str = "identities.tailwharf.dev";

fn definitions(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "definitions";
    let mut findings = Vec::new();
    let next = "apply deploy/crds, or set installCRDs=true in the chart".to_owned();
    for (name, state) in &facts.definitions {
        let grade = if name == IDENTITIES {
            Grade::Fault
        } else {
            Grade::Warning
        };
        let text = match state {
            Definition::Served => continue,
            Definition::Missing => format!("{name} is not installed"),
            Definition::OtherVersion(served) => format!("{name} is served as {served} only"),
            Definition::Unknown(message) => {
                findings.push(unread(ABOUT, message));
                continue;
            }
        };
        findings.push(finding(ABOUT, grade, text, Some(next.clone())));
    }
    if findings.is_empty() {
        findings.push(good(ABOUT, format!("all {} are served", facts.definitions.len())));
    }
    findings
}

fn rights(facts: &Facts) -> Finding {
    const ABOUT: &str = "rights";
    match &facts.rights {
        Err(message) => unread(ABOUT, message),
        Ok(rights) => {
            let missing: Vec<_> = rights
                .iter()
                .filter(|(_, has)| !has)
                .map(|(right, _)| right.as_str())
                .collect();
            if missing.is_empty() {
                return good(ABOUT, format!("the operator's account has all {}", rights.len()));
            }
            finding(
                ABOUT,
                Grade::Fault,
                format!("the operator's account may not {}", missing.join(", ")),
                Some("apply the roles of this version: deploy/operator.yaml, or helm upgrade".to_owned()),
            )
        }
    }
}

fn operator(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "operator";
    let namespace = &facts.namespace;
    let deployments = match &facts.deployments {
        Ok(deployments) => deployments,
        Err(message) => return vec![unread(ABOUT, message)],
    };
    let name = |deployment: &Deployment| deployment.metadata.name.clone().unwrap_or_default();
    let mut findings = Vec::new();
    if let Some(go) = deployments
        .iter()
        .find(|deployment| is_running_go_operator(deployment))
    {
        findings.push(finding(
            ABOUT,
            Grade::Warning,
            format!(
                "Tailscale's operator runs beside it as Deployment {}; everything is left to that one",
                name(go)
            ),
            Some("tailwharf migrate plan".to_owned()),
        ));
    }
    let Some(own) = deployments.iter().find(|deployment| is_own_operator(deployment)) else {
        let next =
            format!("install it there, or name its namespace with --operator-namespace (now {namespace})");
        findings.push(finding(
            ABOUT,
            Grade::Fault,
            format!("no Deployment in namespace {namespace}"),
            Some(next),
        ));
        return findings;
    };
    let ready = own
        .status
        .as_ref()
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0);
    let logs = format!("kubectl -n {namespace} logs deployment/{}", name(own));
    if ready == 0 {
        let text = format!("no pod of Deployment {} is ready", name(own));
        findings.push(finding(ABOUT, Grade::Fault, text, Some(logs)));
        return findings;
    }
    let spec = facts.lease.as_ref().and_then(|lease| lease.spec.as_ref());
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
    let holder = spec
        .and_then(|spec| spec.holder_identity.clone())
        .filter(|holder| !holder.is_empty());
    let is_fresh = renewed.is_some_and(|renewed| facts.now.duration_since(renewed.0) < LEASE_LIFE);
    findings.push(match holder {
        Some(holder) if is_fresh => good(ABOUT, format!("{ready} pods are ready, {holder} leads")),
        _ => finding(
            ABOUT,
            Grade::Fault,
            "nobody leads: the Lease tailwharf-operator is not renewed",
            Some(format!(
                "see why, or whether this machine's clock differs from the cluster's: {logs}"
            )),
        ),
    });
    findings
}

fn pools(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "pools";
    let sets = match &facts.stateful_sets {
        Ok(sets) => sets,
        Err(message) => return vec![unread(ABOUT, message)],
    };
    let overview = Overview::of(facts.identities.as_deref().unwrap_or_default(), sets);
    let pools = overview.pools.iter().map(|(name, pool)| {
        let set = names::pool_objects_name(name);
        let look = Some(format!(
            "kubectl -n {} describe statefulset {set}",
            facts.namespace
        ));
        match pool.pods {
            None => finding(
                ABOUT,
                Grade::Fault,
                format!("devices are to be in pool {name}, which is not there"),
                Some("create its ProxyClass, or see the operator's log".to_owned()),
            ),
            Some((0, wanted)) if wanted > 0 => finding(
                ABOUT,
                Grade::Fault,
                format!("none of {wanted} pods of {set} is ready"),
                look,
            ),
            Some((ready, wanted)) if ready < wanted => finding(
                ABOUT,
                Grade::Warning,
                format!("{ready} of {wanted} pods of {set} are ready"),
                look,
            ),
            Some((1, 1)) => finding(
                ABOUT,
                Grade::Note,
                format!("{set} has one pod: its devices are away while it is replaced"),
                Some("pool.replicas=2 in the chart".to_owned()),
            ),
            Some((ready, _)) => good(ABOUT, format!("{ready} pods of {set} are ready")),
        }
    });
    let mut findings: Vec<_> = pools.collect();
    if findings.is_empty() {
        let next = "see the operator's log: it makes the pool as soon as it leads".to_owned();
        findings.push(finding(ABOUT, Grade::Fault, "there is no pool", Some(next)));
    }
    findings
}

/// How many devices are named one by one.
const NAMED: usize = 5;

fn devices(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "devices";
    let identities = match &facts.identities {
        Ok(identities) => identities,
        Err(message) => return vec![unread(ABOUT, message)],
    };
    let state = |identity: &Identity| {
        identity
            .status
            .as_ref()
            .map_or(ConditionStatus::Unknown, |status| {
                status.step(ConditionType::Ready).0
            })
    };
    let (ready, waiting): (Vec<_>, Vec<_>) = identities
        .iter()
        .partition(|identity| state(identity) == ConditionStatus::True);
    let mut findings = Vec::new();
    for identity in waiting.iter().take(NAMED) {
        let message = identity
            .status
            .as_ref()
            .and_then(|status| status.condition(ConditionType::Ready));
        let message = message.map_or("it is not hosted", |ready| ready.message.as_str());
        let name = identity.metadata.name.as_deref().unwrap_or_default();
        let next = explain_of(identity);
        findings.push(finding(ABOUT, Grade::Warning, format!("{name}: {message}"), next));
    }
    if waiting.len() > NAMED {
        let text = format!("{} more are not ready", waiting.len() - NAMED);
        findings.push(finding(
            ABOUT,
            Grade::Warning,
            text,
            Some("tailwharf status --cluster".to_owned()),
        ));
    }
    if waiting.is_empty() {
        findings.push(good(ABOUT, format!("all {} are ready", ready.len())));
    }
    findings.extend(paths(identities));
    findings
}

/// The command that tells more of a device.
fn explain_of(identity: &Identity) -> Option<String> {
    let labels = identity.metadata.labels.as_ref()?;
    let parent = tailwharf_kube_types::Parent::from_labels(labels)?;
    let kind = match parent.kind {
        tailwharf_kube_types::ParentKind::Service => "service",
        tailwharf_kube_types::ParentKind::Ingress => "ingress",
        _ => return None,
    };
    Some(format!(
        "tailwharf explain -n {} {kind}/{}",
        parent.namespace, parent.name
    ))
}

fn paths(identities: &[Identity]) -> Option<Finding> {
    let path = |identity: &Identity| identity.status.as_ref().and_then(|status| status.path);
    let count = |kind: PathKind| {
        identities
            .iter()
            .filter(|identity| path(identity) == Some(kind))
            .count()
    };
    let (direct, relay) = (count(PathKind::Direct), count(PathKind::Relay));
    let text = format!("{direct} devices are reached directly, {relay} through a relay");
    match (direct, relay) {
        (0, 0) => None,
        (0, _) => Some(finding(
            "paths",
            Grade::Note,
            text,
            Some("let UDP out of the pods' nodes, and its answers in".to_owned()),
        )),
        _ => Some(good("paths", text)),
    }
}

fn control(control: &Control) -> Finding {
    const ABOUT: &str = "control server";
    let fault = |text: String, next: &str| finding(ABOUT, Grade::Fault, text, Some(next.to_owned()));
    match control {
        Control::GivesKeys { tags } => good(ABOUT, format!("it gives keys for {tags}")),
        Control::NoCredentials { message } => unread(ABOUT, message),
        Control::Unreachable { message } => finding(
            ABOUT,
            Grade::Warning,
            format!("it does not answer this machine: {message}"),
            Some("nothing, if it answers in the cluster; the operator's log tells".to_owned()),
        ),
        Control::Refused { message } => fault(
            format!("it refuses the operator's credentials: {message}"),
            "make an OAuth client with the scopes auth_keys and devices:core, and put it into the Secret",
        ),
        Control::TagsRefused { tags, message } => fault(
            format!("it gives no key for {tags}: {message}"),
            "let the operator's tag own them: \"tagOwners\": {\"tag:k8s\": [\"tag:k8s-operator\"]}",
        ),
    }
}
