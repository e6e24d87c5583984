//! The plan: what to do, in order.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tailwharf_kube_types::secret::SecretText;
use tailwharf_kube_types::{AuthKey, Tag};
use thiserror::Error;

use crate::report::Report;
use crate::subject::Finalizers;

/// What to do for one object of a user. An executor takes the steps in order and stops at the first that fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// What to do, in this order.
    pub steps: Vec<Step>,
    /// When to plan again although nothing has changed.
    pub wake_at: Option<Timestamp>,
    /// What is not done, and why.
    pub report: Report,
}

impl Plan {
    /// Whether there is nothing to do now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Sets the finalizers of an object of a user, if they change.
    pub(crate) fn set_finalizers(&mut self, object: &ObjectRef, change: Option<&Finalizers>) {
        if let Some((resource_version, finalizers)) = change {
            self.steps.push(Step::SetFinalizers {
                object: object.clone(),
                resource_version: resource_version.clone(),
                finalizers: finalizers.clone(),
            });
        }
    }

    /// Whether finalizers are set.
    pub(crate) fn sets_finalizers(&self) -> bool {
        self.steps
            .iter()
            .any(|step| matches!(step, Step::SetFinalizers { .. }))
    }

    /// Plans again at `time`, or earlier if that was asked for already.
    pub(crate) fn wake(&mut self, time: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(time, |earlier| earlier.min(time)));
    }
}

/// One thing to do. Each can be repeated without harm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Step {
    /// Set `metadata.finalizers` by a merge patch that holds for this resource version only; another version is a
    /// [`crate::FailureKind::Conflict`].
    SetFinalizers {
        /// Whose.
        object: ObjectRef,
        /// The version the plan was made for.
        resource_version: String,
        /// All finalizers, those of others included.
        finalizers: Vec<String>,
    },
    /// Make a Service stand for a name, by a merge patch: `type: ExternalName`, `externalName` and no selector.
    SetExternalName {
        /// Which Service.
        object: ObjectRef,
        /// The name.
        external_name: String,
    },
    /// Ask the control server for a preauthorized auth key that works once, and fill `slot` with it.
    MintAuthKey {
        /// What gets the key.
        slot: Slot,
        /// Tags of the device that will use it.
        tags: Vec<Tag>,
        /// Whether the device is ephemeral.
        ephemeral: bool,
        /// Shown in the control server's list of keys.
        description: String,
    },
    /// Replace the tags of a device.
    SetDeviceTags {
        /// Stable id.
        device: String,
        /// The new tags.
        tags: Vec<Tag>,
    },
    /// Remove a device at the control server. That it does not exist any more is success.
    DeleteDevice {
        /// Stable id.
        device: String,
    },
    /// Remove the device with this node key at the control server. That there is none is success.
    DeleteDeviceOfKey {
        /// `nodekey:…`.
        node_key: String,
    },
    /// Revoke an auth key, so that nobody registers with it from now on. That it does not exist any more is success.
    RevokeAuthKey {
        /// Its id.
        key: String,
    },
    /// Server-side apply, forced, by the field manager of the operator.
    Apply(Manifest),
    /// Copy certificate and key (`tls.crt`, `tls.key`) from a Secret of a user, if it still has this version; another is a
    /// [`crate::FailureKind::Conflict`].
    CopyCertificate {
        /// The Secret of the user.
        from: ObjectRef,
        /// The version that the plan was made for.
        resource_version: String,
        /// The Secret of the identity.
        to: ObjectRef,
        /// The keys there are `<this>.crt` and `<this>.key`.
        certificate: String,
    },
    /// Remove certificates and keys from the Secret of an identity.
    DropCertificates {
        /// The Secret.
        from: ObjectRef,
        /// Their names.
        certificates: Vec<String>,
    },
    /// Delete an object. That it does not exist any more is success.
    Delete {
        /// Which.
        object: ObjectRef,
        /// Only if it is still this one; another uid is success as well.
        uid: Option<String>,
    },
}

/// An object to apply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Manifest {
    /// Its kind and name.
    pub object: ObjectRef,
    /// The fields to apply, with `apiVersion`, `kind` and `metadata`.
    pub body: Value,
    /// Fields whose value becomes known during execution.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<SlotUse>,
}

impl Manifest {
    /// The body with all slots filled, ready to be sent.
    pub fn fill(&self, filled: &Filled) -> Result<Value, UnfilledSlot> {
        let mut body = self.body.clone();
        for SlotUse { slot, data_key } in &self.slots {
            let value = filled.get(*slot).ok_or(UnfilledSlot { slot: *slot })?;
            body["data"][data_key] = Value::String(STANDARD.encode(value.reveal()));
        }
        Ok(body)
    }
}

