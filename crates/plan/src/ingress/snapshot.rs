//! What the cluster holds about one Ingress.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{Ingress, IngressBackend};
use serde::{Deserialize, Serialize};
use tailwharf_kube_types::Parent;

use crate::class::NamedClass;
use crate::endpoints::EndpointsView;
use crate::identity::Observed;
use crate::settings::Settings;
use crate::subject::Subject;

/// An Ingress, what it names, and what was made for it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Namespace of the Ingress.
    pub namespace: String,
    /// Name of the Ingress.
    pub name: String,
    /// The Ingress itself; `None` if it is gone.
    pub ingress: Option<Ingress>,
    /// The Services of [`backend_services`] that exist, by name.
    pub services: BTreeMap<String, Target>,
    /// The Secrets of [`certificate_secrets`], by name.
    pub certificates: BTreeMap<String, CertificateSecret>,
    /// The ProxyClass that it names, or that of the settings.
    pub class: Option<NamedClass>,
    /// The other Ingresses with the same [`hostname`](super::hostname).
    pub rivals: Vec<Rival>,
    /// Objects in the operator's namespace with the labels of [`Self::parent`].
    pub observed: Observed,
}

/// A Service that an Ingress names.
#[derive(Clone, Debug)]
pub struct Target {
    /// The Service.
    pub service: Service,
    /// Its endpoints, if it [needs](crate::needs_endpoints) them.
    pub endpoints: Vec<EndpointsView>,
}

/// Another Ingress that asks for the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rival {
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What is known of a Secret that is to hold a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CertificateSecret {
    /// It has not been read yet.
    Pending,
    /// There is none.
    Missing,
    /// The operator may not read it.
    Forbidden,
    /// It is there and cannot be used: what is wrong with it, for people.
    Invalid(String),
    /// It is there, and certificate and key belong together.
    Good(CertificateFacts),
}

/// What plans know of a certificate. There is no secret in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateFacts {
    /// Resource version of the Secret.
    pub resource_version: String,
    /// Digest of certificate and key, 16 hex digits.
    pub digest: String,
    /// The DNS names that it is for, in lower case.
    pub names: Vec<String>,
    /// From when it is good.
    pub not_before: Timestamp,
    /// Until when it is good.
    pub not_after: Timestamp,
}

impl Snapshot {
    /// The Ingress as a parent; its labels find what was made for it.
    #[must_use]
    pub fn parent(&self) -> Parent {
        Parent::ingress(&self.namespace, &self.name)
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject(self.ingress.as_ref().map(|ingress| &ingress.metadata))
    }

    /// The Ingress, unless it is gone or being deleted.
    pub(super) fn living(&self) -> Option<&Ingress> {
        self.ingress
            .as_ref()
            .filter(|ingress| ingress.metadata.deletion_timestamp.is_none())
    }

    /// Whether anything was made for the Ingress.
    pub(super) fn has_objects(&self) -> bool {
        !self.observed.identities.is_empty() || !self.observed.secrets.is_empty()
    }
}

/// Whether an Ingress is of the operator's class.
#[must_use]
pub fn is_ours(ingress: &Ingress, settings: &Settings) -> bool {
    let class = ingress
        .spec
        .as_ref()
        .and_then(|spec| spec.ingress_class_name.as_deref());
    class == Some(&settings.ingress_class)
}

/// The backends of an Ingress, the default one first.
pub(super) fn backends(ingress: &Ingress) -> impl Iterator<Item = &IngressBackend> {
    let spec = ingress.spec.as_ref();
    let default = spec.and_then(|spec| spec.default_backend.as_ref());
    let rules = spec.and_then(|spec| spec.rules.as_ref()).into_iter().flatten();
    let paths = rules
        .filter_map(|rule| rule.http.as_ref())
        .flat_map(|http| &http.paths);
    default.into_iter().chain(paths.map(|path| &path.backend))
}

/// Names of the Services that an Ingress names. Some may stand twice.
pub fn backend_services(ingress: &Ingress) -> impl Iterator<Item = &str> {
    backends(ingress).filter_map(|backend| Some(backend.service.as_ref()?.name.as_str()))
}

/// Names of the Secrets with certificates that an Ingress names. Some may stand twice.
pub fn certificate_secrets(ingress: &Ingress) -> impl Iterator<Item = &str> {
    let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref());
    tls.into_iter()
        .flatten()
        .filter_map(|tls| tls.secret_name.as_deref().filter(|name| !name.is_empty()))
}
