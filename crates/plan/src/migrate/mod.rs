//! Taking over a namespace from the Go operator, and giving it back.
//!
//! [`forward()`] and [`back()`] turn what is there, an [`Inventory`], into a [`Migration`]: steps that can be printed, and what has to be
//! solved before. Devices keep their keys, and with them names and addresses, because both operators keep a device's state in a Secret of one layout.
//!
//! ```text
//! forward  copy each state ─► wait for the pools ─► stop the Go operator ─► for each device: stop its pods, copy its state again, hand over ─► remove what is left
//! back     stop tailwharf's operator ─► for each device: park its Identity, copy its state back, let its StatefulSet run ─► start the Go operator
//! ```
//!
//! As long as a StatefulSet of the Go operator is there that was not handed over, tailwharf's operator leaves its parent alone ([`holder`]), and as
//! long as a Go operator runs beside it ([`is_running_go_operator`]), it leaves everything alone but the pods of its pools.

mod back;
mod forward;
mod inventory;
mod show;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use tailwharf_kube_types::contract::annotation;
use tailwharf_kube_types::{Parent, ParentKind};
use thiserror::Error;

pub use back::back;
pub use forward::forward;
pub use inventory::{Inventory, Owner, StateView};

/// A variable that both operators have, and nothing else.
const OPERATOR_VARIABLE: &str = "OPERATOR_INITIAL_TAGS";
/// The Secret with the state of the Go operator's own device, and the variable that names another.
const OPERATOR_SECRET: (&str, &str) = ("OPERATOR_SECRET", "operator");

/// What to do, in order, and what has to be solved before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// What to do.
    pub steps: Vec<Step>,
    /// What keeps it from being done.
    pub obstacles: Vec<Obstacle>,
}

/// One thing to do. Each can be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Step {
    /// Copy a device's state while it is still in use, so that its new host may read the Secret when the time comes.
    Prepare(Copy),
    /// Wait until a pool has a pod that may read these Secrets.
    AwaitPool {
        /// The pool.
        pool: String,
        /// The Secrets.
        secrets: Vec<String>,
    },
    /// Scale an operator to nothing, write down how many pods it had, and wait until they have ended.
    StopOperator {
        /// Its Deployment.
        deployment: String,
        /// How many pods it has.
        replicas: i32,
    },
    /// Move the devices of one object.
    Switch(Switch),
    /// Wait until tailwharf has the device of an Identity.
    Await(Awaited),
    /// Remove what the Go operator made for an object.
    Remove(Leftovers),
    /// Take the devices of one object back.
    Return(Return),
    /// Scale an operator up again.
    StartOperator {
        /// Its Deployment.
        deployment: String,
        /// How many pods it had.
        replicas: i32,
    },
    /// Wait until a pod of the Go operator has the device whose state is in this Secret, which has the pod's name.
    AwaitProxy {
        /// The Secret.
        secret: String,
    },
}

/// A device as its state tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Stable id.
    pub id: String,
    /// Full name.
    pub fqdn: String,
}

/// The state of one device, from Secret to Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Copy {
    /// Where it is.
    pub from: String,
    /// Where it has to be.
    pub to: String,
    /// The labels of the Secret there.
    pub labels: BTreeMap<String, String>,
    /// Which device.
    pub device: Device,
}

/// The device of an Identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Awaited {
    /// The Identity.
    pub identity: String,
    /// The device that it has to have; `None`: it gets a new one.
    pub device: Option<Device>,
}

/// How the devices of one object move to tailwharf: the pods of the StatefulSet end, the states are copied, the StatefulSet is marked as handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Switch {
    /// The object.
    pub parent: Parent,
    /// The StatefulSet whose pods have the devices.
    pub set: String,
    /// How many pods it has.
    pub replicas: i32,
    /// The states.
    pub copies: Vec<Copy>,
    /// What is there afterwards.
    pub identities: Vec<Awaited>,
}

/// What the Go operator made for an object. The object and its devices are tailwharf's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// The object.
    pub parent: Parent,
    /// StatefulSets.
    pub sets: Vec<String>,
    /// Services.
    pub services: Vec<String>,
    /// Secrets, whose content is elsewhere by now.
    pub secrets: Vec<String>,
}

/// How the devices of one object move to the Go operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Return {
    /// The object.
    pub parent: Parent,
    /// The Identities that host them.
    pub identities: Vec<String>,
    /// The states.
    pub copies: Vec<Copy>,
    /// The headless Service by which the Go operator finds the names of what it made, if it has to be made again: its name, and the UID of the object.
    pub service: Option<(String, String)>,
    /// The StatefulSet whose pods have the devices from then on, and how many it had; `None`: the Go operator makes it.
    pub set: Option<(String, i32)>,
}

