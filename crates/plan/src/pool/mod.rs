//! A pool: the pods that host identities, and their rights.
//!
//! The Role names the Secrets of the pool's identities one by one. It is derived from the Secrets that exist, so one plan writes it for any number of
//! new identities, and an Identity is made only once its Secret is named: a pod never sees an identity whose keys it may not read.

mod class;
mod merge;
mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::{Value, json};
use tailwharf_kube_types::contract::{DEFAULT_POOL, PARKED_POOL, label};
use tailwharf_kube_types::proxy_class::ProxyClassSpec;
use tailwharf_kube_types::{Identity, Parent, ParentKind, ProxyClass, names};

use crate::diff;
use crate::identity;
use crate::plan::{Kind, Manifest, ObjectRef, Plan, Step};
use crate::settings::{PoolSettings, Settings};

pub(crate) use class::is_of_tailscale;

/// What the cluster holds about a pool.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// The ProxyClass whose pool it is, or that of the Service whose pod it is; `None` for the default pool, and if the class is gone.
    pub class: Option<Arc<ProxyClass>>,
    /// It is the pod of one identity, which has all its ports.
    pub all_ports: bool,
    /// Names of the Secrets that its pods may read: its own, and those of identities that are to be in it or that its pods still host.
    pub secrets: BTreeSet<String>,
    /// Account of the pods.
    pub service_account: Option<ServiceAccount>,
    /// Their rights.
    pub role: Option<Role>,
    /// The rights given to the account.
    pub role_binding: Option<RoleBinding>,
    /// How many pods may be evicted at a time.
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// The pods.
    pub stateful_set: Option<StatefulSet>,
}

/// A pool as a parent; its labels are on all its objects.
#[must_use]
pub fn parent(settings: &Settings, pool: &str) -> Parent {
    Parent {
        kind: ParentKind::Pool,
        namespace: settings.namespace.clone(),
        name: pool.to_owned(),
    }
}

/// Names of the Secrets that the host of an identity reads.
pub fn secrets_of(identity: &Identity) -> impl Iterator<Item = String> {
    let name = identity.metadata.name.as_deref().unwrap_or_default();
    identity::secrets(name, &identity.spec)
}

/// The pools that have to do with an identity: the one that it is in, and that of the pod which hosts it.
#[must_use]
pub fn of_identity(identity: &Identity) -> BTreeSet<String> {
    let labels = identity.metadata.labels.as_ref();
    let belongs = labels
        .filter(|labels| Parent::from_labels(labels).is_some())
        .and_then(|labels| labels.get(label::POOL).cloned());
    let host = identity.status.as_ref().and_then(|status| status.host.as_deref());
    let hosts = host.and_then(names::pool_of_pod).map(str::to_owned);
    belongs.into_iter().chain(hosts).collect()
}

/// The Secrets that a pool's Role lets its pods read: [`crate::identity::Observed::granted`].
#[must_use]
pub fn granted(role: Option<&Role>) -> BTreeSet<String> {
    let rules = role.and_then(|role| role.rules.as_ref()).into_iter().flatten();
    rules
        .filter(|rule| {
            rule.resources
                .iter()
                .flatten()
                .any(|resource| resource == "secrets")
        })
        .flat_map(|rule| rule.resource_names.clone().unwrap_or_default())
        .collect()
}

/// The StatefulSet of some pool, as a class wants it: to see whether it is one.
pub(crate) fn sample(class: Option<&ProxyClassSpec>) -> Value {
    let name = "sample";
    let frame = objects::Frame {
        namespace: name.to_owned(),
        name: names::pool_objects_name(name),
        labels: BTreeMap::from(
            [label::PARENT_TYPE, label::PARENT_NAME, label::POOL]
                .map(|key| (key.to_owned(), name.to_owned())),
        ),
        pool: name.to_owned(),
        settings: PoolSettings {
            replicas: 1,
            image: name.to_owned(),
            logging: String::new(),
            pull_secrets: Vec::new(),
        },
    };
    frame.stateful_set(class, false).body
}

/// Whether no object of the operator belongs to a pool: nobody hosts its identities, or the administrator made its pods.
fn is_without_objects(pool: &str) -> bool {
    [PARKED_POOL, names::API_SERVER_PROXY_POOL].contains(&pool)
}

