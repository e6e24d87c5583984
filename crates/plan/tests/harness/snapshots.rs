//! What `fetch` would find in the world: a snapshot for each kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::rbac::v1::Role;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tailwharf_kube_types::{Connector, Identity, Parent, ProxyClass, names};
use tailwharf_plan::class::{self, NamedClass};
use tailwharf_plan::identity::{Grants, Observed, SecretView};
use tailwharf_plan::ingress::{self, CertificateSecret};
use tailwharf_plan::service::Snapshot;
use tailwharf_plan::{
    EndpointsView, Kind, ObjectRef, Ranges, Settings, connector, egress, nameserver, pool, proxy_class,
};

use super::{NAMESPACE, World};

impl World {
    pub(crate) fn observed(&self, parent: &Parent) -> Observed {
        let ours = |labels: Option<&BTreeMap<String, String>>| {
            labels.and_then(Parent::from_labels).as_ref() == Some(parent)
        };
        let mut granted = Grants::default();
        for role in self.of_kind::<Role>(Kind::Role) {
            let name = role.metadata.name.clone().unwrap_or_default();
            if let Some(pool) = name.strip_prefix("tailwharf-") {
                granted.set(pool, pool::granted(Some(&role)));
            }
        }
        let identities = self.of_kind::<Identity>(Kind::Identity);
        let mut pod_ports = egress::PortsInUse::default();
        for identity in &identities {
            pod_ports.add(identity);
        }
        let mut services = self.of_kind::<Service>(Kind::Service);
        services.retain(|service| {
            service.metadata.namespace.as_deref() == Some(NAMESPACE) && ours(service.metadata.labels.as_ref())
        });
        let mut slices = self.of_kind::<EndpointSlice>(Kind::EndpointSlice);
        slices.retain(|slice| ours(slice.metadata.labels.as_ref()));
        Observed {
            identities: identities
                .into_iter()
                .filter(|identity| ours(identity.metadata.labels.as_ref()))
                .collect(),
            egress: egress::Objects { services, slices },
            pod_ports: Arc::new(pod_ports),
            secrets: self
                .of_kind::<Secret>(Kind::Secret)
                .iter()
                .filter(|secret| ours(secret.metadata.labels.as_ref()))
                .map(SecretView::from_secret)
                .collect(),
            granted: Arc::new(granted),
        }
    }

    fn class(&self, name: &str) -> Option<Arc<ProxyClass>> {
        self.objects
            .get(&ObjectRef::cluster(Kind::ProxyClass, name))
            .map(|body| Arc::new(serde_json::from_value(body.clone()).unwrap()))
    }

    /// The class of a Service or Ingress.
    fn class_of(&self, object: &ObjectMeta, settings: &Settings) -> Option<NamedClass> {
        let name = class::of_object(object, settings.default_class.as_deref())?;
        Some(NamedClass {
            name: name.to_owned(),
            class: self.class(name),
        })
    }

    pub(crate) fn class_snapshot(&self, name: &str) -> proxy_class::Snapshot {
        let others = self.of_kind::<ProxyClass>(Kind::ProxyClass).into_iter();
        proxy_class::Snapshot {
            name: name.to_owned(),
            class: self.class(name),
            others: others
                .filter(|class| class.metadata.name.as_deref() != Some(name))
                .map(Arc::new)
                .collect(),
        }
    }

    pub(crate) fn connector_snapshot(&self, name: &str) -> connector::Snapshot {
        let connector: Option<Connector> = self
            .objects
            .get(&ObjectRef::cluster(Kind::Connector, name))
            .map(|body| serde_json::from_value(body.clone()).unwrap());
        let class = connector
            .as_ref()
            .and_then(|connector| connector.spec.proxy_class.clone());
        connector::Snapshot {
            name: name.to_owned(),
            class: class.map(|name| NamedClass {
                class: self.class(&name),
                name,
            }),
            observed: self.observed(&Parent::connector(name)),
            ranges: Ranges {
                pods: ["10.244.0.0/24".parse().unwrap()].into(),
                services: ["10.96.0.0/16".parse().unwrap()].into(),
            },
            connector,
        }
    }

    pub(crate) fn service_snapshot(&self, namespace: &str, name: &str, settings: &Settings) -> Snapshot {
        let service = self.get::<Service>(Kind::Service, namespace, name);
        Snapshot {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            class: service
                .as_ref()
                .and_then(|service| self.class_of(&service.metadata, settings)),
            service,
            pods: self.pods.clone(),
            devices: self
                .of_kind::<Identity>(Kind::Identity)
                .into_iter()
                .filter(|identity| {
                    let ours = self.observed(&Parent::service(namespace, name)).identities;
                    let names = ours.iter().filter_map(|identity| {
                        Some(egress::external_name(
                            identity.metadata.name.as_deref()?,
                            settings,
                        ))
                    });
                    let names: Vec<String> = names.collect();
                    egress::backends(identity).any(|backend| names.iter().any(|name| name == backend))
                })
                .map(Arc::new)
                .collect(),
            endpoints: self.endpoints(namespace, name),
            observed: self.observed(&Parent::service(namespace, name)),
        }
    }

