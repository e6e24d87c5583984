//! What the operator knows of the cluster: one cache per kind, and which keys a change wakes.

mod connectors;
mod follow;
mod sources;
mod wake;

use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use kube::api::Resource;
use serde::de::DeserializeOwned;
use tailwharf_kube_types::contract::{FINALIZER, annotation};
use tailwharf_kube_types::dns_config::DNSConfig;
use tailwharf_kube_types::{ConditionStatus, ConditionType, Connector, Identity, Parent, ProxyClass, names};
use tailwharf_plan::identity::{Grants, Observed, SecretView};
use tailwharf_plan::migrate::{self, is_applied};
use tailwharf_plan::{Kind, ObjectRef, Settings, egress, nameserver, pool};
use tokio::sync::watch;

use self::connectors::NodeView;
use self::sources::Origins;
use crate::cache::{Cache, Known, ObjectKey};
use crate::exposing::Exposing;
use crate::metrics::Gauges;
use crate::queue::Queue;

/// What a worker can be asked to bring in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A Service and its device.
    Service(ObjectKey),
    /// An Ingress and its device.
    Ingress(ObjectKey),
    /// The operator's own device.
    OperatorDevice,
    /// A Connector, by name, and its devices.
    Connector(String),
    /// A ProxyClass, by name.
    ProxyClass(String),
    /// A pool, by name.
    Pool(String),
    /// The nameserver for pods.
    Nameserver,
}

impl Key {
    /// The controller's name in metrics.
    pub(crate) fn controller(&self) -> &'static str {
        match self {
            Self::Service(_) => "service",
            Self::Ingress(_) => "ingress",
            Self::OperatorDevice => "operator_device",
            Self::Connector(_) => "connector",
            Self::ProxyClass(_) => "proxy_class",
            Self::Pool(_) => "pool",
            Self::Nameserver => "nameserver",
        }
    }
}

/// The caches and the queue that their changes fill.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) queue: Queue<Key>,
    services: Cache<Service>,
    connectors: Cache<Connector>,
    proxy_classes: Cache<ProxyClass>,
    nodes: Cache<Node, NodeView>,
    service_ranges: Cache<ServiceCIDR>,
    identities: Cache<Identity>,
    pub(crate) exposing: Exposing,
    origins: Origins,
    secrets: Cache<Secret, SecretView>,
    service_accounts: Cache<ServiceAccount>,
    roles: Cache<Role>,
    role_bindings: Cache<RoleBinding>,
    disruption_budgets: Cache<PodDisruptionBudget>,
    stateful_sets: Cache<StatefulSet>,
    endpoint_slices: Cache<EndpointSlice>,
    dns_configs: Cache<DNSConfig>,
    deployments: Cache<Deployment>,
    config_maps: Cache<ConfigMap>,
    /// The kinds that are watched, and what is known of each.
    watched: RwLock<Vec<(&'static str, watch::Receiver<Known>)>>,
    /// The Secrets that the Roles of the pools name.
    granted: RwLock<Arc<Grants>>,
    /// The ports of pods that stand for ports of targets.
    pod_ports: RwLock<Arc<egress::PortsInUse>>,
}

