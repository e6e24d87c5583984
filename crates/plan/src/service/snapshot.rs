//! What the cluster holds about one Service.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use tailwharf_kube_types::contract::{PROXY_READY, annotation};
use tailwharf_kube_types::{Identity, Parent};

use crate::class::NamedClass;
use crate::egress::Pods;
use crate::endpoints::EndpointsView;
use crate::identity::Observed;
use crate::plan::{Kind, ObjectRef};
use crate::subject::Subject;

/// A Service and what was made for it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// The Service itself; `None` if it is gone.
    pub service: Option<Service>,
    /// Its endpoints, if it [needs](crate::needs_endpoints) them.
    pub endpoints: Vec<EndpointsView>,
    /// The ProxyClass that it names, or that of the settings.
    pub class: Option<NamedClass>,
    /// The pods of the cluster, if only some may use it; `None` while they are not known.
    pub pods: Option<Pods>,
    /// The devices that pass connections on to what it stands for.
    pub devices: Vec<Arc<Identity>>,
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

    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject(self.service.as_ref().map(|service| &service.metadata))
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

    pub(crate) fn reference(&self) -> ObjectRef {
        ObjectRef::new(Kind::Service, &self.namespace, &self.name)
    }

    /// Whether another controller of the contract serves the Service through a ProxyGroup.
    pub(super) fn has_proxy_group(&self) -> bool {
        self.subject().annotation(annotation::PROXY_GROUP).is_some()
    }

    pub(super) fn condition(&self) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
        let conditions = self.service.as_ref()?.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == PROXY_READY)
    }
}
