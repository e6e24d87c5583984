//! What a Connector asks for.

use tailwharf_kube_types::connector::ConnectorSpec;
use tailwharf_kube_types::contract::{MAX_LABEL, MAX_REPLICAS, MAX_TAGS};
use tailwharf_kube_types::values::{HostnameError, TagError};
use tailwharf_kube_types::{Connector, Hostname, IdentitySpec, Router, Tag, names};
use thiserror::Error;

use super::routes::{self, RouteProblem};
use super::{Snapshot, status};
use crate::class::{self, ClassProblem};
use crate::egress;
use crate::identity::{Observed, Wanted};
use crate::plan::ObjectRef;
use crate::ranges::Overlap;
use crate::settings::Settings;
use crate::subject::{Finalizers, Release};

/// What to do about a Connector.
#[derive(Clone, Debug)]
pub enum Validated {
    /// It is to have devices.
    Serve(Box<Serving>),
    /// It is being deleted, or gone.
    Release(Box<Release>),
    /// Nothing was made for it and nothing is to be made.
    Ignore,
}

/// A Connector that is to have devices.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The Connector.
    pub connector: ObjectRef,
    /// The finalizers to set, unless ours is there already.
    pub add_finalizer: Option<Finalizers>,
    /// Its devices, in the order of their ordinals.
    pub devices: Vec<Wanted>,
    /// What exists of them.
    pub observed: Observed,
    /// What exists beyond them.
    pub surplus: Observed,
    /// What each of them routes.
    pub router: Router,
    /// Routes that cover addresses of this cluster.
    pub overlaps: Vec<Overlap>,
}

/// What the user has to change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// None of the three roles.
    #[error(
        "a Connector does nothing without a role: set spec.subnetRouter, spec.exitNode: true or spec.appConnector"
    )]
    NoRole,
    /// An app connector with another role.
    #[error(
        "an app connector cannot be a subnet router or an exit node as well: make a Connector of its own for it"
    )]
    Roles,
    /// A route cannot be used.
    #[error("{0}")]
    Route(RouteProblem),
    /// Several devices with one name.
    #[error("several replicas cannot have one hostname: set spec.hostnamePrefix instead of spec.hostname")]
    OneHostname,
    /// Two ways to name the devices.
    #[error("spec.hostname and spec.hostnamePrefix exclude each other: remove one of them")]
    TwoHostnames,
    /// The name is not valid.
    #[error("{error}; set spec.hostname or spec.hostnamePrefix to another name")]
    Hostname {
        /// What is wrong.
        error: HostnameError,
    },
    /// A tag is not valid.
    #[error("spec.tags: {error}")]
    Tags {
        /// What is wrong.
        error: TagError,
    },
    /// More devices than one Connector has.
    #[error("{count} replicas are too many: use at most {MAX_REPLICAS}")]
    TooManyReplicas {
        /// How many.
        count: i64,
    },
    /// The name does not fit into a label.
    #[error("the Connector's name has {length} characters: make one with a name of at most {MAX_LABEL}")]
    NameTooLong {
        /// Its length.
        length: usize,
    },
    /// Another tailnet than the operator's.
    #[error("the operator serves its own tailnet only: remove spec.tailnet {name:?}")]
    Tailnet {
        /// The Tailnet that is named.
        name: String,
    },
    /// The ProxyClass cannot be used now.
    #[error("{0}")]
    Class(ClassProblem),
}

/// Reads what the Connector asks for, or everything that is wrong with it.
pub fn validate(snapshot: &Snapshot, settings: &Settings) -> Result<Validated, Vec<Problem>> {
    match snapshot.living() {
        Some(connector) if !settings.releasing => {
            serve(snapshot, connector, settings).map(|serving| Validated::Serve(Box::new(serving)))
        }
        _ => Ok(release(snapshot)),
    }
}

fn release(snapshot: &Snapshot) -> Validated {
    if !snapshot.subject().has_finalizer() && !snapshot.has_objects() {
        return Validated::Ignore;
    }
    let release = snapshot
        .subject()
        .release(snapshot.reference(), &snapshot.observed);
    Validated::Release(Box::new(release))
}

