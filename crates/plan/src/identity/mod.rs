//! One device on the tailnet: an Identity, its Secret, and the device at the control server.
//!
//! [`provision`] brings them into being in the order *Secret with auth key, right of the pool to read it, Identity*; [`release`] removes them in the
//! order *device, Identity, Secret*, so that what is needed to find the device goes last.

mod provision;
mod release;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tailwharf_kube_types::contract::{OPERATOR_FIELD_MANAGER, annotation, label};
use tailwharf_kube_types::secret::key;
use tailwharf_kube_types::{
    ConditionStatus, ConditionType, Identity, IdentityReason, IdentitySpec, Parent, Tag, names,
};

pub(crate) use provision::{certificates_secret, park, provision, secrets};
pub(crate) use release::release;

use crate::diff;
use crate::egress;
use crate::plan::{Kind, Manifest, ObjectRef};
use crate::report::Reason;

/// How long a host may take from reading an auth key to writing down the device that it registered.
pub const REGISTRATION_LIMIT: SignedDuration = SignedDuration::from_secs(10);
/// How long a host may take to take over a change.
pub const HOST_GRACE: SignedDuration = SignedDuration::from_secs(5);
/// How long a refused auth key stays before it is replaced.
pub const KEY_REPLACEMENT_PAUSE: SignedDuration = SignedDuration::from_mins(5);

/// What exists for one parent.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Identities with the parent's labels.
    pub identities: Vec<Identity>,
    /// Secrets with the parent's labels.
    pub secrets: Vec<SecretView>,
    /// The Secrets that pods may read.
    pub granted: Arc<Grants>,
    /// What leads pods of the cluster to the identity.
    pub egress: egress::Objects,
    /// The ports of pods that stand for ports of targets.
    pub pod_ports: Arc<egress::PortsInUse>,
}

/// Names of the Secrets that the Role of each pool lets its pods read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants(BTreeMap<String, Arc<BTreeSet<String>>>);

impl Grants {
    /// Notes what the Role of a pool names, and gives what it named before.
    pub fn set(&mut self, pool: &str, names: BTreeSet<String>) -> Arc<BTreeSet<String>> {
        let before = if names.is_empty() {
            self.0.remove(pool)
        } else {
            self.0.insert(pool.to_owned(), Arc::new(names))
        };
        before.unwrap_or_default()
    }

    /// Whether the pods of a pool may read a Secret.
    #[must_use]
    pub fn has(&self, pool: &str, secret: &str) -> bool {
        self.0.get(pool).is_some_and(|names| names.contains(secret))
    }
}

/// What plans know of a state Secret. It holds no secret, so that it can be kept and printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct SecretView {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Stable id of the device, once it is registered.
    pub device_id: Option<String>,
    /// Whether an auth key waits for its host.
    pub has_auth_key: bool,
    /// Id of that key at the control server, if its text shows one; after the removal began, as it was written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_key_id: Option<String>,
    /// Public key of the node, `nodekey:…`. The host writes it before it registers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_key: Option<String>,
    /// In the Secret of an identity's own certificates: their names. Of each there is `<name>.crt` and `<name>.key`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub certificates: BTreeSet<String>,
}

impl SecretView {
    /// Reads a Secret.
    #[must_use]
    pub fn from_secret(secret: &Secret) -> Self {
        let value = |key: &str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .filter(|value| !value.0.is_empty())
        };
        let released_key = || {
            secret
                .metadata
                .annotations
                .as_ref()?
                .get(annotation::RELEASED_KEY)
                .cloned()
        };
        Self {
            name: secret.metadata.name.clone().unwrap_or_default(),
            uid: secret.metadata.uid.clone().unwrap_or_default(),
            labels: secret.metadata.labels.clone().unwrap_or_default(),
            annotations: secret.metadata.annotations.clone().unwrap_or_default(),
            device_id: value(key::DEVICE_ID).map(|id| String::from_utf8_lossy(&id.0).into_owned()),
            has_auth_key: value(key::AUTH_KEY).is_some(),
            auth_key_id: value(key::AUTH_KEY)
                .and_then(|text| auth_key_id(&text.0))
                .or_else(released_key),
            node_key: value(key::NODE_STATE).and_then(|state| node_key(&state.0)),
            certificates: certificates(secret),
        }
    }

    /// The pool with which the operator shares this Secret, if tailwharf made it.
    #[must_use]
    pub fn pool(&self) -> Option<&str> {
        Parent::from_labels(&self.labels)?;
        self.labels.get(label::POOL).map(String::as_str)
    }

    fn time(&self, key: &str) -> Option<Timestamp> {
        self.annotations.get(key)?.parse().ok()
    }

    fn tags(&self) -> Option<&str> {
        self.annotations.get(annotation::DEVICE_TAGS).map(String::as_str)
    }

    /// Whether applying the manifest would change labels or annotations.
    fn differs_from(&self, manifest: &Manifest) -> bool {
        let observed = json!({"labels": self.labels, "annotations": self.annotations});
        let wanted = &manifest.body["metadata"];
        diff::differs(
            &json!({"labels": wanted["labels"], "annotations": wanted["annotations"]}),
            &observed,
        )
    }
}

/// The names of the certificates in an identity's Secret of certificates.
fn certificates(secret: &Secret) -> BTreeSet<String> {
    let is_of_certificates = secret
        .metadata
        .name
        .as_ref()
        .is_some_and(|name| name.ends_with(&names::certificates_name("")));
    let keys = secret.data.iter().flat_map(BTreeMap::keys);
    keys.filter(|_| is_of_certificates)
        .filter_map(|key| key.strip_suffix(".crt").map(str::to_owned))
        .collect()
}

