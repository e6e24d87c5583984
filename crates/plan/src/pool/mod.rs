//! A pool: the pods that host identities, and their rights.
//!
//! The Role names the Secrets of the pool's identities one by one. It is derived from the Secrets that exist, so one plan writes it for any number of
//! new identities, and an Identity is made only once its Secret is named: a pod never sees an identity whose keys it may not read.

mod objects;

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::{Value, json};
use tailwharf_kube_types::contract::label;
use tailwharf_kube_types::{Parent, ParentKind, names};

use crate::diff;
use crate::plan::{Manifest, Plan, Step};
use crate::settings::{PoolSettings, Settings};

/// What the cluster holds about a pool.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Names of the state Secrets that belong to the pool, see [`crate::identity::SecretView::belongs_to_pool`].
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
pub fn parent(settings: &Settings, pool: &PoolSettings) -> Parent {
    Parent {
        kind: ParentKind::Pool,
        namespace: settings.namespace.clone(),
        name: pool.name.clone(),
    }
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

/// Plans what is missing: rights first, so that pods never start without them. An object with the name of one of ours that tailwharf did not make
/// is left alone.
#[must_use]
pub fn build(snapshot: &Snapshot, settings: &Settings) -> Plan {
    let pool = &settings.pool;
    let parent = parent(settings, pool);
    let mut labels = parent.labels();
    labels.insert(label::POOL.to_owned(), pool.name.clone());
    let frame = objects::Frame {
        namespace: settings.namespace.clone(),
        name: names::pool_objects_name(&pool.name),
        labels,
        pool: pool.clone(),
    };

    let mut plan = Plan::default();
    let mut apply = |manifest: Manifest, observed: Option<Value>| {
        let body = diff::stamp(manifest.body);
        let due = match &observed {
            None => true,
            Some(observed) => is_ours(observed, &parent) && diff::differs(&body, observed),
        };
        if due {
            plan.steps.push(Step::Apply(Manifest { body, ..manifest }));
        }
    };
    let Snapshot {
        secrets,
        service_account,
        role,
        role_binding,
        disruption_budget,
        stateful_set,
    } = snapshot;
    apply(
        frame.service_account(),
        service_account.as_ref().map(|object| json!(object)),
    );
    let account = names::account_secret_name(&pool.name);
    if !secrets.contains(&account) {
        apply(frame.account_secret(&account), None);
    }
    let secrets = secrets.iter().cloned().chain([account]).collect();
    apply(frame.role(&secrets), role.as_ref().map(|object| json!(object)));
    apply(
        frame.role_binding(),
        role_binding.as_ref().map(|object| json!(object)),
    );
    apply(
        frame.disruption_budget(),
        disruption_budget.as_ref().map(|object| json!(object)),
    );
    apply(
        frame.stateful_set(),
        stateful_set.as_ref().map(|object| json!(object)),
    );
    plan
}

fn is_ours(observed: &Value, parent: &Parent) -> bool {
    let labels = observed.pointer("/metadata/labels").cloned().unwrap_or_default();
    serde_json::from_value(labels)
        .ok()
        .and_then(|labels| Parent::from_labels(&labels))
        .as_ref()
        == Some(parent)
}
