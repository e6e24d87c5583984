//! Following the cluster: the watches that fill the caches, and what answers to own writes tell.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use kube::Client;
use kube::api::{Api, DynamicObject, Resource};
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use tailwharf_plan::{Kind, Settings};
use tokio::task::JoinSet;

use super::{Key, World};
use crate::cache::{Cache, Change, Known, Need, News};
use crate::metrics::Metrics;

impl World {
    /// The kinds of which the API server has told nothing yet; `None` before the watches begin.
    pub(crate) fn missing(&self) -> Option<Vec<&'static str>> {
        let begun = !self
            .watched
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty();
        begun.then(|| self.kinds_of(Known::Nothing))
    }

    /// The kinds that the API server does not know, or does not let the operator list.
    pub(crate) fn absent(&self) -> Vec<&'static str> {
        self.kinds_of(Known::Absent)
    }

    fn kinds_of(&self, what: Known) -> Vec<&'static str> {
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        let kinds = watched.iter().filter(|(_, known)| *known.borrow() == what);
        kinds.map(|(kind, _)| *kind).collect()
    }

    /// Returns once the API server has told of every kind.
    pub(crate) async fn synced(&self) {
        let watched = self
            .watched
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (_, mut known) in watched {
            // The sender lives as long as `self`, so the awaited outcome is the only one.
            let _ = known.wait_for(|known| *known != Known::Nothing).await;
        }
    }

    /// Whether all Connectors are known.
    pub(crate) fn lists_connectors(&self) -> bool {
        self.connectors.is_listed()
    }

    /// Whether all DNSConfigs are known.
    pub(crate) fn lists_dns_configs(&self) -> bool {
        self.dns_configs.is_listed()
    }

    /// Starts the watches.
    pub(crate) fn follow(self: &Arc<Self>, client: &Client, metrics: &Arc<Metrics>, tasks: &mut JoinSet<()>) {
        self.watch_namespaces(
            tasks,
            metrics,
            client,
            "Service",
            |world| &world.services,
            Self::service_changed,
        );
        self.follow_exposing(client, metrics, tasks);
        self.follow_origins(client, metrics, tasks);
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
        // Clusters before Kubernetes 1.33 need not know it.
        self.watch_cluster(
            tasks,
            metrics,
            client,
            "ServiceCIDR",
            |world| &world.service_ranges,
            |_, _| (),
        );
        self.watch_cluster(
            tasks,
            metrics,
            client,
            "DNSConfig",
            |world| &world.dns_configs,
            |world, _| world.queue.add(Key::Nameserver),
        );
        self.follow_own(client, metrics, tasks);
    }

    /// Starts the watches of what is made in the operator's namespace.
    fn follow_own(self: &Arc<Self>, client: &Client, metrics: &Arc<Metrics>, tasks: &mut JoinSet<()>) {
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
        self.watch_namespace(
            tasks,
            metrics,
            client,
            "Deployment",
            |world| &world.deployments,
            Self::deployment_changed,
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

    /// Watches a kind that has no namespaces, and that the operator can do without.
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
        let apis = vec![(String::new(), api)];
        self.watch(
            tasks,
            metrics,
            kind,
            apis,
            &config,
            Need::Optional,
            cache,
            changed,
        );
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
            vec![(String::new(), api)],
            &watcher::Config::default(),
            Need::Required,
            cache,
            changed,
        );
    }

    /// Watches a kind in the namespaces whose objects are served, and in the operator's own: in all, unless the settings name some.
    pub(crate) fn watch_namespaces<W, V>(
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
        let Settings {
            namespace,
            watch_namespaces,
            ..
        } = &self.settings;
        let named: BTreeSet<&String> = watch_namespaces.iter().chain([namespace]).collect();
        let apis = match watch_namespaces.is_empty() {
            true => vec![(String::new(), Api::all(client.clone()))],
            false => named
                .into_iter()
                .map(|name| (name.clone(), Api::namespaced(client.clone(), name)))
                .collect(),
        };
        let config = watcher::Config::default();
        self.watch(
            tasks,
            metrics,
            kind,
            apis,
            &config,
            Need::Required,
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
        apis: Vec<(String, Api<W>)>,
        config: &watcher::Config,
        need: Need,
        cache: fn(&Self) -> &Cache<W, V>,
        changed: fn(&Self, &Change<'_, V>),
    ) where
        W: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        self.watched
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((kind, cache(self).known()));
        cache(self).expect(apis.len());
        for (scope, api) in apis {
            self.watch_one(
                tasks,
                metrics,
                kind,
                scope,
                api,
                config.clone(),
                need,
                cache,
                changed,
            );
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call per kind, each spelled out in a table"
    )]
    fn watch_one<W, V>(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        metrics: &Arc<Metrics>,
        kind: &'static str,
        scope: String,
        api: Api<W>,
        config: watcher::Config,
        need: Need,
        cache: fn(&Self) -> &Cache<W, V>,
        changed: fn(&Self, &Change<'_, V>),
    ) where
        W: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let (world, metrics) = (self.clone(), metrics.clone());
        tasks.spawn(async move {
            world
                .follow_kind(&metrics, kind, (&scope, api), config, need, cache, changed)
                .await;
        });
    }

    /// Fills a cache until the task is dropped.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call per kind, each spelled out in a table"
    )]
    pub(super) async fn follow_kind<W, V>(
        &self,
        metrics: &Metrics,
        kind: &'static str,
        (scope, api): (&str, Api<W>),
        config: watcher::Config,
        need: Need,
        cache: fn(&Self) -> &Cache<W, V>,
        changed: fn(&Self, &Change<'_, V>),
    ) where
        W: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let tell = |news: &News<'_>| match news {
            News::Absent => {
                tracing::warn!(
                    kind,
                    "the cluster does not know this kind; going on without it until it does"
                );
            }
            News::Forbidden => {
                tracing::warn!(
                    kind,
                    "the operator may not list this kind; going on without it until its ClusterRole says so: \
                     apply the one of this version"
                );
            }
            News::Appeared => {
                tracing::info!(kind, "the cluster lists this kind now");
                // What was left alone meanwhile.
                self.wake_all();
            }
            News::Broke(error) => {
                metrics.watch_failed(kind);
                tracing::warn!(kind, error = %error, "the watch broke; starting it again");
            }
        };
        // Small pages keep the peak of memory low while a large cluster is listed.
        let config = config.page_size(100);
        cache(self)
            .follow(api, scope, config, need, |change| changed(self, change), tell)
            .await;
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
            Kind::Deployment => self.take(answer, &self.deployments, Self::deployment_changed),
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
