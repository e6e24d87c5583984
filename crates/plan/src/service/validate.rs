//! What a Service asks for.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use tailwharf_kube_types::contract::{LOAD_BALANCER_CLASS, MAX_LISTENERS, annotation};
use tailwharf_kube_types::egress::TargetError;
use tailwharf_kube_types::sources::SourcesError;
use tailwharf_kube_types::values::{HostnameError, TagError};
use tailwharf_kube_types::{Backend, Hostname, IdentitySpec, Listener, Protocol, Tag, names};
use thiserror::Error;

use super::Snapshot;
use crate::class::{self, ClassProblem};
use crate::egress::{self, Outlet};
use crate::endpoints;
use crate::identity::{Observed, Wanted, only_identity};
use crate::plan::ObjectRef;
use crate::settings::Settings;
use crate::subject::{Finalizers, Release};

/// What to do about a Service.
#[derive(Clone, Debug)]
pub enum Validated {
    /// It is to have a device.
    Expose(Box<Exposure>),
    /// It is to have a device, and to stand for something that the device reaches.
    Egress(Box<Outlet>),
    /// It is to have none, or is being deleted.
    Release(Box<Release>),
    /// It asks for a device of a ProxyGroup, which this operator does not serve: it is left as it is.
    Grouped,
    /// It is none of ours.
    Ignore,
}

/// A Service that is to have a device.
#[derive(Clone, Debug)]
pub struct Exposure {
    /// The Service.
    pub service: ObjectRef,
    /// The finalizers to set with the resource version they are for, unless ours is there already.
    pub add_finalizer: Option<Finalizers>,
    /// The device.
    pub wanted: Wanted,
    /// What exists of it.
    pub observed: Observed,
    /// What of the Service is not served, though the rest is.
    pub left_out: LeftOut,
}

/// What of a Service is not served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Ports of other protocols than TCP and UDP, as `port/protocol`.
    pub ports: Vec<String>,
    /// Endpoints of one port beyond the most that a listener holds.
    pub endpoints: usize,
    /// Ranges of addresses of pods that may use it, beyond the most that an identity holds.
    pub sources: usize,
}

/// What the user has to change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// No ports at all.
    #[error(
        "the Service has no ports: list the ports to serve under spec.ports, for example \"ports: [{{port: 443}}]\""
    )]
    NoPorts,
    /// Only ports of other protocols.
    #[error("none of the Service's ports is TCP or UDP ({}): add a TCP or UDP port", ports.join(", "))]
    NoUsablePorts {
        /// The ports, as `port/protocol`.
        ports: Vec<String>,
    },
    /// More ports than one device serves.
    #[error("{count} ports are too many for one device: use at most {MAX_LISTENERS}, or several Services")]
    TooManyPorts {
        /// How many.
        count: usize,
    },
    /// The annotation for the name is not valid.
    #[error("annotation {}: {error}", annotation::HOSTNAME)]
    Hostname {
        /// What is wrong.
        error: HostnameError,
    },
    /// Without an annotation, namespace and name make no valid name.
    #[error("{error}; set annotation {} to a shorter name", annotation::HOSTNAME)]
    DefaultHostname {
        /// What is wrong.
        error: HostnameError,
    },
    /// The annotation for the tags is not valid.
    #[error("annotation {}: {error}", annotation::TAGS)]
    Tags {
        /// What is wrong.
        error: TagError,
    },
    /// Egress by a headless Service.
    #[error(
        "a headless Service cannot stand for something on the tailnet: remove \"clusterIP: None\" and set \"type: ExternalName\""
    )]
    HeadlessEgress,
    /// Egress by name and by address.
    #[error(
        "annotations {} and {annotation} exclude each other: remove one of them",
        annotation::TAILNET_FQDN
    )]
    NamesAndAddresses {
        /// The annotation with the address.
        annotation: &'static str,
    },
    /// The targets are not valid.
    #[error("annotation {annotation}: {error}")]
    Targets {
        /// The annotation.
        annotation: &'static str,
        /// What is wrong.
        error: TargetError,
    },
    /// All ports of the pool's pods stand for something.
    #[error("the pool has no free port for egress left: remove ports or egress Services that are not needed")]
    EgressPortsExhausted,
    /// The annotation that says who may use it is not valid.
    #[error("annotation {}: {error}", annotation::EGRESS_FROM)]
    Sources {
        /// What is wrong.
        error: SourcesError,
    },
    /// The pods that may use it are not known.
    #[error(
        "which pods may use the Service is not known before the cluster has listed its pods and namespaces: if that lasts, give the operator the ClusterRole tailscale-operator-pods"
    )]
    PodsUnknown,
    /// The annotation for the PROXY protocol is not valid.
    #[error(
        "annotation {}: {value:?} is no version of the PROXY protocol: use \"v2\"",
        annotation::PROXY_PROTOCOL
    )]
    ProxyProtocol {
        /// What was given.
        value: String,
    },
    /// The ProxyClass cannot be used now.
    #[error("{0}")]
    Class(ClassProblem),
    /// Several Identities carry the labels of this Service.
    #[error("several Identities claim this Service: delete all but one of {}", names.join(", "))]
    SeveralIdentities {
        /// Their names.
        names: Vec<String>,
    },
}

