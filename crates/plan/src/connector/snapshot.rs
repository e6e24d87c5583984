//! What the cluster holds about one Connector.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tailwharf_kube_types::{Connector, Parent};

use crate::class::NamedClass;
use crate::identity::Observed;
use crate::plan::{Kind, ObjectRef};
use crate::ranges::Ranges;
use crate::subject::Subject;

/// A Connector and what was made for it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Name of the Connector.
    pub name: String,
    /// The Connector itself; `None` if it is gone.
    pub connector: Option<Connector>,
    /// The ProxyClass that it names. The class of the settings is not for Connectors.
    pub class: Option<NamedClass>,
    /// Objects in the operator's namespace with the labels of [`Self::parent`].
    pub observed: Observed,
    /// The cluster's addresses.
    pub ranges: Ranges,
}

impl Snapshot {
    /// The Connector as a parent; its labels find what was made for it.
    #[must_use]
    pub fn parent(&self) -> Parent {
        Parent::connector(&self.name)
    }

    pub(super) fn reference(&self) -> ObjectRef {
        ObjectRef::cluster(Kind::Connector, &self.name)
    }

    /// The Connector, unless it is gone or being deleted.
    pub(super) fn living(&self) -> Option<&Connector> {
        self.connector
            .as_ref()
            .filter(|connector| connector.metadata.deletion_timestamp.is_none())
    }

    /// Whether anything was made for the Connector.
    pub(super) fn has_objects(&self) -> bool {
        !self.observed.identities.is_empty() || !self.observed.secrets.is_empty()
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject(self.connector.as_ref().map(|connector| &connector.metadata))
    }

    pub(super) fn conditions(&self) -> &[Condition] {
        let status = self
            .connector
            .as_ref()
            .and_then(|connector| connector.status.as_ref());
        status
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default()
    }

    pub(super) fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions()
            .iter()
            .find(|condition| condition.type_ == type_)
    }
}