/// The id in `tskey-auth-<id>-<secret>`.
fn auth_key_id(text: &[u8]) -> Option<String> {
    let rest = std::str::from_utf8(text).ok()?.strip_prefix("tskey-auth-")?;
    let (id, _) = rest.split_once('-')?;
    Some(id.to_owned()).filter(|id| !id.is_empty())
}

fn node_key(state: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Part {
        node_key: Option<String>,
    }
    serde_json::from_slice::<Part>(state).ok()?.node_key
}

/// The device that a parent is to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// For what.
    pub parent: Parent,
    /// Name of the Identity.
    pub name: String,
    /// What the Identity says.
    pub spec: IdentitySpec,
}

impl Wanted {
    fn labels(&self) -> BTreeMap<String, String> {
        labels(&self.parent, &self.spec.pool)
    }

    /// The Identity to apply.
    fn manifest(&self, namespace: &str) -> Manifest {
        let object = ObjectRef::new(Kind::Identity, namespace, &self.name);
        let body = body(&object, &self.labels(), json!({"spec": self.spec}));
        Manifest {
            object,
            body: diff::stamp(body),
            slots: Vec::new(),
        }
    }
}

/// The Identity of the parent among those observed. `Err` names them if there are several: then someone copied labels.
pub(crate) fn only_identity(observed: &Observed) -> Result<Option<&Identity>, Vec<String>> {
    match observed.identities.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        several => Err(several
            .iter()
            .filter_map(|identity| identity.metadata.name.clone())
            .collect()),
    }
}

/// What the Identity still waits for, as its host last told. `None`: the device is ready.
pub(crate) fn waits_for(identity: &Identity) -> Option<Reason> {
    let Some(status) = identity
        .status
        .as_ref()
        .filter(|status| status.condition(ConditionType::Ready).is_some())
    else {
        return Some(Reason::NotHosted {
            pool: identity.spec.pool.clone(),
        });
    };
    match status.step(ConditionType::Ready) {
        (ConditionStatus::True, _) => None,
        (_, reason) => {
            let message = status
                .condition(ConditionType::Ready)
                .map(|ready| ready.message.clone())
                .unwrap_or_default();
            Some(Reason::IdentityNotReady { reason, message })
        }
    }
}

/// Until when the host may take over the last change of the Identity before it counts as behind: a change of its endpoints is not to make a Service
/// that is ready look broken for a moment. `None`: no change is known, or the time of the last one is not.
pub(crate) fn host_has_until(identity: &Identity) -> Option<Timestamp> {
    let ours = |entry: &&ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(OPERATOR_FIELD_MANAGER) && entry.subresource.is_none()
    };
    let changed = identity.metadata.managed_fields.iter().flatten().find(ours)?;
    changed.time.as_ref()?.0.checked_add(HOST_GRACE).ok()
}

/// Whether a reason keeps the device from being ready.
pub(crate) fn is_step(reason: &Reason) -> bool {
    match reason {
        Reason::PoolGrantPending { .. }
        | Reason::NotHosted { .. }
        | Reason::HostBehind
        | Reason::TargetLeadsBack { .. }
        | Reason::IdentityNotReady { .. } => true,
        Reason::KeyReplacementPending { .. }
        | Reason::PortsLeftOut { .. }
        | Reason::EndpointsLeftOut { .. }
        | Reason::SourcesLeftOut { .. }
        | Reason::PartsLeftOut { .. }
        | Reason::Rejected
        | Reason::RegistrationInFlight { .. }
        | Reason::DeviceLeftBehind { .. } => false,
    }
}

/// Whether the host says that the control server refused the auth key.
fn key_rejected(identity: &Identity) -> bool {
    identity.status.as_ref().is_some_and(|status| {
        status.step(ConditionType::Registered)
            == (ConditionStatus::False, Some(IdentityReason::AuthKeyRejected))
    })
}

fn labels(parent: &Parent, pool: &str) -> BTreeMap<String, String> {
    let mut labels = parent.labels();
    labels.insert(label::POOL.to_owned(), pool.to_owned());
    labels
}

/// The frame of an object to apply, and the fields of `rest`.
pub(crate) fn body(object: &ObjectRef, labels: &BTreeMap<String, String>, rest: Value) -> Value {
    let mut metadata = object.metadata();
    metadata["labels"] = json!(labels);
    let mut body = json!({
        "apiVersion": object.kind.api_version(),
        "kind": object.kind.as_str(),
        "metadata": metadata,
    });
    if let (Value::Object(body), Value::Object(rest)) = (&mut body, rest) {
        body.extend(rest);
    }
    body
}

/// The state Secret to apply. Its data is the host's, but for an auth key that a slot puts there.
fn secret_manifest(
    namespace: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<&str, String>,
) -> Manifest {
    let object = ObjectRef::new(Kind::Secret, namespace, name);
    let mut body = body(&object, labels, json!({}));
    if !annotations.is_empty() {
        body["metadata"]["annotations"] = json!(annotations);
    }
    Manifest {
        object,
        body: diff::stamp(body),
        slots: Vec::new(),
    }
}

fn secret_of(identity: &Identity) -> String {
    names::secret_name(identity.metadata.name.as_deref().unwrap_or_default())
}

fn join(tags: &[Tag]) -> String {
    Tag::join(tags)
}