    pub(crate) fn ingress_snapshot(
        &self,
        namespace: &str,
        name: &str,
        settings: &Settings,
    ) -> ingress::Snapshot {
        let ingress = self.get::<Ingress>(Kind::Ingress, namespace, name);
        let ours = ingress
            .as_ref()
            .filter(|ingress| ingress::is_ours(ingress, settings));
        let target = |service: &str| {
            let target = ingress::Target {
                service: self.get::<Service>(Kind::Service, namespace, service)?,
                endpoints: self.endpoints(namespace, service),
            };
            Some((service.to_owned(), target))
        };
        let certificate = |secret: &str| {
            let state = self.certificates.get(secret).cloned();
            (secret.to_owned(), state.unwrap_or(CertificateSecret::Missing))
        };
        let claim = |ingress: &Ingress| ingress::hostname(ingress).ok();
        let rivals = self.of_kind::<Ingress>(Kind::Ingress);
        let rivals = rivals.iter().filter(|other| {
            let metadata = &other.metadata;
            let same =
                (metadata.namespace.as_deref(), metadata.name.as_deref()) == (Some(namespace), Some(name));
            !same && ingress::is_ours(other, settings) && ours.is_some_and(|ours| claim(ours) == claim(other))
        });
        let rivals = rivals.map(|other| ingress::Rival {
            created: other.metadata.creation_timestamp.as_ref().map(|time| time.0),
            namespace: other.metadata.namespace.clone().unwrap_or_default(),
            name: other.metadata.name.clone().unwrap_or_default(),
        });
        ingress::Snapshot {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            services: ours
                .into_iter()
                .flat_map(ingress::backend_services)
                .filter_map(target)
                .collect(),
            certificates: ours
                .into_iter()
                .flat_map(ingress::certificate_secrets)
                .map(certificate)
                .collect(),
            class: ours.and_then(|ingress| self.class_of(&ingress.metadata, settings)),
            rivals: rivals.collect(),
            observed: self.observed(&Parent::ingress(namespace, name)),
            ingress,
        }
    }

    fn endpoints(&self, namespace: &str, service: &str) -> Vec<EndpointsView> {
        let slices = self.endpoints.iter().cloned().map(EndpointsView::from_slice);
        slices
            .filter(|view| view.namespace == namespace && view.service == service)
            .collect()
    }

    pub(crate) fn pool_snapshot(&self, pool: &str) -> pool::Snapshot {
        let name = format!("tailwharf-{pool}");
        let secrets = self.of_kind::<Secret>(Kind::Secret);
        let labelled = secrets
            .iter()
            .map(SecretView::from_secret)
            .filter(|secret| secret.pool() == Some(pool))
            .map(|secret| secret.name);
        let identities = self.of_kind::<Identity>(Kind::Identity);
        let hosted = identities
            .iter()
            .filter(|identity| pool::of_identity(identity).contains(pool))
            .flat_map(pool::secrets_of);
        let all_ports = identities.iter().any(|identity| {
            let egress = identity.spec.egress.as_ref();
            identity.spec.pool == pool && egress.is_some_and(|egress| egress.all_ports)
        });
        pool::Snapshot {
            name: pool.to_owned(),
            all_ports,
            class: self
                .of_kind::<ProxyClass>(Kind::ProxyClass)
                .into_iter()
                .find(|class| {
                    let class = class.metadata.name.as_deref().unwrap();
                    names::pool_of_class(class) == pool
                })
                .map(Arc::new),
            secrets: labelled.chain(hosted).collect(),
            service_account: self.get(Kind::ServiceAccount, NAMESPACE, &name),
            role: self.get(Kind::Role, NAMESPACE, &name),
            role_binding: self.get(Kind::RoleBinding, NAMESPACE, &name),
            disruption_budget: self.get(Kind::PodDisruptionBudget, NAMESPACE, &name),
            stateful_set: self.get(Kind::StatefulSet, NAMESPACE, &name),
        }
    }

    pub(crate) fn nameserver_snapshot(&self) -> nameserver::Snapshot {
        let reached = |identity: Identity| {
            let status = identity.status.unwrap_or_default();
            Some(nameserver::Reached {
                service: self.get(Kind::Service, NAMESPACE, identity.metadata.name.as_deref()?)?,
                egress: identity.spec.egress?,
                host: status.host_addresses,
            })
        };
        let identities = self.of_kind::<Identity>(Kind::Identity);
        nameserver::Snapshot {
            configs: self.of_kind(Kind::DnsConfig),
            reached: identities.into_iter().filter_map(reached).collect(),
            service_account: self.get(Kind::ServiceAccount, NAMESPACE, nameserver::NAME),
            deployment: self.get(Kind::Deployment, NAMESPACE, nameserver::NAME),
            service: self.get(Kind::Service, NAMESPACE, nameserver::NAME),
            records: self.get(Kind::ConfigMap, NAMESPACE, nameserver::RECORDS),
        }
    }
}
