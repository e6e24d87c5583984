//! What a Service asks for that is to stand for something on the tailnet.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use tailwharf_kube_types::contract::{MAX_LISTENERS, annotation};
use tailwharf_kube_types::{Egress, IdentitySpec, Target, names, sources};

use super::loops::leads_back;
use super::ports::allot;
use super::{Outlet, external_name};
use crate::identity::Wanted;
use crate::service::{Asker, Exposure, LeftOut, Problem, Snapshot, carried_ports};
use crate::settings::Settings;

/// Which annotations ask for egress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand<'a> {
    names: Option<&'a str>,
    addresses: Option<(&'static str, &'a str)>,
}

/// Whether a Service asks to stand for something on the tailnet.
pub(crate) fn demand(snapshot: &Snapshot) -> Option<Demand<'_>> {
    let set = |key| snapshot.subject().given(key);
    let addresses = [annotation::TAILNET_IP, annotation::TAILNET_TARGET_IP]
        .into_iter()
        .find_map(|key| Some((key, set(key)?)));
    let names = set(annotation::TAILNET_FQDN);
    (names.is_some() || addresses.is_some()).then_some(Demand { names, addresses })
}

/// Reads what the Service asks for, or everything that is wrong with it.
pub(crate) fn validate(
    demand: Demand<'_>,
    snapshot: &Snapshot,
    service: &Service,
    spec: &ServiceSpec,
    settings: &Settings,
) -> Result<Outlet, Vec<Problem>> {
    let mut problems = Vec::new();
    let targets = keep(targets(demand), &mut problems);
    if spec.cluster_ip.as_deref() == Some("None") {
        problems.push(Problem::HeadlessEgress);
    }
    let (wishes, left_out) = carried_ports(spec);
    let all_ports = wishes.is_empty() && left_out.is_empty();
    if wishes.is_empty() && !all_ports {
        problems.push(Problem::NoUsablePorts {
            ports: left_out.clone(),
        });
    } else if wishes.len() > MAX_LISTENERS {
        problems.push(Problem::TooManyPorts { count: wishes.len() });
    }
    let from = keep(from(snapshot, service), &mut problems);
    let asker = Asker::read(snapshot, service, settings, &mut problems);
    let (Some(targets), Some((from, too_many)), Some(asker), true) =
        (targets, from, asker, problems.is_empty())
    else {
        return Err(problems);
    };

    let observed = &snapshot.observed;
    let before = observed
        .identities
        .iter()
        .find(|identity| identity.metadata.name.as_ref() == Some(&asker.identity))
        .and_then(|identity| identity.spec.egress.as_ref());
    let Some(ports) = allot(&asker.identity, wishes, before, &observed.pod_ports) else {
        return Err(vec![Problem::EgressPortsExhausted]);
    };
    let leads_back = leads_back(&targets, &snapshot.devices);
    let from = match leads_back {
        Some(_) => Some(Vec::new()),
        None => from,
    };
    let is_led = spec.type_.as_deref() == Some("ExternalName")
        && spec.external_name.as_deref() == Some(&*external_name(&asker.identity, settings))
        && spec.selector.as_ref().is_none_or(|selector| selector.is_empty());
    let spec = IdentitySpec {
        hostname: asker.hostname,
        tags: asker.tags,
        pool: match all_ports {
            true => names::pool_of_identity(&asker.identity),
            false => asker.pool,
        },
        login_server: settings.login_server.clone(),
        ephemeral: false,
        listeners: Vec::new(),
        egress: Some(Egress {
            targets,
            ports,
            all_ports,
            from,
        }),
        web: None,
        router: None,
    };
    Ok(Outlet {
        exposure: Exposure {
            service: snapshot.reference(),
            add_finalizer: snapshot.subject().add_finalizer(),
            wanted: Wanted {
                parent: snapshot.parent(),
                name: asker.identity,
                spec,
            },
            observed: observed.clone(),
            left_out: LeftOut {
                ports: left_out,
                endpoints: 0,
                sources: too_many,
            },
        },
        is_led,
        leads_back,
    })
}

fn keep<T>(result: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

/// The addresses of the pods that may use the Service, if not all may, and how many ranges of them are too many.
fn from(snapshot: &Snapshot, service: &Service) -> Result<(Option<Vec<IpNet>>, usize), Problem> {
    let Some(sources) = sources::of_annotations(service.metadata.annotations.as_ref()) else {
        return Ok((None, 0));
    };
    let sources = sources.map_err(|error| Problem::Sources { error })?;
    let pods = snapshot.pods.as_ref().ok_or(Problem::PodsUnknown)?;
    let (ranges, too_many) = pods.ranges(&sources, &snapshot.namespace);
    Ok((Some(ranges), too_many))
}

fn targets(demand: Demand<'_>) -> Result<Vec<Target>, Problem> {
    match demand {
        Demand {
            names: Some(_),
            addresses: Some((annotation, _)),
        } => Err(Problem::NamesAndAddresses { annotation }),
        Demand {
            names: Some(names), ..
        } => Target::parse_names(names).map_err(|error| Problem::Targets {
            annotation: annotation::TAILNET_FQDN,
            error,
        }),
        Demand {
            addresses: Some((annotation, addresses)),
            ..
        } => Target::parse_addresses(addresses).map_err(|error| Problem::Targets { annotation, error }),
        Demand {
            names: None,
            addresses: None,
        } => Ok(Vec::new()),
    }
}