fn serve(snapshot: &Snapshot, connector: &Connector, settings: &Settings) -> Result<Serving, Vec<Problem>> {
    let spec = &connector.spec;
    let mut problems = Vec::new();
    problems.extend(contradictions(snapshot, spec));
    let mut keep = |found: Vec<Problem>| problems.extend(found);
    let router = router(spec).map_err(&mut keep).ok();
    let hostnames = hostnames(&snapshot.name, spec)
        .map_err(|problem| keep(vec![problem]))
        .ok();
    let tags = tags(spec, settings)
        .map_err(|error| keep(vec![Problem::Tags { error }]))
        .ok();
    let placement = class::place(snapshot.class.as_ref())
        .map_err(|problem| keep(vec![Problem::Class(problem)]))
        .ok();
    let (Some(router), Some(hostnames), Some(tags), Some(placement), true) =
        (router, hostnames, tags, placement, problems.is_empty())
    else {
        return Err(problems);
    };
    let uid = connector.metadata.uid.as_deref().unwrap_or_default();
    let device = |(ordinal, hostname)| Wanted {
        parent: snapshot.parent(),
        name: names::replica_name(&snapshot.name, uid, ordinal),
        spec: IdentitySpec {
            hostname,
            tags: tags.clone(),
            pool: placement.pool.clone(),
            login_server: settings.login_server.clone(),
            ephemeral: false,
            listeners: Vec::new(),
            egress: None,
            web: None,
            router: Some(router.clone()),
        },
    };
    let devices: Vec<Wanted> = hostnames.into_iter().enumerate().map(device).collect();
    let surplus = surplus(&snapshot.observed, &devices);
    Ok(Serving {
        connector: snapshot.reference(),
        add_finalizer: snapshot.subject().add_finalizer(),
        overlaps: snapshot.ranges.overlaps(&router.routes),
        observed: snapshot.observed.clone(),
        surplus,
        devices,
        router,
    })
}

/// What the schema refuses as well, for clusters whose schema is an older one.
fn contradictions(snapshot: &Snapshot, spec: &ConnectorSpec) -> Vec<Problem> {
    let routes = spec.subnet_router.is_some() || status::is_exit_node(spec);
    let replicas = spec.replicas.unwrap_or(1);
    let mut problems = Vec::new();
    let mut check = |wrong: bool, problem: Problem| {
        if wrong {
            problems.push(problem);
        }
    };
    check(!routes && spec.app_connector.is_none(), Problem::NoRole);
    check(routes && spec.app_connector.is_some(), Problem::Roles);
    check(spec.hostname.is_some() && replicas > 1, Problem::OneHostname);
    check(
        spec.hostname.is_some() && spec.hostname_prefix.is_some(),
        Problem::TwoHostnames,
    );
    let length = snapshot.name.len();
    check(length > MAX_LABEL, Problem::NameTooLong { length });
    if let Some(name) = spec.tailnet.clone().filter(|name| !name.is_empty()) {
        let name = name.chars().take(80).collect();
        problems.push(Problem::Tailnet { name });
    }
    problems
}

/// What each device routes.
fn router(spec: &ConnectorSpec) -> Result<Router, Vec<Problem>> {
    let subnets = spec
        .subnet_router
        .iter()
        .flat_map(|router| &router.advertise_routes);
    let known = spec
        .app_connector
        .iter()
        .flat_map(|connector| connector.routes.iter().flatten());
    let texts: Vec<String> = subnets.chain(known).cloned().collect();
    let mut routes = routes::parse(&texts)
        .map_err(|problems| problems.into_iter().map(Problem::Route).collect::<Vec<_>>())?;
    if status::is_exit_node(spec) {
        routes::add_exit(&mut routes);
    }
    Ok(Router {
        routes,
        app_connector: spec.app_connector.is_some(),
    })
}

/// The names to ask the control server for, one for each device. It makes equal ones differ by a suffix.
fn hostnames(name: &str, spec: &ConnectorSpec) -> Result<Vec<Hostname>, Problem> {
    let count = i64::from(spec.replicas.unwrap_or(1));
    let replicas = usize::try_from(count)
        .ok()
        .filter(|replicas| *replicas <= MAX_REPLICAS)
        .ok_or(Problem::TooManyReplicas { count })?;
    let hostname = |ordinal: usize| match (&spec.hostname_prefix, &spec.hostname) {
        (Some(prefix), _) => format!("{prefix}-{ordinal}"),
        (None, Some(hostname)) => hostname.clone(),
        (None, None) => format!("{name}-connector"),
    };
    (0..replicas)
        .map(|ordinal| {
            hostname(ordinal)
                .parse()
                .map_err(|error| Problem::Hostname { error })
        })
        .collect()
}

fn tags(spec: &ConnectorSpec, settings: &Settings) -> Result<Vec<Tag>, TagError> {
    let texts = spec.tags.as_deref().unwrap_or_default();
    if texts.is_empty() {
        return Ok(settings.default_tags.clone());
    }
    if texts.len() > MAX_TAGS {
        return Err(TagError::TooMany { count: texts.len() });
    }
    let mut tags = texts
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<Tag>, _>>()?;
    tags.sort();
    tags.dedup();
    Ok(tags)
}

/// What exists and is not of a device that is wanted.
fn surplus(observed: &Observed, devices: &[Wanted]) -> Observed {
    let wanted = |name: Option<&str>| devices.iter().any(|device| Some(&*device.name) == name);
    let of_wanted = |secret: &str| {
        devices
            .iter()
            .any(|device| names::secret_name(&device.name) == secret)
    };
    Observed {
        identities: observed
            .identities
            .iter()
            .filter(|identity| !wanted(identity.metadata.name.as_deref()))
            .cloned()
            .collect(),
        secrets: observed
            .secrets
            .iter()
            .filter(|secret| !of_wanted(&secret.name))
            .cloned()
            .collect(),
        granted: observed.granted.clone(),
        egress: egress::Objects::default(),
        pod_ports: observed.pod_ports.clone(),
    }
}