/// A value that exists only after a step of the same plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Slot {
    /// The key that [`Step::MintAuthKey`] got.
    AuthKey,
}

/// Where a slot's value goes: into a Secret's `data`, in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotUse {
    /// Which value.
    pub slot: Slot,
    /// Key of the Secret's data.
    pub data_key: String,
}

/// The values of slots that are known by now.
#[derive(Debug, Default)]
pub struct Filled(BTreeMap<Slot, SecretText>);

impl Filled {
    /// Fills a slot.
    pub fn set(&mut self, slot: Slot, value: AuthKey) {
        self.0.insert(slot, value);
    }

    fn get(&self, slot: Slot) -> Option<&SecretText> {
        self.0.get(&slot)
    }
}

/// A manifest was to be applied before its slot was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the plan applies an object before the step that fills its slot {slot:?}")]
pub struct UnfilledSlot {
    /// The empty slot.
    pub slot: Slot,
}

/// Kinds of objects that plans name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `v1`
    Service,
    /// `v1`
    Secret,
    /// `v1`
    ServiceAccount,
    /// `rbac.authorization.k8s.io/v1`
    Role,
    /// `rbac.authorization.k8s.io/v1`
    RoleBinding,
    /// `apps/v1`
    StatefulSet,
    /// `policy/v1`
    PodDisruptionBudget,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `v1`
    ConfigMap,
    /// `apps/v1`
    Deployment,
    /// `tailscale.com/v1alpha1`, without a namespace
    #[serde(rename = "DNSConfig")]
    DnsConfig,
    /// `networking.k8s.io/v1`
    Ingress,
    /// `tailwharf.dev/v1alpha1`
    Identity,
    /// `tailscale.com/v1alpha1`
    Connector,
    /// `tailscale.com/v1alpha1`
    ProxyClass,
}

impl Kind {
    /// `apiVersion` of objects of this kind.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Secret | Self::ServiceAccount | Self::ConfigMap => "v1",
            Self::Role | Self::RoleBinding => "rbac.authorization.k8s.io/v1",
            Self::StatefulSet | Self::Deployment => "apps/v1",
            Self::PodDisruptionBudget => "policy/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::DnsConfig => "tailscale.com/v1alpha1",
            Self::Ingress => "networking.k8s.io/v1",
            Self::Identity => "tailwharf.dev/v1alpha1",
            Self::Connector | Self::ProxyClass => "tailscale.com/v1alpha1",
        }
    }

    /// `kind` of objects of this kind.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Secret => "Secret",
            Self::ServiceAccount => "ServiceAccount",
            Self::Role => "Role",
            Self::RoleBinding => "RoleBinding",
            Self::StatefulSet => "StatefulSet",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::EndpointSlice => "EndpointSlice",
            Self::ConfigMap => "ConfigMap",
            Self::Deployment => "Deployment",
            Self::DnsConfig => "DNSConfig",
            Self::Ingress => "Ingress",
            Self::Identity => "Identity",
            Self::Connector => "Connector",
            Self::ProxyClass => "ProxyClass",
        }
    }

    /// The resource's name in URLs.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Secret => "secrets",
            Self::ServiceAccount => "serviceaccounts",
            Self::Role => "roles",
            Self::RoleBinding => "rolebindings",
            Self::StatefulSet => "statefulsets",
            Self::PodDisruptionBudget => "poddisruptionbudgets",
            Self::EndpointSlice => "endpointslices",
            Self::ConfigMap => "configmaps",
            Self::Deployment => "deployments",
            Self::DnsConfig => "dnsconfigs",
            Self::Ingress => "ingresses",
            Self::Identity => "identities",
            Self::Connector => "connectors",
            Self::ProxyClass => "proxyclasses",
        }
    }
}

/// An object by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty if the kind has none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectRef {
    /// An object by kind and name.
    #[must_use]
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// An object of a kind without namespaces.
    #[must_use]
    pub fn cluster(kind: Kind, name: &str) -> Self {
        Self::new(kind, "", name)
    }

    /// The `metadata` that names it.
    pub(crate) fn metadata(&self) -> Value {
        let mut metadata = json!({"name": self.name});
        if !self.namespace.is_empty() {
            metadata["namespace"] = json!(self.namespace);
        }
        metadata
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return write!(f, "{} {}", self.kind.as_str(), self.name);
        }
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// A Kubernetes event on the object of the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Normal or Warning.
    #[serde(rename = "type")]
    pub type_: EventType,
    /// A fixed word.
    pub reason: &'static str,
    /// A sentence that says what to do.
    pub message: String,
}

/// Type of an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum EventType {
    /// Something went as it should.
    Normal,
    /// Someone has to do something.
    Warning,
}
