//! What a Service asks for.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use tailwharf_kube_types::contract::{LOAD_BALANCER_CLASS, MAX_LISTENERS, annotation};
use tailwharf_kube_types::egress::TargetError;
use tailwharf_kube_types::values::{HostnameError, TagError};
use tailwharf_kube_types::{Backend, Hostname, IdentitySpec, Listener, Protocol, Tag, names};
use thiserror::Error;

use super::Snapshot;
use crate::egress::{self, Outlet};
use crate::identity::{Observed, Wanted, only_identity};
use crate::plan::ObjectRef;
use crate::settings::Settings;

/// What to do about a Service.
#[derive(Clone, Debug)]
pub enum Validated {
    /// It is to have a device.
    Expose(Box<Exposure>),
    /// It is to have a device, and to stand for something that the device reaches.
    Egress(Box<Outlet>),
    /// It is to have none, or is being deleted.
    Release(Box<Release>),
    /// It is none of ours.
    Ignore,
}

/// A Service that is to have a device.
#[derive(Clone, Debug)]
pub struct Exposure {
    /// The Service.
    pub service: ObjectRef,
    /// The finalizers to set with the resource version they are for, unless ours is there already.
    pub add_finalizer: Option<(String, Vec<String>)>,
    /// The device.
    pub wanted: Wanted,
    /// What exists of it.
    pub observed: Observed,
    /// Ports that cannot be served, as `port/protocol`.
    pub left_out: Vec<String>,
}

/// A Service that is to have no device any more.
#[derive(Clone, Debug)]
pub struct Release {
    /// The Service.
    pub service: ObjectRef,
    /// The finalizers that remain with the resource version they are for, if ours is there.
    pub remove_finalizer: Option<(String, Vec<String>)>,
    /// What exists of the device.
    pub observed: Observed,
    /// Whether to leave the device at the control server.
    pub force: bool,
}

/// What the user has to change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// `clusterIP: None`.
    #[error(
        "a headless Service has no address to forward to: remove \"clusterIP: None\", or expose another Service for the same pods"
    )]
    Headless,
    /// No ports at all.
    #[error("the Service has no ports: list the ports to serve under spec.ports")]
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
    /// Egress without ports.
    #[error(
        "the Service has no ports: list the ports of the target under spec.ports, for example \"ports: [{{port: 80}}]\""
    )]
    EgressWithoutPorts,
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
    /// A ProxyClass is asked for.
    #[error(
        "ProxyClasses are not available yet: remove {} {class:?} from the labels and annotations",
        annotation::PROXY_CLASS
    )]
    ProxyClass {
        /// Its name.
        class: String,
    },
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
        return Ok(if snapshot.has_objects() {
            release(snapshot)
        } else {
            Validated::Ignore
        });
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
    let annotated = snapshot.annotation(annotation::EXPOSE) == Some("true");
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
    if !snapshot.has_objects() && !snapshot.has_finalizer() && snapshot.condition().is_none() {
        return Validated::Ignore;
    }
    let remaining = || {
        snapshot
            .finalizers()
            .iter()
            .filter(|name| *name != tailwharf_kube_types::contract::FINALIZER)
    };
    Validated::Release(Box::new(Release {
        service: snapshot.reference(),
        remove_finalizer: snapshot
            .has_finalizer()
            .then(|| (snapshot.resource_version(), remaining().cloned().collect())),
        observed: snapshot.observed.clone(),
        force: snapshot.annotation(annotation::FORCE_REMOVAL) == Some("true"),
    }))
}

fn expose(
    snapshot: &Snapshot,
    service: &Service,
    spec: &ServiceSpec,
    settings: &Settings,
) -> Result<Exposure, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut keep = |result: Result<(), Problem>| problems.extend(result.err());

    let addresses = backend_addresses(spec);
    keep(if addresses.is_empty() {
        Err(Problem::Headless)
    } else {
        Ok(())
    });
    let (ports, left_out) = carried_ports(spec);
    let listeners = listeners(ports, &addresses);
    keep(check_ports(spec, &listeners, &left_out));
    let asker = Asker::read(snapshot, service, settings, &mut problems);
    let (Some(asker), true) = (asker, problems.is_empty()) else {
        return Err(problems);
    };
    let spec = IdentitySpec {
        hostname: asker.hostname,
        tags: asker.tags,
        pool: settings.pool.name.clone(),
        login_server: settings.login_server.clone(),
        ephemeral: false,
        listeners,
        egress: None,
    };
    Ok(Exposure {
        service: snapshot.reference(),
        add_finalizer: snapshot.finalizers_with_ours(),
        wanted: Wanted {
            parent: snapshot.parent(),
            name: asker.identity,
            spec,
        },
        observed: snapshot.observed.clone(),
        left_out,
    })
}

/// What any Service says about the device that it asks for.
pub(crate) struct Asker {
    pub(crate) hostname: Hostname,
    pub(crate) tags: Vec<Tag>,
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
        let tags = tags(snapshot, settings).map_err(&mut keep).ok();
        let class = check_proxy_class(snapshot).map_err(&mut keep).ok();
        let identity = identity_name(snapshot, service).map_err(&mut keep).ok();
        class?;
        Some(Self {
            hostname: hostname?,
            tags: tags?,
            identity: identity?,
        })
    }
}

/// Where connections go: the cluster's addresses of the Service, or the name it stands for.
fn backend_addresses(spec: &ServiceSpec) -> Vec<String> {
    if let Some(name) = external_name(spec) {
        return vec![name.trim_end_matches('.').to_owned()];
    }
    let all = spec.cluster_ips.clone().filter(|ips| !ips.is_empty());
    let all = all.unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
    all.into_iter()
        .filter(|ip| !ip.is_empty() && ip != "None")
        .collect()
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

/// A listener for each port that can be carried.
fn listeners(ports: Vec<CarriedPort>, addresses: &[String]) -> Vec<Listener> {
    let backend = |address: &String, port| Backend {
        address: address.clone(),
        port,
    };
    let listener = |CarriedPort {
                        name,
                        protocol,
                        number,
                    }: CarriedPort| Listener {
        name,
        protocol,
        port: number,
        backends: addresses.iter().map(|address| backend(address, number)).collect(),
    };
    ports.into_iter().map(listener).collect()
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
    match snapshot.annotation(annotation::HOSTNAME) {
        Some(text) => text.parse().map_err(|error| Problem::Hostname { error }),
        None => format!("{}-{}", snapshot.namespace, snapshot.name)
            .parse()
            .map_err(|error| Problem::DefaultHostname { error }),
    }
}

fn tags(snapshot: &Snapshot, settings: &Settings) -> Result<Vec<Tag>, Problem> {
    match snapshot
        .annotation(annotation::TAGS)
        .filter(|text| !text.is_empty())
    {
        Some(text) => Tag::parse_list(text).map_err(|error| Problem::Tags { error }),
        None => Ok(settings.default_tags.clone()),
    }
}

fn check_proxy_class(snapshot: &Snapshot) -> Result<(), Problem> {
    let labels = snapshot
        .service
        .as_ref()
        .and_then(|service| service.metadata.labels.as_ref());
    let label = labels
        .and_then(|labels| labels.get(annotation::PROXY_CLASS))
        .map(String::as_str);
    match label
        .or_else(|| snapshot.annotation(annotation::PROXY_CLASS))
        .filter(|class| !class.is_empty())
    {
        Some(class) => Err(Problem::ProxyClass {
            class: class.chars().take(80).collect(),
        }),
        None => Ok(()),
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
