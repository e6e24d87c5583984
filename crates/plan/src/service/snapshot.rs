//! What the cluster holds about one Service.

use k8s_openapi::api::core::v1::Service;
use tailwharf_kube_types::Parent;
use tailwharf_kube_types::contract::{FINALIZER, PROXY_READY, annotation};

use crate::identity::Observed;
use crate::plan::{Kind, ObjectRef};

/// A Service and what was made for it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// The Service itself; `None` if it is gone.
    pub service: Option<Service>,
    /// Objects in the operator's namespace with the labels of [`Self::parent`].
    pub observed: Observed,
}

impl Snapshot {
    /// The Service as a parent; its labels find what was made for it.
    #[must_use]
    pub fn parent(&self) -> Parent {
        Parent::service(&self.namespace, &self.name)
    }

    /// The Service, unless it is gone or being deleted.
    pub(super) fn living(&self) -> Option<&Service> {
        self.service
            .as_ref()
            .filter(|service| service.metadata.deletion_timestamp.is_none())
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.service
            .as_ref()?
            .metadata
            .annotations
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    /// Whether anything was made for the Service.
    pub(super) fn has_objects(&self) -> bool {
        let Observed {
            identities,
            secrets,
            egress,
            granted: _,
            pod_ports: _,
        } = &self.observed;
        !identities.is_empty() || !secrets.is_empty() || !egress.is_empty()
    }

    pub(super) fn finalizers(&self) -> &[String] {
        self.service
            .as_ref()
            .and_then(|service| service.metadata.finalizers.as_deref())
            .unwrap_or_default()
    }

    pub(super) fn has_finalizer(&self) -> bool {
        self.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
    }

    /// All finalizers and ours, with the resource version that they are for; `None` if ours is there already.
    pub(crate) fn finalizers_with_ours(&self) -> Option<(String, Vec<String>)> {
        let all = || self.finalizers().iter().cloned().chain([FINALIZER.to_owned()]);
        (!self.has_finalizer()).then(|| (self.resource_version(), all().collect()))
    }

    pub(super) fn resource_version(&self) -> String {
        let version = self
            .service
            .as_ref()
            .and_then(|service| service.metadata.resource_version.clone());
        version.unwrap_or_default()
    }

    pub(crate) fn reference(&self) -> ObjectRef {
        ObjectRef::new(Kind::Service, &self.namespace, &self.name)
    }

    /// Whether another controller of the contract serves the Service through a ProxyGroup.
    pub(super) fn has_proxy_group(&self) -> bool {
        self.annotation(annotation::PROXY_GROUP).is_some()
    }

    pub(super) fn condition(&self) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
        let conditions = self.service.as_ref()?.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == PROXY_READY)
    }
}
