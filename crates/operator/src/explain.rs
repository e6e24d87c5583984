//! `tailwharf explain`: reads what the caller may read of the cluster, and prints the chain from an object to its backend.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tailwharf_kube_types::{Identity, Parent};
use tailwharf_plan::EndpointsView;
use tailwharf_plan::explain::{BackendFacts, Chain, Facts, Object, explain as chain};
use tailwharf_plan::ingress::backend_services;

/// Which object is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `service/NAME`
    Service(String),
    /// `ingress/NAME`
    Ingress(String),
}

impl Target {
    /// The object, as what is made for it names it.
    pub(crate) fn parent(&self, namespace: &str) -> Parent {
        match self {
            Self::Service(name) => Parent::service(namespace, name),
            Self::Ingress(name) => Parent::ingress(namespace, name),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service/{name}"),
            Self::Ingress(name) => write!(f, "ingress/{name}"),
        }
    }
}

/// A text is no [`Target`].
#[derive(Debug, thiserror::Error)]
#[error("expected service/NAME or ingress/NAME")]
pub struct TargetError;

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split_once('/') {
            Some(("service" | "services" | "svc", name)) if !name.is_empty() => {
                Ok(Self::Service(name.to_owned()))
            }
            Some(("ingress" | "ingresses" | "ing", name)) if !name.is_empty() => {
                Ok(Self::Ingress(name.to_owned()))
            }
            _ => Err(TargetError),
        }
    }
}

/// Reads the cluster of the current kubeconfig and puts the chain of an object together. Without a namespace it is that of the kubeconfig's context.
///
/// # Errors
/// When there is no cluster, no such object, or the caller may not read it.
pub async fn explain(target: &Target, namespace: Option<&str>, operator_namespace: &str) -> Result<Chain> {
    let reader = Reader::connect(namespace, operator_namespace).await?;
    Ok(chain(&reader.facts(target).await?))
}

/// Reads the cluster of the current kubeconfig.
pub(crate) struct Reader {
    pub(crate) client: Client,
    /// Where people's objects are.
    pub(crate) namespace: String,
    pub(crate) operator_namespace: String,
}

impl Reader {
    /// Without a namespace it is that of the kubeconfig's context.
    pub(crate) async fn connect(namespace: Option<&str>, operator_namespace: &str) -> Result<Self> {
        let config = kube::Config::infer()
            .await
            .context("no Kubernetes cluster: set KUBECONFIG to a kubeconfig file")?;
        let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
        let client = Client::try_from(config).context("the Kubernetes client could not be set up")?;
        Ok(Self {
            client,
            namespace,
            operator_namespace: operator_namespace.to_owned(),
        })
    }

    async fn facts(&self, target: &Target) -> Result<Facts> {
        let parent = target.parent(&self.namespace);
        let (object, services) = match target {
            Target::Service(name) => {
                let Some(service) = self.service(name).await? else {
                    bail!("there is no Service {name:?} in namespace {}", self.namespace);
                };
                (Object::Service(Box::new(service)), vec![name.clone()])
            }
            Target::Ingress(name) => {
                let api: Api<Ingress> = Api::namespaced(self.client.clone(), &self.namespace);
                let found = api.get_opt(name).await.context("the Ingress cannot be read")?;
                let Some(ingress) = found else {
                    bail!("there is no Ingress {name:?} in namespace {}", self.namespace);
                };
                let mut services: Vec<String> = backend_services(&ingress).map(str::to_owned).collect();
                services.sort();
                services.dedup();
                let controller = self.controller(&ingress).await?;
                (Object::Ingress(Box::new(ingress), controller), services)
            }
        };
        let mut backends = Vec::new();
        for service in services {
            backends.push(self.backend(service).await?);
        }
        Ok(Facts {
            object,
            namespace: self.operator_namespace.clone(),
            identity: self.identity(&parent).await?,
            backends,
        })
    }

    async fn service(&self, name: &str) -> Result<Option<Service>> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        api.get_opt(name).await.context("the Service cannot be read")
    }

    async fn controller(&self, ingress: &Ingress) -> Result<Option<String>> {
        let class = ingress
            .spec
            .as_ref()
            .and_then(|spec| spec.ingress_class_name.as_ref());
        let Some(class) = class else { return Ok(None) };
        let api: Api<IngressClass> = Api::all(self.client.clone());
        let class = api
            .get_opt(class)
            .await
            .context("the IngressClass cannot be read")?;
        Ok(class.and_then(|class| class.spec?.controller))
    }

    /// The Identity that was made for an object.
    pub(crate) async fn identity(&self, parent: &Parent) -> Result<Option<Identity>> {
        let api: Api<Identity> = Api::namespaced(self.client.clone(), &self.operator_namespace);
        let params = ListParams::default().labels(&parent.selector());
        let found = api.list(&params).await.with_context(|| {
            format!(
                "the Identities in namespace {} cannot be read",
                self.operator_namespace
            )
        })?;
        Ok(found.into_iter().next())
    }

    async fn backend(&self, service: String) -> Result<BackendFacts> {
        let Some(found) = self.service(&service).await? else {
            return Ok(BackendFacts {
                service,
                ready: None,
                external: false,
            });
        };
        let external = found.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.namespace);
        let label = format!("kubernetes.io/service-name={}", found.name_any());
        let slices = api
            .list(&ListParams::default().labels(&label))
            .await
            .context("the EndpointSlices cannot be read")?;
        // An endpoint of two address families is one endpoint.
        let mut ready: BTreeMap<String, usize> = BTreeMap::new();
        for slice in slices {
            let family = slice.address_type.clone();
            *ready.entry(family).or_default() += EndpointsView::from_slice(slice).ready.len();
        }
        Ok(BackendFacts {
            service,
            ready: Some(ready.into_values().max().unwrap_or_default()),
            external,
        })
    }
}
