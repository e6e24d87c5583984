//! What an Ingress asks for.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::Ingress;
use tailwharf_kube_types::contract::{PARKED_POOL, annotation};
use tailwharf_kube_types::identity::web::{MAX_HOSTS, MAX_ROUTES, MAX_WEB_BACKENDS, Web};
use tailwharf_kube_types::{Hostname, IdentitySpec, Tag, names};

use super::hosts::{self, Copy, Hosts, hostname};
use super::options::{self, Options};
use super::routes::{self, Routes};
use super::{Problem, Rival, Snapshot, is_ours};
use crate::class;
use crate::identity::{Observed, Wanted, only_identity};
use crate::plan::{Kind, ObjectRef};
use crate::settings::Settings;
use crate::subject::{Finalizers, Release};

/// What to do about an Ingress.
#[derive(Clone, Debug)]
pub enum Validated {
    /// It is to have a device.
    Serve(Box<Serving>),
    /// It gets no device, or keeps the one it has as it is, until the user has changed something.
    Reject(Box<Rejection>),
    /// It is to have no device any more, or is being deleted.
    Release(Box<Release>),
    /// It is none of ours.
    Ignore,
}

/// An Ingress that is to have a device.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The Ingress.
    pub ingress: ObjectRef,
    /// The finalizers to set, unless ours is there already.
    pub add_finalizer: Option<Finalizers>,
    /// The device.
    pub wanted: Wanted,
    /// What exists of it.
    pub observed: Observed,
    /// Certificates to copy into the identity's Secret.
    pub copies: Vec<Copy>,
    /// When one of the certificates ends.
    pub certificate_ends: Option<Timestamp>,
    /// Endpoints of one Service beyond the most that a backend holds.
    pub endpoints_left_out: usize,
    /// A rule has an empty path, which stands for `/`.
    pub assumes_root: bool,
    /// What is not served, though the rest is.
    pub problems: Vec<Problem>,
}