impl World {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            queue: Queue::default(),
            services: Cache::new(|service| slim_exposed(slim(service)), parent_of),
            connectors: Cache::new(slim, |_| None),
            proxy_classes: Cache::new(slim, |_| None),
            nodes: Cache::new(|node| NodeView::of(&node), |_| None),
            service_ranges: Cache::new(slim, |_| None),
            identities: Cache::new(slim_identity, parent_of),
            exposing: Exposing::default(),
            origins: Origins::default(),
            secrets: Cache::new(
                |secret| SecretView::from_secret(&secret),
                |view| Parent::from_labels(&view.labels),
            ),
            service_accounts: Cache::new(slim, parent_of),
            roles: Cache::new(slim, parent_of),
            role_bindings: Cache::new(slim, parent_of),
            disruption_budgets: Cache::new(slim, parent_of),
            stateful_sets: Cache::new(
                |mut object: StatefulSet| {
                    object.status = None;
                    slim(object)
                },
                parent_of,
            ),
            endpoint_slices: Cache::new(slim, parent_of),
            dns_configs: Cache::new(slim, |_| None),
            deployments: Cache::new(slim, parent_of),
            config_maps: Cache::new(slim_config_map, parent_of),
            watched: RwLock::default(),
            granted: RwLock::default(),
            pod_ports: RwLock::default(),
        }
    }

    // Reading: what `fetch` is made of.

    pub(crate) fn service(&self, key: &ObjectKey) -> Option<Service> {
        self.services.get(key).map(|service| service.as_ref().clone())
    }

    /// Why the Go operator is to be left to bring a key in order, if it is: it runs in this namespace, or pods that it made have the key's devices.
    pub(crate) fn left_to_another(&self, key: &Key) -> Option<String> {
        if matches!(key, Key::Pool(_)) {
            return None;
        }
        if let Some(operator) = self.go_operator() {
            return Some(format!("Deployment {operator} runs"));
        }
        let parent = match key {
            Key::Service(key) => Parent::service(&key.namespace, &key.name),
            Key::Ingress(key) => Parent::ingress(&key.namespace, &key.name),
            Key::Connector(name) => Parent::connector(name),
            Key::OperatorDevice | Key::ProxyClass(_) | Key::Pool(_) | Key::Nameserver => return None,
        };
        let sets = self.stateful_sets.of_parent(&parent);
        let set = sets
            .iter()
            .find(|set| migrate::holder(set).as_ref() == Some(&parent))?;
        Some(format!("StatefulSet {} has its devices", set.name_any()))
    }

    /// The name of the Deployment of a Go operator that runs in this namespace.
    pub(crate) fn go_operator(&self) -> Option<String> {
        let all = self.deployments.all();
        let running = all
            .iter()
            .find(|deployment| migrate::is_running_go_operator(deployment));
        running.map(|deployment| deployment.name_any())
    }

    /// What exists for a parent.
    pub(crate) fn observed(&self, parent: &Parent) -> Observed {
        Observed {
            identities: self
                .identities
                .of_parent(parent)
                .iter()
                .map(|object| object.as_ref().clone())
                .collect(),
            secrets: self
                .secrets
                .of_parent(parent)
                .iter()
                .filter(|view| view.pool().is_some())
                .map(|view| view.as_ref().clone())
                .collect(),
            granted: self
                .granted
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            egress: self.egress(parent),
            pod_ports: self
                .pod_ports
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// What leads pods of the cluster to a parent's identity. People's own Services may carry any labels, and those of the Go operator carry the same.
    fn egress(&self, parent: &Parent) -> egress::Objects {
        let mut services = self.services.of_parent(parent);
        services.retain(|service| self.is_in_own_namespace(service.as_ref()) && is_applied(service.meta()));
        let slices = self.endpoint_slices.of_parent(parent);
        egress::Objects {
            services: services.iter().map(|object| object.as_ref().clone()).collect(),
            slices: slices.iter().map(|object| object.as_ref().clone()).collect(),
        }
    }

    fn is_in_own_namespace(&self, object: &impl ResourceExt) -> bool {
        object.meta().namespace.as_deref() == Some(&*self.settings.namespace)
    }

    /// What exists of a pool.
    pub(crate) fn pool(&self, name: &str) -> pool::Snapshot {
        let key = ObjectKey::new(self.settings.namespace.as_str(), names::pool_objects_name(name));
        let secrets = self.secrets.all();
        let labelled = secrets
            .iter()
            .filter(|secret| secret.pool() == Some(name))
            .map(|secret| secret.name.clone());
        let identities = self.identities.all();
        let with_all_ports = identities
            .iter()
            .find(|identity| identity.spec.pool == name && has_all_ports(identity));
        let hosted = identities
            .iter()
            .filter(|identity| pool::of_identity(identity).contains(name))
            .flat_map(|identity| pool::secrets_of(identity));
        pool::Snapshot {
            name: name.to_owned(),
            class: match with_all_ports {
                Some(identity) => self.class_of_parent(identity),
                None => self.class_of_pool(name),
            },
            all_ports: with_all_ports.is_some(),
            secrets: labelled.chain(hosted).collect(),
            service_account: copy(&self.service_accounts, &key),
            role: copy(&self.roles, &key),
            role_binding: copy(&self.role_bindings, &key),
            disruption_budget: copy(&self.disruption_budgets, &key),
            stateful_set: copy(&self.stateful_sets, &key),
        }
    }

    /// What exists of the nameserver, and what it has to know.
    pub(crate) fn nameserver(&self) -> nameserver::Snapshot {
        let key = |name: &str| ObjectKey::new(self.settings.namespace.as_str(), name);
        let configs = self.dns_configs.all();
        let reached = |identity: Arc<Identity>| {
            let status = identity.status.as_ref();
            Some(nameserver::Reached {
                egress: identity.spec.egress.clone()?,
                service: copy(&self.services, &key(&identity.name_any()))?,
                host: status
                    .map(|status| status.host_addresses.clone())
                    .unwrap_or_default(),
            })
        };
        let mut identities = if configs.is_empty() {
            Vec::new()
        } else {
            self.identities.all()
        };
        identities.sort_by_key(|identity| identity.metadata.name.clone());
        nameserver::Snapshot {
            configs: configs.iter().map(|config| config.as_ref().clone()).collect(),
            reached: identities.into_iter().filter_map(reached).collect(),
            service_account: copy(&self.service_accounts, &key(nameserver::NAME)),
            deployment: copy(&self.deployments, &key(nameserver::NAME)),
            service: copy(&self.services, &key(nameserver::NAME)),
            records: copy(&self.config_maps, &key(nameserver::RECORDS)),
        }
    }

    pub(crate) fn gauges(&self, leader: bool) -> Gauges {
        let mut identities = self.identities.all();
        identities.retain(|identity| parent_of(identity.as_ref()).is_some());
        let ready = |identity: &Identity| {
            let step = identity
                .status
                .as_ref()
                .map(|status| status.step(ConditionType::Ready));
            step.is_some_and(|(status, _)| status == ConditionStatus::True)
        };
        Gauges {
            queue_depth: self.queue.depth(),
            leader,
            identities: identities.len(),
            identities_ready: identities.iter().filter(|identity| ready(identity)).count(),
            kinds_absent: self.absent(),
        }
    }

    /// What is left that was made for somebody, and who still waits for its removal.
    pub(crate) fn remains(&self) -> Vec<String> {
        let counts = [
            (
                count(&self.identities, |object| parent_of(object).is_some()),
                "Identities",
            ),
            (count(&self.secrets, |view| view.pool().is_some()), "Secrets"),
            (
                count(&self.stateful_sets, |object| {
                    parent_of(object).is_some() && is_applied(object.meta())
                }),
                "StatefulSets",
            ),
            (count(&self.services, waits), "Services"),
            (count(&self.exposing.ingresses, waits), "Ingresses"),
            (count(&self.connectors, waits), "Connectors"),
        ];
        let left = counts.into_iter().filter(|(count, _)| *count > 0);
        left.map(|(count, kind)| format!("{count} {kind}")).collect()
    }

    /// For whom an object was made, as far as the caches know: `None` if they do not know the object.
    pub(crate) fn owner(&self, object: &ObjectRef) -> Option<Option<Parent>> {
        let key = ObjectKey::new(object.namespace.as_str(), object.name.as_str());
        match object.kind {
            Kind::Service => self.services.owner(&key),
            Kind::Ingress => self.exposing.ingresses.owner(&key),
            Kind::Connector => self.connectors.owner(&key),
            Kind::ProxyClass => self.proxy_classes.owner(&key),
            Kind::Identity => self.identities.owner(&key),
            Kind::Secret => self.secrets.owner(&key),
            Kind::ServiceAccount => self.service_accounts.owner(&key),
            Kind::Role => self.roles.owner(&key),
            Kind::RoleBinding => self.role_bindings.owner(&key),
            Kind::PodDisruptionBudget => self.disruption_budgets.owner(&key),
            Kind::StatefulSet => self.stateful_sets.owner(&key),
            Kind::EndpointSlice => self.endpoint_slices.owner(&key),
            Kind::DnsConfig => self.dns_configs.owner(&key),
            Kind::Deployment => self.deployments.owner(&key),
            Kind::ConfigMap => self.config_maps.owner(&key),
        }
    }
}

/// Whether an identity has a pod of its own, with all ports of that.
fn has_all_ports(identity: &Identity) -> bool {
    identity
        .spec
        .egress
        .as_ref()
        .is_some_and(|egress| egress.all_ports)
}

fn count<W, V>(cache: &Cache<W, V>, is_left: impl Fn(&V) -> bool) -> usize
where
    W: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    cache.all().iter().filter(|object| is_left(object)).count()
}