/// Reads what the Service asks for, or everything that is wrong with it.
pub fn validate(snapshot: &Snapshot, settings: &Settings) -> Result<Validated, Vec<Problem>> {
    let Some(service) = snapshot.living() else {
        return Ok(release(snapshot));
    };
    let Some(spec) = &service.spec else {
        return Ok(release(snapshot));
    };
    if snapshot.has_proxy_group() {
        return Ok(match snapshot.has_objects() {
            true => release(snapshot),
            false if asks_for_device(snapshot, spec, settings) => Validated::Grouped,
            false => Validated::Ignore,
        });
    }
    if settings.releasing {
        return Ok(release(snapshot));
    }
    if !asks_for_device(snapshot, spec, settings) {
        return match egress::demand(snapshot) {
            Some(demand) => egress::validate(demand, snapshot, service, spec, settings)
                .map(|outlet| Validated::Egress(Box::new(outlet))),
            None => Ok(release(snapshot)),
        };
    }
    expose(snapshot, service, spec, settings).map(|exposure| Validated::Expose(Box::new(exposure)))
}

/// Whether a Service is of the load balancer class that the operator serves.
pub(super) fn is_load_balancer(spec: &ServiceSpec, settings: &Settings) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer")
        && match spec.load_balancer_class.as_deref() {
            Some(class) => class == LOAD_BALANCER_CLASS,
            None => settings.default_load_balancer,
        }
}

fn asks_for_device(snapshot: &Snapshot, spec: &ServiceSpec, settings: &Settings) -> bool {
    let annotated = snapshot.subject().annotation(annotation::EXPOSE) == Some("true");
    let cluster_ip = spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty());
    (cluster_ip && (annotated || is_load_balancer(spec, settings)))
        || (annotated && external_name(spec).is_some())
}

fn external_name(spec: &ServiceSpec) -> Option<&str> {
    let name = spec.external_name.as_deref().filter(|name| !name.is_empty())?;
    (spec.type_.as_deref() == Some("ExternalName")).then_some(name)
}

/// The removal of everything made for the Service. If there is nothing to remove at all, the Service is none of ours.
fn release(snapshot: &Snapshot) -> Validated {
    if !snapshot.has_objects() && !snapshot.subject().has_finalizer() && snapshot.condition().is_none() {
        return Validated::Ignore;
    }
    let release = snapshot
        .subject()
        .release(snapshot.reference(), &snapshot.observed);
    Validated::Release(Box::new(release))
}

fn expose(
    snapshot: &Snapshot,
    service: &Service,
    spec: &ServiceSpec,
    settings: &Settings,
) -> Result<Exposure, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut keep = |problem| problems.push(problem);
    let proxy_protocol = proxy_protocol(snapshot).map_err(&mut keep).unwrap_or_default();
    let (ports, left_out) = carried_ports(spec);
    let (listeners, endpoints) = listeners(snapshot, spec, ports, proxy_protocol);
    if let Err(problem) = check_ports(spec, &listeners, &left_out) {
        keep(problem);
    }
    let asker = Asker::read(snapshot, service, settings, &mut problems);
    let (Some(asker), true) = (asker, problems.is_empty()) else {
        return Err(problems);
    };
    let spec = IdentitySpec {
        hostname: asker.hostname,
        tags: asker.tags,
        pool: asker.pool,
        login_server: settings.login_server.clone(),
        ephemeral: false,
        listeners,
        egress: None,
        web: None,
        router: None,
    };
    Ok(Exposure {
        service: snapshot.reference(),
        add_finalizer: snapshot.subject().add_finalizer(),
        wanted: Wanted {
            parent: snapshot.parent(),
            name: asker.identity,
            spec,
        },
        observed: snapshot.observed.clone(),
        left_out: LeftOut {
            ports: left_out,
            endpoints,
            sources: 0,
        },
    })
}

/// What any Service says about the device that it asks for.
pub(crate) struct Asker {
    pub(crate) hostname: Hostname,
    pub(crate) tags: Vec<Tag>,
    /// The pool that its class selects.
    pub(crate) pool: String,
    /// The name of its Identity.
    pub(crate) identity: String,
}