/// An Ingress that asks for something that cannot be.
#[derive(Clone, Debug)]
pub struct Rejection {
    /// An Identity that nobody hosts, to tell what is wrong; `None` if its name is what is wrong.
    pub parked: Option<Wanted>,
    /// What exists for it.
    pub observed: Observed,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Reads what the Ingress asks for.
#[must_use]
pub fn validate(snapshot: &Snapshot, settings: &Settings, now: Timestamp) -> Validated {
    let Some(ingress) = snapshot
        .living()
        .filter(|ingress| is_ours(ingress, settings) && !settings.releasing)
        .filter(|_| snapshot.subject().given(annotation::PROXY_GROUP).is_none())
    else {
        return release(snapshot);
    };
    match serve(snapshot, ingress, settings, now) {
        Ok(serving) => Validated::Serve(Box::new(serving)),
        Err(problems) => Validated::Reject(Box::new(reject(snapshot, ingress, settings, problems))),
    }
}

/// The removal of everything made for the Ingress. If there is nothing to remove at all, it is none of ours. A finalizer alone is of another operator
/// if the Ingress asks for a ProxyGroup: it stays.
fn release(snapshot: &Snapshot) -> Validated {
    let grouped = snapshot.subject().given(annotation::PROXY_GROUP).is_some();
    let finalizer = snapshot.subject().has_finalizer() && !grouped;
    if !snapshot.has_objects() && !finalizer {
        return Validated::Ignore;
    }
    let release = snapshot
        .subject()
        .release(reference(snapshot), &snapshot.observed);
    Validated::Release(Box::new(release))
}

fn serve(
    snapshot: &Snapshot,
    ingress: &Ingress,
    settings: &Settings,
    now: Timestamp,
) -> Result<Serving, Vec<Problem>> {
    let mut fatal = Vec::new();
    let mut keep = |problem: Problem| fatal.push(problem);
    let hostname = hostname(ingress).map_err(&mut keep).ok();
    let tags = snapshot.subject().tags(settings);
    let tags = tags.map_err(|error| keep(Problem::Tags { error })).ok();
    let name = identity_name(snapshot, ingress).map_err(&mut keep).ok();
    let placement = class::place(snapshot.class.as_ref());
    let placement = placement.map_err(|problem| keep(Problem::Class(problem))).ok();
    if let (Some(hostname), Some(rival)) = (&hostname, older_rival(snapshot, ingress)) {
        keep(Problem::HostnameTaken {
            hostname: hostname.to_string(),
            namespace: rival.namespace.clone(),
            name: rival.name.clone(),
        });
    }
    let options = options::options(snapshot.subject(), &mut fatal);
    let (Some(hostname), Some(tags), Some(name), Some(placement), true) =
        (hostname, tags, name, placement, fatal.is_empty())
    else {
        return Err(fatal);
    };

    let mut problems = Vec::new();
    let mut hosts = hosts::hosts(snapshot, ingress, &hostname, &name, now, &mut problems);
    let routes = routes::routes(snapshot, ingress, &options, &mut hosts, &mut problems);
    if snapshot.subject().annotation(annotation::FORWARD_CLUSTER_TRAFFIC) == Some("true") {
        problems.push(Problem::NoForwarding);
    }
    if let Err(problem) = check_counts(&hosts, &routes) {
        // What was left out may be why nothing is left.
        problems.insert(0, problem);
        return Err(problems);
    }
    let Hosts {
        served, copies, ends, ..
    } = hosts;
    let web = web(options, served, &routes, settings);
    Ok(Serving {
        ingress: reference(snapshot),
        add_finalizer: snapshot.subject().add_finalizer(),
        wanted: Wanted {
            parent: snapshot.parent(),
            name,
            spec: spec(hostname, tags, settings, &placement.pool, Some(web)),
        },
        observed: snapshot.observed.clone(),
        copies,
        certificate_ends: ends,
        endpoints_left_out: routes.endpoints_left_out,
        assumes_root: routes.assumes_root,
        problems,
    })
}

fn web(
    options: Options,
    hosts: Vec<tailwharf_kube_types::identity::web::WebHost>,
    routes: &Routes,
    settings: &Settings,
) -> Web {
    Web {
        hosts,
        routes: routes.routes.clone(),
        backends: routes.backends.values().cloned().collect(),
        http: options.http,
        funnel: options.funnel,
        acme_directory: settings.acme_directory.clone(),
        max_body_bytes: options.max_body_bytes,
        response_timeout_seconds: options.response_timeout_seconds,
        access_log: options.access_log,
    }
}

fn spec(
    hostname: Hostname,
    tags: Vec<Tag>,
    settings: &Settings,
    pool: &str,
    web: Option<Web>,
) -> IdentitySpec {
    IdentitySpec {
        hostname,
        tags,
        pool: pool.to_owned(),
        login_server: settings.login_server.clone(),
        ephemeral: false,
        listeners: Vec::new(),
        web,
        egress: None,
        router: None,
    }
}

fn check_counts(hosts: &Hosts, routes: &Routes) -> Result<(), Problem> {
    let too_many = |what, count, most| {
        if count > most {
            Err(Problem::TooMany { what, count })
        } else {
            Ok(())
        }
    };
    if routes.routes.is_empty() {
        return Err(Problem::NoBackends);
    }
    if hosts.served.is_empty() {
        return Err(Problem::NoHosts);
    }
    too_many("hosts", hosts.served.len(), MAX_HOSTS)?;
    too_many("paths", routes.routes.len(), MAX_ROUTES)?;
    too_many("Services", routes.backends.len(), MAX_WEB_BACKENDS)
}

/// The Ingress that has the name, if it is not this one.
fn older_rival<'a>(snapshot: &'a Snapshot, ingress: &Ingress) -> Option<&'a Rival> {
    let own = Rival {
        created: ingress.metadata.creation_timestamp.as_ref().map(|time| time.0),
        namespace: snapshot.namespace.clone(),
        name: snapshot.name.clone(),
    };
    snapshot.rivals.iter().filter(|rival| **rival < own).min()
}

fn reject(snapshot: &Snapshot, ingress: &Ingress, settings: &Settings, problems: Vec<Problem>) -> Rejection {
    let name = identity_name(snapshot, ingress).ok();
    let parked = name.and_then(|name| {
        // A name that is not valid stands as that of the Identity.
        let hostname = hostname(ingress).ok().or_else(|| name.parse().ok())?;
        Some(Wanted {
            parent: snapshot.parent(),
            name,
            spec: spec(
                hostname,
                settings.default_tags.clone(),
                settings,
                PARKED_POOL,
                None,
            ),
        })
    });
    Rejection {
        parked,
        observed: snapshot.observed.clone(),
        problems,
    }
}

/// The name of the Identity that exists, or the one to make.
fn identity_name(snapshot: &Snapshot, ingress: &Ingress) -> Result<String, Problem> {
    let existing = only_identity(&snapshot.observed).map_err(|names| Problem::SeveralIdentities { names })?;
    let existing = existing.and_then(|identity| identity.metadata.name.clone());
    Ok(existing.unwrap_or_else(|| {
        let uid = ingress.metadata.uid.as_deref().unwrap_or_default();
        names::identity_name(&snapshot.name, uid)
    }))
}

pub(super) fn reference(snapshot: &Snapshot) -> ObjectRef {
    ObjectRef::new(Kind::Ingress, &snapshot.namespace, &snapshot.name)
}
