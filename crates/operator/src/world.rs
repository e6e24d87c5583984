//! What the operator knows of the cluster: one cache per kind, and which keys a change wakes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use ipnet::IpNet;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DynamicObject, ObjectMeta, Resource};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use tailwharf_kube_types::contract::{DEFAULT_POOL, FINALIZER, annotation};
use tailwharf_kube_types::dns_config::DNSConfig;
use tailwharf_kube_types::{
    ConditionStatus, ConditionType, Connector, Identity, Parent, ParentKind, ProxyClass, names,
};
use tailwharf_plan::class::{self, NamedClass};
use tailwharf_plan::identity::{Grants, Observed, SecretView};
use tailwharf_plan::{Kind, ObjectRef, Ranges, Settings, egress, nameserver, operator_device, pool};
use tokio::task::JoinSet;

use crate::cache::{Cache, Change, ObjectKey};
use crate::exposing::Exposing;
use crate::metrics::{Gauges, Metrics};
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
            granted: RwLock::default(),
            pod_ports: RwLock::default(),
        }
    }

    // Reading: what `fetch` is made of.

    pub(crate) fn service(&self, key: &ObjectKey) -> Option<Service> {
        self.services.get(key).map(|service| service.as_ref().clone())
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

    /// What leads pods of the cluster to a parent's identity. People's own Services may carry any labels.
    fn egress(&self, parent: &Parent) -> egress::Objects {
        let mut services = self.services.of_parent(parent);
        services.retain(|service| self.is_in_own_namespace(service.as_ref()));
        let slices = self.endpoint_slices.of_parent(parent);
        egress::Objects {
            services: services.iter().map(|object| object.as_ref().clone()).collect(),
            slices: slices.iter().map(|object| object.as_ref().clone()).collect(),
        }
    }

    fn is_in_own_namespace(&self, object: &impl ResourceExt) -> bool {
        object.meta().namespace.as_deref() == Some(&*self.settings.namespace)
    }

    pub(crate) fn connector(&self, name: &str) -> Option<Connector> {
        copy(&self.connectors, &ObjectKey::new("", name))
    }

    pub(crate) fn proxy_class(&self, name: &str) -> Option<Arc<ProxyClass>> {
        self.proxy_classes.get(&ObjectKey::new("", name))
    }

    /// A ProxyClass that something names.
    pub(crate) fn named_class(&self, name: &str) -> NamedClass {
        NamedClass {
            name: name.to_owned(),
            class: self.proxy_class(name),
        }
    }

    /// The ProxyClass of a Service or Ingress.
    pub(crate) fn class_of(&self, object: &ObjectMeta) -> Option<NamedClass> {
        let name = class::of_object(object, self.settings.default_class.as_deref())?;
        Some(self.named_class(name))
    }

    /// All ProxyClasses but one.
    pub(crate) fn other_classes(&self, name: &str) -> Vec<Arc<ProxyClass>> {
        let mut others = self.proxy_classes.all();
        others.retain(|class| class.name_any() != name);
        others.sort_by_key(|class| class.name_any());
        others
    }

    /// The addresses of the cluster, as far as machines and ServiceCIDRs tell them.
    pub(crate) fn ranges(&self) -> Ranges {
        let services = self.service_ranges.all();
        let texts = services
            .iter()
            .filter_map(|range| range.spec.as_ref()?.cidrs.as_ref())
            .flatten();
        Ranges {
            pods: self
                .nodes
                .all()
                .iter()
                .flat_map(|node| node.pods.clone())
                .collect(),
            services: texts.filter_map(|text| text.parse().ok()).collect(),
        }
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
        let hosted = identities
            .iter()
            .filter(|identity| pool::of_identity(identity).contains(name))
            .flat_map(|identity| pool::secrets_of(identity));
        pool::Snapshot {
            name: name.to_owned(),
            class: self.class_of_pool(name),
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
            let egress = identity.spec.egress.clone()?;
            let service = copy(&self.services, &key(&identity.name_any()))?;
            Some((egress, service))
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

    fn class_of_pool(&self, pool: &str) -> Option<Arc<ProxyClass>> {
        let classes = self.proxy_classes.all();
        classes
            .into_iter()
            .find(|class| names::pool_of_class(&class.name_any()) == pool)
    }

    /// The kinds whose first list is not here yet.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        [
            ("Services", self.services.is_synced()),
            ("Connectors", self.connectors.is_synced()),
            ("ProxyClasses", self.proxy_classes.is_synced()),
            ("Nodes", self.nodes.is_synced()),
            ("Identities", self.identities.is_synced()),
            ("Ingresses", self.exposing.ingresses.is_synced()),
            ("EndpointSlices", self.exposing.endpoints.is_synced()),
            ("Secrets", self.secrets.is_synced()),
            ("ServiceAccounts", self.service_accounts.is_synced()),
            ("Roles", self.roles.is_synced()),
            ("RoleBindings", self.role_bindings.is_synced()),
            ("PodDisruptionBudgets", self.disruption_budgets.is_synced()),
            ("StatefulSets", self.stateful_sets.is_synced()),
            ("EndpointSlices", self.endpoint_slices.is_synced()),
            ("DNSConfigs", self.dns_configs.is_synced()),
            ("Deployments", self.deployments.is_synced()),
            ("ConfigMaps", self.config_maps.is_synced()),
        ]
        .into_iter()
        .filter_map(|(kind, synced)| (!synced).then_some(kind))
        .collect()
    }

    /// Returns once the first list of every kind is here.
    pub(crate) async fn synced(&self) {
        tokio::join!(
            self.services.synced(),
            self.connectors.synced(),
            self.proxy_classes.synced(),
            self.nodes.synced(),
            self.identities.synced(),
            self.exposing.ingresses.synced(),
            self.exposing.endpoints.synced(),
            self.secrets.synced(),
            self.service_accounts.synced(),
            self.roles.synced(),
            self.role_bindings.synced(),
            self.disruption_budgets.synced(),
            self.stateful_sets.synced(),
            self.endpoint_slices.synced(),
            self.dns_configs.synced(),
            self.deployments.synced(),
            self.config_maps.synced(),
        );
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
        }
    }

    /// What is left that was made for somebody, and who still waits for its removal.
    pub(crate) fn remains(&self) -> Vec<String> {
        let made_for = |labels: &BTreeMap<String, String>| Parent::from_labels(labels).is_some();
        let counts = [
            (
                count(&self.identities, |object| made_for(object.labels())),
                "Identities",
            ),
            (count(&self.secrets, |view| made_for(&view.labels)), "Secrets"),
            (
                count(&self.stateful_sets, |object| made_for(object.labels())),
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

    // Following the cluster.

    /// Starts the watches.
    pub(crate) fn follow(self: &Arc<Self>, client: &Client, metrics: &Arc<Metrics>, tasks: &mut JoinSet<()>) {
        self.watch(
            tasks,
            metrics,
            "Service",
            Api::all(client.clone()),
            watcher::Config::default(),
            |world| &world.services,
            Self::service_changed,
        );
        self.follow_exposing(client, metrics, tasks);
        self.watch_cluster(
            tasks,
            metrics,
            client,
            "Connector",
            |world| &world.connectors,
            Self::connector_changed,
        );
        self.watch_cluster(
            tasks,
            metrics,
            client,
            "ProxyClass",
            |world| &world.proxy_classes,
            Self::class_changed,
        );
        self.watch_cluster(tasks, metrics, client, "Node", |world| &world.nodes, |_, _| ());
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "Identity",
            |world| &world.identities,
            Self::identity_changed,
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "Secret",
            |world| &world.secrets,
            Self::secret_changed,
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "ServiceAccount",
            |world| &world.service_accounts,
            Self::child_changed,
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "Role",
            |world| &world.roles,
            Self::role_changed,
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "RoleBinding",
            |world| &world.role_bindings,
            Self::child_changed,
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "PodDisruptionBudget",
            |world| &world.disruption_budgets,
            Self::child_changed,
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "StatefulSet",
            |world| &world.stateful_sets,
            Self::child_changed,
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "EndpointSlice",
            |world| &world.endpoint_slices,
            Self::child_changed,
        );
        self.watch(
            tasks,
            metrics,
            "DNSConfig",
            Api::all(client.clone()),
            watcher::Config::default(),
            |world| &world.dns_configs,
            |world, _| world.queue.add(Key::Nameserver),
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "Deployment",
            |world| &world.deployments,
            Self::child_changed,
        );
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "ConfigMap",
            |world| &world.config_maps,
            Self::child_changed,
        );
    }

    /// Follows the ranges of Services. For clusters that tell them, which those before Kubernetes 1.33 need not do.
    pub(crate) fn follow_service_ranges(
        self: &Arc<Self>,
        client: &Client,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<()>,
    ) {
        self.watch_cluster(
            tasks,
            metrics,
            client,
            "ServiceCIDR",
            |world| &world.service_ranges,
            |_, _| (),
        );
    }

    /// Watches a kind that has no namespaces.
    fn watch_cluster<W, V>(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        metrics: &Arc<Metrics>,
        client: &Client,
        kind: &'static str,
        cache: fn(&Self) -> &Cache<W, V>,
        changed: fn(&Self, &Change<'_, V>),
    ) where
        W: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let api = Api::all(client.clone());
        let config = watcher::Config::default();
        self.watch(tasks, metrics, kind, api, config, cache, changed);
    }

    /// Watches a kind in the operator's namespace: also what somebody else made, so that the names which are taken are known.
    fn watch_namespace<W, V>(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        metrics: &Arc<Metrics>,
        client: &Client,
        kind: &'static str,
        cache: fn(&Self) -> &Cache<W, V>,
        changed: fn(&Self, &Change<'_, V>),
    ) where
        W: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
        V: Send + Sync + 'static,
    {
        let api = Api::namespaced(client.clone(), &self.settings.namespace);
        self.watch(
            tasks,
            metrics,
            kind,
            api,
            watcher::Config::default(),
            cache,
            changed,
        );
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call per kind, each spelled out in a table"
    )]
    pub(crate) fn watch<W, V>(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        metrics: &Arc<Metrics>,
        kind: &'static str,
        api: Api<W>,
        config: watcher::Config,
        cache: fn(&Self) -> &Cache<W, V>,
        changed: fn(&Self, &Change<'_, V>),
    ) where
        W: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let (world, metrics) = (self.clone(), metrics.clone());
        // Small pages keep the peak of memory low while a large cluster is listed.
        let config = config.page_size(100);
        tasks.spawn(async move {
            let failed = |error: &watcher::Error| {
                metrics.watch_failed(kind);
                tracing::warn!(kind, error = %error, "the watch broke; starting it again");
            };
            cache(&world)
                .follow(api, config, |change| changed(&world, change), failed)
                .await;
        });
    }

    /// Takes the answer to a write of our own.
    pub(crate) fn remember(&self, kind: Kind, answer: DynamicObject) {
        match kind {
            Kind::Service => self.take(answer, &self.services, Self::service_changed),
            Kind::Ingress => self.take(answer, &self.exposing.ingresses, Self::ingress_changed),
            Kind::Connector => self.take(answer, &self.connectors, Self::connector_changed),
            Kind::ProxyClass => self.take(answer, &self.proxy_classes, Self::class_changed),
            Kind::Identity => self.take(answer, &self.identities, Self::identity_changed),
            Kind::Secret => self.take(answer, &self.secrets, Self::secret_changed),
            Kind::ServiceAccount => self.take(answer, &self.service_accounts, Self::child_changed),
            Kind::Role => self.take(answer, &self.roles, Self::role_changed),
            Kind::RoleBinding => self.take(answer, &self.role_bindings, Self::child_changed),
            Kind::PodDisruptionBudget => self.take(answer, &self.disruption_budgets, Self::child_changed),
            Kind::StatefulSet => self.take(answer, &self.stateful_sets, Self::child_changed),
            Kind::EndpointSlice => self.take(answer, &self.endpoint_slices, Self::child_changed),
            Kind::DnsConfig => self.take(answer, &self.dns_configs, |world, _| {
                world.queue.add(Key::Nameserver);
            }),
            Kind::Deployment => self.take(answer, &self.deployments, Self::child_changed),
            Kind::ConfigMap => self.take(answer, &self.config_maps, Self::child_changed),
        }
    }

    fn take<W, V>(&self, answer: DynamicObject, cache: &Cache<W, V>, changed: fn(&Self, &Change<'_, V>))
    where
        W: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    {
        match answer.try_parse::<W>() {
            Ok(object) => cache.remember(object, |change| changed(self, change)),
            Err(error) => tracing::debug!(error = %error, "an answer is left to the watch"),
        }
    }

    // Which keys a change wakes.

    fn service_changed(&self, change: &Change<'_, Service>) {
        self.queue.add(Key::Service(change.key.clone()));
        self.wake_users(change.key);
        if change.key.namespace == self.settings.namespace {
            self.child_changed(change);
            self.queue.add(Key::Nameserver);
        }
    }

    /// An identity may come or go with ports of pods. One that changes its pool, or whose host is in another, concerns both pools.
    fn identity_changed(&self, change: &Change<'_, Identity>) {
        let reaches = |identity: &&Identity| identity.spec.egress.is_some();
        let (before, after) = (change.before.filter(reaches), change.after.filter(reaches));
        if before.map(|identity| &identity.spec.egress) != after.map(|identity| &identity.spec.egress) {
            let mut shared = self.pod_ports.write().unwrap_or_else(PoisonError::into_inner);
            let ports = Arc::make_mut(&mut shared);
            before.into_iter().for_each(|identity| ports.remove(identity));
            after.into_iter().for_each(|identity| ports.add(identity));
            self.queue.add(Key::Nameserver);
        }
        let [before, after] =
            [change.before, change.after].map(|identity| identity.map(pool::of_identity).unwrap_or_default());
        for pool in before.symmetric_difference(&after) {
            self.queue.add(Key::Pool(pool.clone()));
        }
        self.child_changed(change);
    }

    fn connector_changed(&self, change: &Change<'_, Connector>) {
        self.queue.add(Key::Connector(change.key.name.clone()));
    }

    /// A class wakes its pool and whatever names it. One that changes its ports may be in the way of others, or not any more.
    fn class_changed(&self, change: &Change<'_, ProxyClass>) {
        let name = &change.key.name;
        let spec = |class: Option<&ProxyClass>| class.map(|class| class.spec.clone());
        if spec(change.before) == spec(change.after) {
            self.queue.add(Key::ProxyClass(name.clone()));
        } else {
            for class in self.proxy_classes.keys() {
                self.queue.add(Key::ProxyClass(class.name));
            }
        }
        self.queue.add(Key::Pool(names::pool_of_class(name)));
        for connector in self.connectors.all() {
            if connector.spec.proxy_class.as_ref() == Some(name) {
                self.queue.add(Key::Connector(connector.name_any()));
            }
        }
        let default = self.settings.default_class.as_deref();
        let names_it = |object: &ObjectMeta| class::of_object(object, default) == Some(name);
        for service in self.services.all() {
            if names_it(service.meta()) {
                self.queue.add(Key::Service(ObjectKey::of(service.as_ref())));
            }
        }
        for ingress in self.exposing.ingresses.all() {
            if names_it(ingress.meta()) {
                self.queue.add(Key::Ingress(ObjectKey::of(ingress.as_ref())));
            }
        }
    }

    /// Everything made for a parent wakes that parent, the old one as well if labels changed.
    fn child_changed<V: ResourceExt>(&self, change: &Change<'_, V>) {
        for object in [change.before, change.after].into_iter().flatten() {
            self.wake(parent_of(object).as_ref());
        }
    }

    /// A Secret that came or went also changes what the pool's Role has to name.
    fn secret_changed(&self, change: &Change<'_, SecretView>) {
        for view in [change.before, change.after].into_iter().flatten() {
            self.wake(Parent::from_labels(&view.labels).as_ref());
        }
        let [before, after] = [change.before, change.after].map(|view| view.and_then(SecretView::pool));
        if before != after {
            for pool in [before, after].into_iter().flatten() {
                self.queue.add(Key::Pool(pool.to_owned()));
            }
        }
    }

    /// A name that the pool's Role gained or lost wakes the parent of that Secret.
    fn role_changed(&self, change: &Change<'_, Role>) {
        self.child_changed(change);
        let parents = [change.before, change.after].map(|role| role.and_then(parent_of));
        let pool = parents
            .into_iter()
            .flatten()
            .find(|parent| parent.kind == ParentKind::Pool && self.key_of(parent).is_some());
        let Some(pool) = pool.filter(|pool| change.key.name == names::pool_objects_name(&pool.name)) else {
            return;
        };
        let now = pool::granted(change.after);
        let before = {
            let mut granted = self.granted.write().unwrap_or_else(PoisonError::into_inner);
            Arc::make_mut(&mut granted).set(&pool.name, now.clone())
        };
        for name in now.symmetric_difference(&before) {
            let key = ObjectKey::new(self.settings.namespace.as_str(), name.as_str());
            if let Some(secret) = self.secrets.get(&key) {
                self.wake(Parent::from_labels(&secret.labels).as_ref());
            }
        }
    }

    fn wake(&self, parent: Option<&Parent>) {
        if let Some(key) = parent.and_then(|parent| self.key_of(parent)) {
            self.queue.add(key);
        }
    }

    fn key_of(&self, parent: &Parent) -> Option<Key> {
        match parent.kind {
            ParentKind::Service => Some(Key::Service(ObjectKey::new(&*parent.namespace, &*parent.name))),
            ParentKind::Ingress => Some(Key::Ingress(ObjectKey::new(&*parent.namespace, &*parent.name))),
            ParentKind::Operator => {
                (*parent == operator_device::parent(&self.settings)).then_some(Key::OperatorDevice)
            }
            ParentKind::Nameserver => {
                (parent.namespace == self.settings.namespace).then_some(Key::Nameserver)
            }
            ParentKind::Connector => Some(Key::Connector(parent.name.clone())),
            ParentKind::Pool => {
                (parent.namespace == self.settings.namespace).then(|| Key::Pool(parent.name.clone()))
            }
        }
    }

    /// Puts everything in line: all that exists, and the parents of what was made for something that is gone.
    pub(crate) fn wake_all(&self) {
        self.queue.add(Key::Pool(DEFAULT_POOL.to_owned()));
        self.queue.add(Key::OperatorDevice);
        self.queue.add(Key::Nameserver);
        for key in self.proxy_classes.keys() {
            self.queue.add(Key::Pool(names::pool_of_class(&key.name)));
            self.queue.add(Key::ProxyClass(key.name));
        }
        for set in self.stateful_sets.all() {
            self.wake(parent_of(set.as_ref()).as_ref());
        }
        for key in self.connectors.keys() {
            self.queue.add(Key::Connector(key.name));
        }
        for key in self.services.keys() {
            self.queue.add(Key::Service(key));
        }
        for key in self.exposing.ingresses.keys() {
            self.queue.add(Key::Ingress(key));
        }
        for secret in self.secrets.all() {
            self.wake(Parent::from_labels(&secret.labels).as_ref());
        }
        for identity in self.identities.all() {
            self.wake(parent_of(identity.as_ref()).as_ref());
        }
    }
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

/// What is of interest of a machine of the cluster.
pub(crate) struct NodeView {
    /// Ranges of the addresses of its pods.
    pods: Vec<IpNet>,
}

impl NodeView {
    fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let all = spec.and_then(|spec| spec.pod_cidrs.clone());
        let texts = all.or_else(|| Some(vec![spec?.pod_cidr.clone()?]));
        Self {
            pods: texts
                .iter()
                .flatten()
                .filter_map(|text| text.parse().ok())
                .collect(),
        }
    }
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use k8s_openapi::api::rbac::v1::PolicyRule;
    use kube::api::ObjectMeta;
    use serde_json::json;

    use tailwharf_kube_types::contract::label;

    use super::*;
    use crate::queue::Next;

    fn world() -> World {
        let settings = json!({
            "namespace": "tailscale", "loginServer": "http://control.test", "clusterDomain": "cluster.local", "defaultTags": ["tag:k8s"],
            "operatorHostname": "tailscale-operator", "operatorTags": ["tag:k8s-operator"],
            "defaultLoadBalancer": false, "ingressClass": "tailscale",
            "pool": {"replicas": 2, "image": "image"},
        });
        World::new(serde_json::from_value(settings).unwrap())
    }

    /// The keys in line, in order. They do not come again.
    fn woken(world: &World) -> Vec<Key> {
        let mut keys = Vec::new();
        while let Some(key) = world.queue.next().now_or_never() {
            world.queue.done(&key, Next::OnChange);
            keys.push(key);
        }
        keys
    }

    fn default_pool() -> Key {
        Key::Pool(DEFAULT_POOL.to_owned())
    }

    fn service(name: &str) -> Key {
        Key::Service(ObjectKey::new("shop", name))
    }

    fn secret(name: &str, parent: &Parent, version: u64) -> DynamicObject {
        let mut labels = parent.labels();
        labels.insert(label::POOL.to_owned(), "default".to_owned());
        let body = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {
                "name": name, "namespace": "tailscale", "labels": labels, "resourceVersion": version.to_string(),
            },
        });
        serde_json::from_value(body).unwrap()
    }

    fn role(names: &[&str], version: u64) -> DynamicObject {
        let world = world();
        let role = Role {
            metadata: ObjectMeta {
                name: Some(names::pool_objects_name("default")),
                namespace: Some("tailscale".to_owned()),
                labels: Some(pool::parent(&world.settings, DEFAULT_POOL).labels()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            rules: Some(vec![PolicyRule {
                resources: Some(vec!["secrets".to_owned()]),
                resource_names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
                ..PolicyRule::default()
            }]),
        };
        serde_json::from_value(serde_json::to_value(role).unwrap()).unwrap()
    }

    #[test]
    fn a_new_secret_wakes_its_parent_and_the_pool_whose_role_has_to_name_it() {
        let world = world();
        world.remember(Kind::Secret, secret("ts-a-0", &Parent::service("shop", "a"), 1));
        assert_eq!(woken(&world), [service("a"), default_pool()]);
        world.remember(Kind::Secret, secret("ts-a-0", &Parent::service("shop", "a"), 2));
        assert_eq!(woken(&world), [service("a")]);
    }

    #[test]
    fn a_role_wakes_the_parents_of_what_it_newly_names_and_no_others() {
        let world = world();
        for (version, name) in [(1, "a"), (2, "b")] {
            let parent = Parent::service("shop", name);
            world.remember(Kind::Secret, secret(&format!("ts-{name}-0"), &parent, version));
        }
        world.remember(Kind::Role, role(&["ts-a-0"], 3));
        woken(&world);
        world.remember(Kind::Role, role(&["ts-a-0", "ts-b-0"], 4));
        assert_eq!(woken(&world), [default_pool(), service("b")]);
        assert!(
            world
                .observed(&Parent::service("shop", "a"))
                .granted
                .has(DEFAULT_POOL, "ts-b-0")
        );
    }

    #[test]
    fn labels_that_move_wake_both_parents() {
        let world = world();
        world.remember(Kind::Secret, secret("ts-a-0", &Parent::service("shop", "a"), 1));
        woken(&world);
        world.remember(Kind::Secret, secret("ts-a-0", &Parent::service("shop", "b"), 2));
        assert_eq!(woken(&world), [service("a"), service("b")]);
    }

    #[test]
    fn what_another_operator_made_wakes_nobody() {
        let world = world();
        let other = Parent {
            namespace: "elsewhere".to_owned(),
            ..operator_device::parent(&world.settings)
        };
        world.remember(Kind::Secret, secret("ts-operator-0", &other, 1));
        assert_eq!(woken(&world), [default_pool()]);
        let mut foreign = secret("other", &other, 2);
        foreign.metadata.labels = None;
        world.remember(Kind::Secret, foreign);
        assert_eq!(woken(&world), []);
    }

    #[test]
    fn parents_that_are_gone_are_looked_at_too() {
        let world = world();
        world.remember(
            Kind::Secret,
            secret("ts-a-0", &Parent::service("shop", "gone"), 1),
        );
        woken(&world);
        world.wake_all();
        assert_eq!(
            woken(&world),
            [
                default_pool(),
                Key::OperatorDevice,
                Key::Nameserver,
                service("gone")
            ]
        );
    }
}