/// Plans what is missing: rights first, so that pods never start without them. An object with the name of one of ours that tailwharf did not make
/// is left alone.
///
/// The pool of a ProxyClass exists as long as it has identities; so does the default pool where the operator leaves the cluster. While its class is gone or
/// not valid, its pods stay as they are.
#[must_use]
pub fn build(snapshot: &Snapshot, settings: &Settings) -> Plan {
    if is_without_objects(&snapshot.name) {
        return Plan::default();
    }
    let parent = parent(settings, &snapshot.name);
    let mut labels = parent.labels();
    labels.insert(label::POOL.to_owned(), snapshot.name.clone());
    let frame = objects::Frame {
        namespace: settings.namespace.clone(),
        name: names::pool_objects_name(&snapshot.name),
        labels,
        pool: snapshot.name.clone(),
        settings: settings.pool.clone(),
    };
    let mut plan = Plan::default();
    let account = names::account_secret_name(&snapshot.name);
    let has_identities = snapshot.secrets.iter().any(|secret| *secret != account);
    let stays = snapshot.name == DEFAULT_POOL && !settings.releasing;
    if !stays && !has_identities {
        remove(&mut plan, snapshot, &parent);
        return plan;
    }
    let account_secret = (!snapshot.secrets.contains(&account)).then(|| frame.account_secret(&account));
    let secrets = snapshot.secrets.iter().cloned().chain([account]).collect();
    let class = snapshot.class.as_ref().filter(|class| class.is_ready());
    let is_plain = snapshot.name == DEFAULT_POOL || (snapshot.all_ports && snapshot.class.is_none());
    let pods = (is_plain || class.is_some())
        .then(|| frame.stateful_set(class.map(|class| &class.spec), snapshot.all_ports));
    let Observations {
        service_account,
        role,
        role_binding,
        disruption_budget,
        stateful_set,
    } = observations(snapshot);
    let wanted = [
        (Some(frame.service_account()), service_account),
        (account_secret, None),
        (Some(frame.role(&secrets)), role),
        (Some(frame.role_binding()), role_binding),
        (Some(frame.disruption_budget()), disruption_budget),
        (pods, stateful_set),
    ];
    for (manifest, observed) in wanted {
        let Some(manifest) = manifest else { continue };
        let body = diff::stamp(manifest.body);
        let due = match &observed {
            None => true,
            Some(observed) => is_ours(observed, &parent) && diff::differs(&body, observed),
        };
        if due {
            plan.steps.push(Step::Apply(Manifest { body, ..manifest }));
        }
    }
    plan
}

/// Plans the removal: the pods first, which go without rights at last.
fn remove(plan: &mut Plan, snapshot: &Snapshot, parent: &Parent) {
    let mut delete = |kind, name: &str, uid: Option<&str>| {
        plan.steps.push(Step::Delete {
            object: ObjectRef::new(kind, &parent.namespace, name),
            uid: uid.map(str::to_owned),
        });
    };
    let Observations {
        service_account,
        role,
        role_binding,
        disruption_budget,
        stateful_set,
    } = observations(snapshot);
    let objects = [
        (Kind::StatefulSet, stateful_set),
        (Kind::PodDisruptionBudget, disruption_budget),
        (Kind::RoleBinding, role_binding),
        (Kind::Role, role),
        (Kind::ServiceAccount, service_account),
    ];
    for (kind, observed) in objects {
        let Some(observed) = observed.filter(|observed| is_ours(observed, parent)) else {
            continue;
        };
        let uid = observed.pointer("/metadata/uid").and_then(Value::as_str);
        delete(kind, &names::pool_objects_name(&parent.name), uid);
    }
    let account = names::account_secret_name(&parent.name);
    if snapshot.secrets.contains(&account) {
        delete(Kind::Secret, &account, None);
    }
}

/// The objects of a snapshot as JSON.
struct Observations {
    service_account: Option<Value>,
    role: Option<Value>,
    role_binding: Option<Value>,
    disruption_budget: Option<Value>,
    stateful_set: Option<Value>,
}

fn observations(snapshot: &Snapshot) -> Observations {
    Observations {
        service_account: snapshot.service_account.as_ref().map(|object| json!(object)),
        role: snapshot.role.as_ref().map(|object| json!(object)),
        role_binding: snapshot.role_binding.as_ref().map(|object| json!(object)),
        disruption_budget: snapshot.disruption_budget.as_ref().map(|object| json!(object)),
        stateful_set: snapshot.stateful_set.as_ref().map(|object| json!(object)),
    }
}

fn is_ours(observed: &Value, parent: &Parent) -> bool {
    let labels = observed.pointer("/metadata/labels").cloned().unwrap_or_default();
    serde_json::from_value(labels)
        .ok()
        .and_then(|labels| Parent::from_labels(&labels))
        .as_ref()
        == Some(parent)
}
