//! Connectors and ProxyClasses, the addresses of the cluster, and whom a change of these concerns.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{ObjectMeta, Resource as _};
use tailwharf_kube_types::{Connector, Identity, ProxyClass, names};
use tailwharf_plan::Ranges;
use tailwharf_plan::class::{self, NamedClass};

use super::{Key, World, copy, has_all_ports, parent_of};
use crate::cache::{Change, ObjectKey};

impl World {
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

    /// The ProxyClass of the Service for which an identity was made.
    pub(super) fn class_of_parent(&self, identity: &Identity) -> Option<Arc<ProxyClass>> {
        let parent = parent_of(identity)?;
        let service = self
            .services
            .get(&ObjectKey::new(parent.namespace, parent.name))?;
        self.class_of(service.meta())?.class
    }

    pub(super) fn class_of_pool(&self, pool: &str) -> Option<Arc<ProxyClass>> {
        let classes = self.proxy_classes.all();
        classes
            .into_iter()
            .find(|class| names::pool_of_class(&class.name_any()) == pool)
    }

    pub(super) fn connector_changed(&self, change: &Change<'_, Connector>) {
        self.queue.add(Key::Connector(change.key.name.clone()));
    }

    /// A class wakes its pool and whatever names it. One that changes its ports may be in the way of others, or not any more.
    pub(super) fn class_changed(&self, change: &Change<'_, ProxyClass>) {
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
        for identity in self.identities.all() {
            if has_all_ports(&identity) {
                self.queue.add(Key::Pool(identity.spec.pool.clone()));
            }
        }
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
}

/// What is of interest of a machine of the cluster.
pub(super) struct NodeView {
    /// Ranges of the addresses of its pods.
    pods: Vec<IpNet>,
}

impl NodeView {
    pub(super) fn of(node: &Node) -> Self {
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
