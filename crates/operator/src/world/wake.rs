//! Which keys a change wakes.

use std::sync::{Arc, PoisonError};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::rbac::v1::Role;
use kube::ResourceExt;
use tailwharf_kube_types::contract::DEFAULT_POOL;
use tailwharf_kube_types::{Identity, Parent, ParentKind, names};
use tailwharf_plan::identity::SecretView;
use tailwharf_plan::migrate::is_running_go_operator;
use tailwharf_plan::{operator_device, pool};

use super::{Key, World, has_all_ports, parent_of};
use crate::cache::{Change, ObjectKey};

impl World {
    pub(super) fn service_changed(&self, change: &Change<'_, Service>) {
        self.origins.note(change);
        self.queue.add(Key::Service(change.key.clone()));
        self.wake_users(change.key);
        let parent = Parent::service(&change.key.namespace, &change.key.name);
        for identity in self.identities.of_parent(&parent) {
            if has_all_ports(&identity) {
                // The Service may name another class.
                self.queue.add(Key::Pool(identity.spec.pool.clone()));
            }
        }
        if change.key.namespace == self.settings.namespace {
            self.child_changed(change);
            self.queue.add(Key::Nameserver);
        }
    }

    /// An identity may come or go with ports of pods. One that changes its pool, or whose host is in another, concerns both pools.
    pub(super) fn identity_changed(&self, change: &Change<'_, Identity>) {
        let reaches = |identity: &&Identity| identity.spec.egress.is_some();
        let (before, after) = (change.before.filter(reaches), change.after.filter(reaches));
        if before.map(|identity| &identity.spec.egress) != after.map(|identity| &identity.spec.egress) {
            let mut shared = self.pod_ports.write().unwrap_or_else(PoisonError::into_inner);
            let ports = Arc::make_mut(&mut shared);
            before.into_iter().for_each(|identity| ports.remove(identity));
            after.into_iter().for_each(|identity| ports.add(identity));
            self.queue.add(Key::Nameserver);
        }
        let host = |identity: Option<&Identity>| Some(identity?.status.as_ref()?.host_addresses.clone());
        if after.is_some_and(has_all_ports) && host(before) != host(after) {
            self.queue.add(Key::Nameserver);
        }
        let [before, after] =
            [change.before, change.after].map(|identity| identity.map(pool::of_identity).unwrap_or_default());
        for pool in before.symmetric_difference(&after) {
            self.queue.add(Key::Pool(pool.clone()));
        }
        self.wake_whom_it_leads_to(change);
        self.child_changed(change);
    }

    /// Everything made for a parent wakes that parent, the old one as well if labels changed.
    pub(super) fn child_changed<V: ResourceExt>(&self, change: &Change<'_, V>) {
        for object in [change.before, change.after].into_iter().flatten() {
            self.wake(parent_of(object).as_ref());
        }
    }

    /// A Go operator that starts or stops concerns everything.
    pub(super) fn deployment_changed(&self, change: &Change<'_, Deployment>) {
        self.child_changed(change);
        let [before, after] =
            [change.before, change.after].map(|found| found.is_some_and(is_running_go_operator));
        if before != after {
            match after {
                true => tracing::warn!(
                    deployment = change.key.name,
                    "the Go operator runs in this namespace; everything is left to it until `tailwharf migrate go` has stopped it"
                ),
                false => tracing::info!(deployment = change.key.name, "the Go operator has stopped"),
            }
            self.wake_all();
        }
    }

    /// A Secret that came or went also changes what the pool's Role has to name.
    pub(super) fn secret_changed(&self, change: &Change<'_, SecretView>) {
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
    pub(super) fn role_changed(&self, change: &Change<'_, Role>) {
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

    pub(super) fn wake(&self, parent: Option<&Parent>) {
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

#[cfg(test)]
pub(super) mod tests {
    use futures::FutureExt;
    use k8s_openapi::api::rbac::v1::PolicyRule;
    use kube::api::{DynamicObject, ObjectMeta};
    use serde_json::json;
    use tailwharf_kube_types::contract::label;
    use tailwharf_plan::Kind;

    use super::*;
    use crate::queue::Next;

    pub(in super::super) fn settings() -> tailwharf_plan::Settings {
        let settings = json!({
            "namespace": "tailscale", "loginServer": "http://control.test", "clusterDomain": "cluster.local", "defaultTags": ["tag:k8s"],
            "operatorHostname": "tailscale-operator", "operatorTags": ["tag:k8s-operator"],
            "defaultLoadBalancer": false, "ingressClass": "tailscale",
            "pool": {"replicas": 2, "image": "image"},
        });
        serde_json::from_value(settings).unwrap()
    }

    fn world() -> World {
        World::new(settings())
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
