//! Which request goes to which Service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, ServiceBackendPort};
use tailwharf_kube_types::Backend;
use tailwharf_kube_types::identity::web::{BackendProtocol, HostName, PathType, Route, WebBackend};

use super::hosts::Hosts;
use super::options::Options;
use super::snapshot::Target;
use super::{Problem, Snapshot};
use crate::endpoints;

/// Longest path of a route, in bytes.
const MAX_PATH: usize = 1024;
/// The port of which the contract says that it speaks TLS, as it says of a port with the name below.
const TLS_PORT: u16 = 443;
const TLS_PORT_NAME: &str = "https";
/// What `appProtocol` of a Service's port may say.
const H2C: &str = "kubernetes.io/h2c";

/// Routes and the backends that they name.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    pub(super) routes: Vec<Route>,
    pub(super) backends: BTreeMap<String, WebBackend>,
    /// Endpoints of one Service beyond the most that a backend holds.
    pub(super) endpoints_left_out: usize,
    /// A rule has an empty path, which stands for `/`.
    pub(super) assumes_root: bool,
}

/// Reads default backend and rules. What cannot be served is in `problems`.
pub(super) fn routes(
    snapshot: &Snapshot,
    ingress: &Ingress,
    options: &Options,
    hosts: &mut Hosts,
    problems: &mut Vec<Problem>,
) -> Routes {
    let mut reader = Reader {
        snapshot,
        options,
        problems,
        found: Routes::default(),
    };
    let Some(spec) = &ingress.spec else {
        return reader.found;
    };
    for rule in spec.rules.iter().flatten() {
        let paths = rule.http.iter().flat_map(|http| &http.paths);
        let names = match rule.host.as_deref().filter(|host| !host.is_empty()) {
            None => vec![None],
            Some(host) => hosts.of_rule(host).into_iter().map(Some).collect(),
        };
        if names.is_empty() {
            let host = rule.host.clone().unwrap_or_default();
            reader.problems.push(Problem::RuleHost { host });
            continue;
        }
        for path in paths {
            reader.path(&names, path);
        }
    }
    if let Some(backend) = &spec.default_backend {
        reader.route(&[None], "/", PathType::Prefix, backend);
    }
    reader.found
}

struct Reader<'a> {
    snapshot: &'a Snapshot,
    options: &'a Options,
    problems: &'a mut Vec<Problem>,
    found: Routes,
}

