//! Following the cluster: the watches that fill the caches, and what answers to own writes tell.

use std::sync::Arc;

use kube::Client;
use kube::api::{Api, DynamicObject, Resource};
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use tailwharf_plan::Kind;
use tokio::task::JoinSet;

use super::{Key, World};
use crate::cache::{Cache, Change};
use crate::metrics::Metrics;

impl World {
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
}
