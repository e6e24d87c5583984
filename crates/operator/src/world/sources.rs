//! Who comes to which egress Service: the pods of the cluster, which are watched from the moment on that a Service asks for some only, and devices that lead
//! back to it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{self as core, Namespace, Service};
use kube::api::{Api, Resource};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use tailwharf_kube_types::sources::{Labels, of_annotations};
use tailwharf_kube_types::{Identity, Parent, Sources};
use tailwharf_plan::egress::{Pod, Pods, backends, external_name};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Key, World, parent_of};
use crate::cache::{Cache, Change, Known, Need, ObjectKey};
use crate::metrics::Metrics;

/// The pods and namespaces of the cluster, and who goes by them.
pub(crate) struct Origins {
    pods: Cache<core::Pod, Pod>,
    namespaces: Cache<Namespace, Labels>,
    /// The Services that only some pods may use.
    restricted: RwLock<HashMap<ObjectKey, Arc<Sources>>>,
    /// Whether there ever was such a Service.
    wanted: watch::Sender<bool>,
}

impl Default for Origins {
    fn default() -> Self {
        Self {
            pods: Cache::new(Pod::of, |_| None),
            namespaces: Cache::new(
                |namespace| namespace.metadata.labels.unwrap_or_default(),
                |_| None,
            ),
            restricted: RwLock::default(),
            wanted: watch::Sender::new(false),
        }
    }
}

impl Origins {
    fn restricted(&self) -> Vec<(ObjectKey, Arc<Sources>)> {
        let all = self.restricted.read().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(key, sources)| (key.clone(), sources.clone()))
            .collect()
    }

    /// Notes what a Service says about who may use it.
    pub(super) fn note(&self, change: &Change<'_, Service>) {
        let sources = change
            .after
            .and_then(|service| of_annotations(service.metadata.annotations.as_ref()));
        let mut all = self.restricted.write().unwrap_or_else(PoisonError::into_inner);
        match sources {
            Some(Ok(sources)) => {
                all.insert(change.key.clone(), Arc::new(sources));
                self.wanted
                    .send_if_modified(|wanted| !std::mem::replace(wanted, true));
            }
            Some(Err(_)) | None => {
                all.remove(change.key);
            }
        }
    }
}

impl World {
    /// The pods of the cluster, if only some may use a Service and all are known.
    pub(crate) fn pods_for(&self, service: &Service) -> Option<Pods> {
        let Origins { pods, namespaces, .. } = &self.origins;
        of_annotations(service.meta().annotations.as_ref())?.ok()?;
        if !pods.is_listed() || !namespaces.is_listed() {
            return None;
        }
        let labels = |key: ObjectKey| Some((key.name.clone(), namespaces.get(&key)?));
        Some(Pods {
            namespaces: namespaces.keys().into_iter().filter_map(labels).collect(),
            pods: pods.all(),
        })
    }

    /// The devices of this cluster that pass connections on to what a Service stands for.
    pub(crate) fn devices_leading_to(&self, key: &ObjectKey) -> Vec<Arc<Identity>> {
        let parent = Parent::service(&key.namespace, &key.name);
        let egress = |identity: &Arc<Identity>| identity.spec.egress.is_some();
        let Some(own) = self.identities.of_parent(&parent).into_iter().find(egress) else {
            return Vec::new();
        };
        let name = external_name(&own.name_any(), &self.settings);
        let mut all = self.identities.all();
        all.retain(|identity| backends(identity).any(|backend| backend == name));
        all
    }

    /// A device that passes connections on to what a Service stands for concerns that Service.
    pub(super) fn wake_whom_it_leads_to(&self, change: &Change<'_, Identity>) {
        let rest = external_name("", &self.settings);
        let devices = [change.before, change.after].into_iter().flatten();
        for backend in devices.flat_map(backends) {
            if let Some(name) = backend.strip_suffix(&rest) {
                let key = ObjectKey::new(self.settings.namespace.as_str(), name);
                let reached = self.identities.get(&key);
                self.wake(reached.and_then(|identity| parent_of(identity.as_ref())).as_ref());
            }
        }
    }