impl Reader<'_> {
    fn path(&mut self, hosts: &[Option<HostName>], path: &HTTPIngressPath) {
        let given = path.path.as_deref().filter(|path| !path.is_empty());
        self.found.assumes_root |= given.is_none();
        let text = given.unwrap_or("/");
        if !text.starts_with('/') || text.len() > MAX_PATH {
            let path = text.chars().take(80).collect();
            self.problems.push(Problem::Path { path });
            return;
        }
        // `ImplementationSpecific` is a prefix, as it is for the Go operator.
        let path_type = match path.path_type.as_str() {
            "Exact" => PathType::Exact,
            _ => PathType::Prefix,
        };
        self.route(hosts, text, path_type, &path.backend);
    }

    /// Adds a route for each host, unless an earlier one has its path.
    fn route(
        &mut self,
        hosts: &[Option<HostName>],
        path: &str,
        path_type: PathType,
        backend: &IngressBackend,
    ) {
        let Some(backend) = self.backend(path, backend) else {
            return;
        };
        for host in hosts {
            let taken = self
                .found
                .routes
                .iter()
                .any(|route| route.host == *host && route.path == path && route.path_type == path_type);
            if !taken {
                self.found.routes.push(Route {
                    host: host.clone(),
                    path: path.to_owned(),
                    path_type,
                    backend: backend.clone(),
                });
            }
        }
    }

    /// The name of the backend that an Ingress's backend becomes.
    fn backend(&mut self, path: &str, backend: &IngressBackend) -> Option<String> {
        let Some(service) = &backend.service else {
            let path = path.chars().take(80).collect();
            self.problems.push(Problem::ResourceBackend { path });
            return None;
        };
        let port = service.port.clone().unwrap_or_default();
        let name = format!("{}:{}", service.name, port_text(&port));
        if !self.found.backends.contains_key(&name) {
            let made = self.web_backend(&name, &service.name, &port);
            self.found.backends.insert(name.clone(), made);
        }
        Some(name)
    }

    fn web_backend(&mut self, name: &str, service: &str, port: &ServiceBackendPort) -> WebBackend {
        let mut backend = WebBackend {
            name: name.to_owned(),
            protocol: self.options.backend_protocol.unwrap_or_default(),
            addresses: Vec::new(),
            problem: None,
        };
        let problem = match self.snapshot.services.get(service) {
            None => Some(Problem::NoService {
                service: service.to_owned(),
            }),
            Some(target) => self.resolve(&mut backend, service, target, port).err(),
        };
        if let Some(problem) = problem {
            backend.problem = Some(crate::status::sentence(&problem.to_string()));
            self.problems.push(problem);
        }
        backend
    }

    /// An external name has the port that is asked for, whether its Service lists it or not.
    fn external(
        &self,
        backend: &mut WebBackend,
        service: &str,
        spec: &ServiceSpec,
        wanted: &ServiceBackendPort,
    ) -> Result<(), Problem> {
        let listed = find_port(spec, wanted).map(|port| port.port);
        let number = listed.or(wanted.number).and_then(|port| u16::try_from(port).ok());
        let (Some(port), Some(name)) = (number, spec.external_name.as_deref()) else {
            return Err(Problem::NoPort {
                service: service.to_owned(),
                port: port_text(wanted),
                ports: port_texts(spec),
            });
        };
        backend.protocol = self
            .options
            .backend_protocol
            .unwrap_or_else(|| by_port(port, wanted));
        backend.addresses.push(Backend {
            address: name.trim_end_matches('.').to_owned(),
            port,
        });
        Ok(())
    }

    /// Fills in where a backend is and what it speaks.
    fn resolve(
        &mut self,
        backend: &mut WebBackend,
        service: &str,
        target: &Target,
        wanted: &ServiceBackendPort,
    ) -> Result<(), Problem> {
        let empty = ServiceSpec::default();
        let spec = target.service.spec.as_ref().unwrap_or(&empty);
        if spec.type_.as_deref() == Some("ExternalName") {
            return self.external(backend, service, spec, wanted);
        }
        let port = find_port(spec, wanted).ok_or_else(|| Problem::NoPort {
            service: service.to_owned(),
            port: port_text(wanted),
            ports: port_texts(spec),
        })?;
        let number = u16::try_from(port.port).unwrap_or_default();
        let inferred = match port.app_protocol.as_deref() {
            Some(TLS_PORT_NAME) => BackendProtocol::Https,
            Some(H2C) => BackendProtocol::H2c,
            _ => by_port(number, wanted),
        };
        backend.protocol = self.options.backend_protocol.unwrap_or(inferred);
        let (addresses, too_many) = endpoints::backends(spec, port, &target.endpoints);
        self.found.endpoints_left_out = self.found.endpoints_left_out.max(too_many);
        if addresses.is_empty() {
            return Err(Problem::NoEndpoint {
                service: service.to_owned(),
            });
        }
        backend.addresses = addresses;
        Ok(())
    }
}

/// What the contract says of ports without an `appProtocol`.
fn by_port(number: u16, wanted: &ServiceBackendPort) -> BackendProtocol {
    if number == TLS_PORT || wanted.name.as_deref() == Some(TLS_PORT_NAME) {
        BackendProtocol::Https
    } else {
        BackendProtocol::Http
    }
}

fn find_port<'a>(spec: &'a ServiceSpec, wanted: &ServiceBackendPort) -> Option<&'a ServicePort> {
    let mut ports = spec.ports.iter().flatten();
    ports.find(|port| {
        let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        let same = match wanted.name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => port.name.as_deref() == Some(name),
            None => Some(port.port) == wanted.number,
        };
        tcp && same
    })
}

fn port_text(port: &ServiceBackendPort) -> String {
    match port.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => port.number.unwrap_or_default().to_string(),
    }
}

/// The ports of a Service, for people.
fn port_texts(spec: &ServiceSpec) -> Vec<String> {
    const SHOWN: usize = 8;
    let text = |port: &ServicePort| match &port.name {
        Some(name) if !name.is_empty() => format!("{} ({name})", port.port),
        _ => port.port.to_string(),
    };
    let ports: Vec<_> = spec.ports.iter().flatten().take(SHOWN).map(text).collect();
    if ports.is_empty() {
        vec!["none".to_owned()]
    } else {
        ports
    }
}
