//! What the operator knows of Ingresses and of the endpoints behind Services, and whom a change of these concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use kube::{Client, ResourceExt};
use tailwharf_kube_types::Parent;
use tailwharf_kube_types::contract::annotation;
use tailwharf_plan::ingress::{Rival, Target, backend_services, hostname, is_ours};
use tailwharf_plan::{EndpointsView, Settings, needs_endpoints};
use tokio::task::JoinSet;

use crate::cache::{Cache, Change, ObjectKey};
use crate::certificates::Certificates;
use crate::metrics::Metrics;
use crate::world::{Key, World, slim, slim_exposed};

/// Caches of what Services and Ingresses lead to.
pub(crate) struct Exposing {
    pub(crate) ingresses: Cache<Ingress>,
    /// The parent of a slice is its Service.
    pub(crate) endpoints: Cache<EndpointSlice, EndpointsView>,
    pub(crate) certificates: Certificates,
    /// The Ingresses that name a Service.
    by_service: Index<ObjectKey>,
    /// The Ingresses that ask for a name.
    by_hostname: Index<String>,
}

impl Default for Exposing {
    fn default() -> Self {
        Self {
            ingresses: Cache::new(|ingress| slim_exposed(slim(ingress)), |_| None),
            endpoints: Cache::new(EndpointsView::from_slice, EndpointsView::service),
            certificates: Certificates::default(),
            by_service: Index::default(),
            by_hostname: Index::default(),
        }
    }
}

/// Which Ingresses use something.
struct Index<K>(RwLock<HashMap<K, BTreeSet<ObjectKey>>>);

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Ord + Hash> Index<K> {
    fn users(&self, key: &K) -> BTreeSet<ObjectKey> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(key).cloned().unwrap_or_default()
    }

    /// Notes that `user` uses no longer what it did `before`, but what it does `after`.
    fn change(&self, user: &ObjectKey, before: &BTreeSet<K>, after: BTreeSet<K>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for key in before.difference(&after) {
            if let Some(users) = all.get_mut(key) {
                users.remove(user);
                if users.is_empty() {
                    all.remove(key);
                }
            }
        }
        for key in after {
            all.entry(key).or_default().insert(user.clone());
        }
    }
}

impl World {
    pub(crate) fn ingress(&self, key: &ObjectKey) -> Option<Ingress> {
        let ingress = self.exposing.ingresses.get(key)?;
        Some(ingress.as_ref().clone())
    }

    /// The endpoints of a Service, if connections go to them.
    pub(crate) fn endpoints(&self, service: &Service) -> Vec<EndpointsView> {
        if !service.spec.as_ref().is_some_and(needs_endpoints) {
            return Vec::new();
        }
        let parent = Parent::service(&service.namespace().unwrap_or_default(), &service.name_any());
        let mut slices: Vec<_> = self
            .exposing
            .endpoints
            .of_parent(&parent)
            .iter()
            .map(|view| view.as_ref().clone())
            .collect();
        slices.sort_by(|one, other| one.ready.cmp(&other.ready));
        slices
    }

    /// The Services that an Ingress names, as far as they exist.
    pub(crate) fn targets(&self, ingress: &Ingress) -> BTreeMap<String, Target> {
        let namespace = ingress.namespace().unwrap_or_default();
        let mut targets = BTreeMap::new();
        for name in backend_services(ingress) {
            if let Some(service) = self.service(&ObjectKey::new(namespace.as_str(), name)) {
                let endpoints = self.endpoints(&service);
                targets.insert(name.to_owned(), Target { service, endpoints });
            }
        }
        targets
    }

    /// The other Ingresses that ask for the name of this one.
    pub(crate) fn rivals(&self, key: &ObjectKey, ingress: &Ingress) -> Vec<Rival> {
        let names = hostnames(Some(ingress), &self.settings);
        let users = names
            .iter()
            .flat_map(|name| self.exposing.by_hostname.users(name));
        let others = users.filter(|user| user != key);
        let rival = |user: ObjectKey| {
            let other = self.exposing.ingresses.get(&user)?;
            Some(Rival {
                created: other.metadata.creation_timestamp.as_ref().map(|time| time.0),
                namespace: user.namespace,
                name: user.name,
            })
        };
        others.filter_map(rival).collect()
    }

    /// Starts the watches.
    pub(crate) fn follow_exposing(
        self: &Arc<Self>,
        client: &Client,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<()>,
    ) {
        self.watch_namespaces(
            tasks,
            metrics,
            client,
            "Ingress",
            |world| &world.exposing.ingresses,
            Self::ingress_changed,
        );
        self.watch_namespaces(
            tasks,
            metrics,
            client,
            "EndpointSlice",
            |world| &world.exposing.endpoints,
            Self::endpoints_changed,
        );
    }

    /// An Ingress wakes itself and, if it came to a name or left one, those that ask for the same.
    pub(crate) fn ingress_changed(&self, change: &Change<'_, Ingress>) {
        let Change { key, before, after } = change;
        let exposing = &self.exposing;
        let services = |ingress| services(ingress, &self.settings);
        exposing
            .by_service
            .change(key, &services(*before), services(*after));
        let (old, new) = (
            hostnames(*before, &self.settings),
            hostnames(*after, &self.settings),
        );
        exposing.by_hostname.change(key, &old, new.clone());
        self.queue.add(Key::Ingress((*key).clone()));
        for name in old.symmetric_difference(&new) {
            for other in exposing.by_hostname.users(name) {
                self.queue.add(Key::Ingress(other));
            }
        }
    }

    /// Endpoints wake their Service and the Ingresses that name it, if connections go to them.
    fn endpoints_changed(&self, change: &Change<'_, EndpointsView>) {
        for view in [change.before, change.after].into_iter().flatten() {
            let key = ObjectKey::new(view.namespace.as_str(), view.service.as_str());
            let service = self.service(&key);
            let spec = service.as_ref().and_then(|service| service.spec.as_ref());
            if spec.is_some_and(needs_endpoints) {
                self.wake_users(&key);
                self.queue.add(Key::Service(key));
            }
        }
    }

    /// Wakes the Ingresses that name a Service.
    pub(crate) fn wake_users(&self, service: &ObjectKey) {
        for ingress in self.exposing.by_service.users(service) {
            self.queue.add(Key::Ingress(ingress));
        }
    }
}

/// The Services that an Ingress of ours names.
fn services(ingress: Option<&Ingress>, settings: &Settings) -> BTreeSet<ObjectKey> {
    let Some(ingress) = ingress.filter(|ingress| is_ours(ingress, settings)) else {
        return BTreeSet::new();
    };
    let namespace = ingress.namespace().unwrap_or_default();
    backend_services(ingress)
        .map(|name| ObjectKey::new(namespace.as_str(), name))
        .collect()
}

/// The name that an Ingress of ours asks for.
fn hostnames(ingress: Option<&Ingress>, settings: &Settings) -> BTreeSet<String> {
    let grouped = |ingress: &Ingress| {
        let group = ingress.annotations().get(annotation::PROXY_GROUP);
        group.is_some_and(|group| !group.is_empty())
    };
    ingress
        .filter(|ingress| is_ours(ingress, settings) && !grouped(ingress))
        .and_then(|ingress| hostname(ingress).ok())
        .map(|hostname| hostname.as_str().to_lowercase())
        .into_iter()
        .collect()
}