impl Asker {
    /// Reads all of it, and adds what is wrong to `problems`.
    pub(crate) fn read(
        snapshot: &Snapshot,
        service: &Service,
        settings: &Settings,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let mut keep = |problem| problems.push(problem);
        let hostname = hostname(snapshot).map_err(&mut keep).ok();
        let tags = snapshot.subject().tags(settings);
        let tags = tags.map_err(|error| keep(Problem::Tags { error })).ok();
        let placement = class::place(snapshot.class.as_ref());
        let placement = placement.map_err(|problem| keep(Problem::Class(problem))).ok();
        let identity = identity_name(snapshot, service).map_err(&mut keep).ok();
        Some(Self {
            hostname: hostname?,
            tags: tags?,
            pool: placement?.pool,
            identity: identity?,
        })
    }
}

/// Whether connections to backends begin with the client's address.
fn proxy_protocol(snapshot: &Snapshot) -> Result<bool, Problem> {
    match snapshot.subject().given(annotation::PROXY_PROTOCOL) {
        None => Ok(false),
        Some("v2") => Ok(true),
        Some(other) => Err(Problem::ProxyProtocol {
            value: other.chars().take(80).collect(),
        }),
    }
}

/// A port of a Service that a device can carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CarriedPort {
    /// The port's name, or one made of protocol and number.
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

/// The TCP and UDP ports in a fixed order, and those that cannot be carried, as `port/protocol`.
pub(crate) fn carried_ports(spec: &ServiceSpec) -> (Vec<CarriedPort>, Vec<String>) {
    let mut ports = Vec::new();
    let mut left_out = BTreeSet::new();
    for port in spec.ports.iter().flatten() {
        let protocol_name = port.protocol.as_deref().unwrap_or("TCP");
        let protocol = match protocol_name {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            _ => None,
        };
        let (Some(protocol), Ok(number)) = (protocol, u16::try_from(port.port)) else {
            left_out.insert(format!("{}/{protocol_name}", port.port));
            continue;
        };
        let name = port.name.clone().filter(|name| !name.is_empty());
        ports.push(CarriedPort {
            name: name.unwrap_or_else(|| format!("{}-{number}", protocol_name.to_lowercase())),
            protocol,
            number,
        });
    }
    ports.sort_by_key(|port| (port.protocol, port.number));
    (ports, left_out.into_iter().collect())
}

/// A listener for each port that can be carried, and how many endpoints of one port are too many.
fn listeners(
    snapshot: &Snapshot,
    spec: &ServiceSpec,
    ports: Vec<CarriedPort>,
    proxy_protocol: bool,
) -> (Vec<Listener>, usize) {
    let mut left_out = 0;
    let mut listener = |port: CarriedPort| {
        let backends = match external_name(spec) {
            Some(name) => vec![Backend {
                address: name.trim_end_matches('.').to_owned(),
                port: port.number,
            }],
            None => {
                let protocol = port.protocol.to_string();
                let declared = spec.ports.iter().flatten().find(|declared| {
                    declared.port == i32::from(port.number)
                        && declared.protocol.as_deref().unwrap_or("TCP") == protocol
                });
                let found = declared.map(|declared| endpoints::backends(spec, declared, &snapshot.endpoints));
                let (backends, too_many) = found.unwrap_or_default();
                left_out = left_out.max(too_many);
                backends
            }
        };
        Listener {
            name: port.name,
            protocol: port.protocol,
            port: port.number,
            backends,
            proxy_protocol: proxy_protocol && port.protocol == Protocol::Tcp,
        }
    };
    let listeners = ports.into_iter().map(&mut listener).collect();
    (listeners, left_out)
}

fn check_ports(spec: &ServiceSpec, listeners: &[Listener], left_out: &[String]) -> Result<(), Problem> {
    if spec.ports.as_ref().is_none_or(Vec::is_empty) {
        Err(Problem::NoPorts)
    } else if listeners.is_empty() {
        Err(Problem::NoUsablePorts {
            ports: left_out.to_vec(),
        })
    } else if listeners.len() > MAX_LISTENERS {
        Err(Problem::TooManyPorts {
            count: listeners.len(),
        })
    } else {
        Ok(())
    }
}

fn hostname(snapshot: &Snapshot) -> Result<Hostname, Problem> {
    match snapshot.subject().annotation(annotation::HOSTNAME) {
        Some(text) => text.parse().map_err(|error| Problem::Hostname { error }),
        None => format!("{}-{}", snapshot.namespace, snapshot.name)
            .parse()
            .map_err(|error| Problem::DefaultHostname { error }),
    }
}

/// The name of the Identity that exists, or the one to make.
fn identity_name(snapshot: &Snapshot, service: &Service) -> Result<String, Problem> {
    let existing = only_identity(&snapshot.observed).map_err(|names| Problem::SeveralIdentities { names })?;
    let existing = existing.and_then(|identity| identity.metadata.name.clone());
    Ok(existing.unwrap_or_else(|| {
        names::identity_name(
            &snapshot.name,
            service.metadata.uid.as_deref().unwrap_or_default(),
        )
    }))
}