    /// Watches pods and namespaces once a Service goes by them. They are none of what the start waits for: who may not list them is told so by the Services.
    pub(super) fn follow_origins(
        self: &Arc<Self>,
        client: &Client,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<()>,
    ) {
        self.follow_when_wanted(
            tasks,
            metrics,
            "Pod",
            Api::all(client.clone()),
            |world| &world.origins.pods,
            Self::pod_changed,
        );
        self.follow_when_wanted(
            tasks,
            metrics,
            "Namespace",
            Api::all(client.clone()),
            |world| &world.origins.namespaces,
            |world, change| {
                if change.before != change.after {
                    world.wake_restricted(|_, _| true);
                }
            },
        );
        let world = self.clone();
        tasks.spawn(async move {
            let mut known = [world.origins.pods.known(), world.origins.namespaces.known()];
            for known in &mut known {
                // The senders live as long as `world`.
                let _ = known.wait_for(|known| *known == Known::Listed).await;
            }
            world.wake_restricted(|_, _| true);
        });
    }

    fn follow_when_wanted<W, V>(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        metrics: &Arc<Metrics>,
        kind: &'static str,
        api: Api<W>,
        cache: fn(&Self) -> &Cache<W, V>,
        changed: fn(&Self, &Change<'_, V>),
    ) where
        W: Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Send
            + Sync
            + 'static,
        V: Send + Sync + 'static,
    {
        let (world, metrics) = (self.clone(), metrics.clone());
        tasks.spawn(async move {
            let mut wanted = world.origins.wanted.subscribe();
            // The sender lives as long as `world`.
            let _ = wanted.wait_for(|wanted| *wanted).await;
            let config = watcher::Config::default();
            world
                .follow_kind(&metrics, kind, ("", api), config, Need::Required, cache, changed)
                .await;
        });
    }

    /// A pod wakes the Services for which it counts, or did.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        if change.before == change.after {
            return;
        }
        let none = Arc::default();
        let namespace = ObjectKey::new("", change.key.namespace.as_str());
        let namespace = self.origins.namespaces.get(&namespace).unwrap_or(none);
        self.wake_restricted(|home, sources| {
            let pods = [change.before, change.after].into_iter().flatten();
            pods.filter(|pod| !pod.addresses.is_empty())
                .any(|pod| sources.select(home, &pod.namespace, &namespace, &pod.labels))
        });
    }

    fn wake_restricted(&self, concerns: impl Fn(&str, &Sources) -> bool) {
        for (key, sources) in self.origins.restricted() {
            if concerns(&key.namespace, &sources) {
                self.queue.add(Key::Service(key));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use kube::api::ObjectMeta;

    use super::*;
    use crate::queue::Next;

    fn world() -> World {
        World::new(super::super::wake::tests::settings())
    }

    fn woken(world: &World) -> Vec<Key> {
        let mut keys = Vec::new();
        while let Some(key) = world.queue.next().now_or_never() {
            world.queue.done(&key, Next::OnChange);
            keys.push(key);
        }
        keys
    }

    fn restrict(world: &World, name: &str, sources: &str) {
        let annotations = [("tailwharf.dev/egress-from".to_owned(), sources.to_owned())];
        let service = Service {
            metadata: ObjectMeta {
                annotations: Some(annotations.into()),
                ..ObjectMeta::default()
            },
            ..Service::default()
        };
        world.origins.note(&Change {
            key: &ObjectKey::new("net", name),
            before: None,
            after: Some(&service),
        });
    }

    fn pod(app: &str, address: &str) -> Pod {
        Pod {
            namespace: "net".to_owned(),
            name: "front".to_owned(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            addresses: vec![address.parse().unwrap()],
        }
    }

    #[test]
    fn a_pod_wakes_the_services_that_it_may_use_or_might() {
        let world = world();
        restrict(
            &world,
            "db",
            r#"{"podSelector": {"matchLabels": {"app": "front"}}}"#,
        );
        restrict(&world, "all", r#"{"podSelector": {}}"#);
        restrict(&world, "none", "[]");
        let key = ObjectKey::new("net", "front");
        let changes = |before: Option<&Pod>, after: Option<&Pod>| {
            world.pod_changed(&Change {
                key: &key,
                before,
                after,
            });
            let mut keys = woken(&world);
            keys.sort_by_key(|key| format!("{key:?}"));
            keys
        };
        let service = |name: &str| Key::Service(ObjectKey::new("net", name));
        let (front, other) = (pod("front", "10.244.0.7"), pod("other", "10.244.0.7"));
        assert_eq!(changes(None, Some(&front)), [service("all"), service("db")]);
        assert_eq!(changes(Some(&front), Some(&front)), []);
        assert_eq!(
            changes(Some(&front), Some(&other)),
            [service("all"), service("db")]
        );
        assert_eq!(changes(Some(&other), None), [service("all")]);
        restrict(&world, "all", "nonsense");
        assert_eq!(changes(Some(&other), None), []);
    }
}