/// Whether an object of people has our finalizer. Those of a ProxyGroup are another operator's.
fn waits(object: &impl ResourceExt) -> bool {
    let grouped = object
        .annotations()
        .get(annotation::PROXY_GROUP)
        .is_some_and(|group| !group.is_empty());
    !grouped && object.finalizers().iter().any(|name| name == FINALIZER)
}

fn copy<W>(cache: &Cache<W>, key: &ObjectKey) -> Option<W>
where
    W: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    cache.get(key).map(|object| object.as_ref().clone())
}

fn parent_of(object: &impl ResourceExt) -> Option<Parent> {
    Parent::from_labels(object.labels())
}

/// Managed fields are half of an object's size and nobody here reads them.
pub(crate) fn slim<W: Resource>(mut object: W) -> W {
    object.meta_mut().managed_fields = None;
    object
}

/// Of ConfigMaps only the nameserver's is read.
fn slim_config_map(mut config_map: ConfigMap) -> ConfigMap {
    if parent_of(&config_map).is_none() {
        config_map.data = None;
        config_map.binary_data = None;
    }
    slim(config_map)
}

/// Of the managed fields of an Identity only who wrote, and when.
fn slim_identity(mut identity: Identity) -> Identity {
    for entry in identity.metadata.managed_fields.iter_mut().flatten() {
        entry.fields_v1 = None;
    }
    identity
}

/// Of the annotations and labels of people's objects only those of the contract matter; clusters hold thousands of others.
pub(crate) fn slim_exposed<W: Resource>(mut object: W) -> W {
    let ours = |key: &String| key.starts_with("tailscale.com/") || key.starts_with("tailwharf.dev/");
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.retain(|key, _| ours(key));
    }
    if let Some(labels) = &mut object.meta_mut().labels {
        labels.retain(|key, _| ours(key));
    }
    object
}