/// What keeps a migration from being done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Error)]
pub enum Obstacle {
    /// Nothing of the Go operator is there.
    #[error("nothing of the Go operator is in namespace {namespace}: name another with --operator-namespace")]
    NothingToTake {
        /// Where it was looked for.
        namespace: String,
    },
    /// No operator of tailwharf is there.
    #[error(
        "tailwharf's operator does not run in namespace {namespace}: install it there first; it waits until the Go operator has stopped"
    )]
    NoOperator {
        /// Where it was looked for.
        namespace: String,
    },
    /// The Go operator is not there any more.
    #[error(
        "there is no Deployment of the Go operator in namespace {namespace} to give the devices back to: install it first, with no pods"
    )]
    NoGoOperator {
        /// Where it was looked for.
        namespace: String,
    },
    /// An object that tailwharf does not serve.
    #[error(
        "{object} is not served by tailwharf: remove it, or leave it running with nobody who looks after it, by --leave-unserved"
    )]
    Unserved {
        /// Kind and name.
        object: String,
    },
    /// A device belongs to another control server.
    #[error(
        "device {device} is registered at {server}, not at {expected}: let tailwharf's operator use that control server"
    )]
    OtherServer {
        /// Its name.
        device: String,
        /// Where it is registered.
        server: String,
        /// What tailwharf's operator uses.
        expected: String,
    },
    /// A state cannot be read.
    #[error("the state in Secret {secret} cannot be read: {message}")]
    Unreadable {
        /// The Secret.
        secret: String,
        /// What is wrong.
        message: String,
    },
    /// The object of a StatefulSet is gone.
    #[error("StatefulSet {set} was made for {parent}, which is gone: let the Go operator remove it first")]
    Orphan {
        /// The StatefulSet.
        set: String,
        /// For what it was made.
        parent: Parent,
    },
    /// Several StatefulSets were made for one object.
    #[error("several StatefulSets claim {parent}: delete all but one of {}", sets.join(", "))]
    SeveralSets {
        /// The object.
        parent: Parent,
        /// Their names.
        sets: Vec<String>,
    },
}

/// Whether a Deployment is a Go operator that runs, or is to run.
#[must_use]
pub fn is_running_go_operator(deployment: &Deployment) -> bool {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    is_go_operator(deployment) && replicas != Some(0)
}

/// Whether a Deployment is a Go operator: it reads the variables of an operator and is not told to be tailwharf's.
fn is_go_operator(deployment: &Deployment) -> bool {
    operator_container(deployment).is_some_and(|container| !is_ours(container))
}

/// Whether a Deployment is an operator of tailwharf.
#[must_use]
pub fn is_own_operator(deployment: &Deployment) -> bool {
    operator_container(deployment).is_some_and(is_ours)
}

fn is_ours(container: &Container) -> bool {
    let first = container.args.as_ref().and_then(|args| args.first());
    first.is_some_and(|word| word == "operator")
}

fn operator_container(deployment: &Deployment) -> Option<&Container> {
    let containers = &deployment.spec.as_ref()?.template.spec.as_ref()?.containers;
    containers
        .iter()
        .find(|container| variable(container, OPERATOR_VARIABLE).is_some())
}

fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let variables = container.env.iter().flatten();
    let found = variables.into_iter().find(|variable| variable.name == name)?;
    found.value.as_deref()
}

/// The parent whose devices the pods of a StatefulSet have, if the Go operator made it and has not handed it over.
#[must_use]
pub fn holder(set: &StatefulSet) -> Option<Parent> {
    let handed_over = note(&set.metadata, annotation::HANDED_OVER) == Some("true");
    parent_of_go(&set.metadata).filter(|_| !handed_over)
}

/// Whether tailwharf applied an object.
#[must_use]
pub fn is_applied(metadata: &ObjectMeta) -> bool {
    note(metadata, annotation::APPLIED).is_some()
}

/// The parent for which the Go operator made an object.
fn parent_of_go(metadata: &ObjectMeta) -> Option<Parent> {
    let parent = Parent::from_labels(metadata.labels.as_ref()?)?;
    let has_devices = matches!(
        parent.kind,
        ParentKind::Service | ParentKind::Ingress | ParentKind::Connector
    );
    (has_devices && !is_applied(metadata)).then_some(parent)
}

fn note<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// How many pods something has, or had before a migration stopped it; at least one.
fn replicas(spec: Option<i32>, metadata: &ObjectMeta) -> i32 {
    let before = note(metadata, annotation::REPLICAS_BEFORE).and_then(|text| text.parse().ok());
    match spec {
        None => 1,
        Some(0) => before.unwrap_or(1),
        Some(replicas) => replicas,
    }
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// Whether a value of a Secret is part of a device's state, and not what one operator tells its own pods.
#[must_use]
pub fn is_state_key(key: &str) -> bool {
    use tailwharf_kube_types::secret::key::{AUTH_KEY, CAPVER, NODE_STATE, POD_UID};
    const OF_GO: [&str; 5] = [
        "serve-config",
        "https_endpoint",
        "egress-services",
        "ingress-config.json",
        "reissue_authkey",
    ];
    let is_configuration = key.starts_with("cap-") && key.ends_with(".hujson");
    !is_configuration && ![AUTH_KEY, CAPVER, NODE_STATE, POD_UID].contains(&key) && !OF_GO.contains(&key)
}
