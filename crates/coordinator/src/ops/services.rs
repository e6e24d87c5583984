//! VIP services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use tailwharf_wire::tailcfg::NodeId;

use super::{Context, Decision, OpError, Operations, Subject, check_tags};
use crate::{
    model::{Action, Actor, Node, ServiceName, Tag, TargetKind, VipService},
    world::{Change, World},
};

/// Services of one tailnet.
const SERVICE_LIMIT: usize = 10_000;
const ANNOTATION_LIMIT: usize = 64;
const PORT_LIMIT: usize = 256;
/// The longest comment, annotation or annotation's name, in bytes.
const TEXT_LIMIT: usize = 4096;

/// A service to create, or to give another form.
#[derive(Clone, Debug)]
pub struct NewService {
    /// Its name.
    pub name: ServiceName,
    /// The addresses that it should have, at most one of a family; those that it has, or the next free ones, when absent.
    pub addresses: Vec<IpAddr>,
    /// Free text.
    pub comment: String,
    /// Free pairs.
    pub annotations: BTreeMap<String, String>,
    /// What it answers on: `tcp:443`, `udp:53`, `tcp:80-90`, `*`, or `do-not-validate`.
    pub ports: Vec<String>,
    /// Its tags.
    pub tags: BTreeSet<Tag>,
}

/// A node that offers to answer for a service.
#[derive(Clone, Debug)]
pub struct ServiceHost {
    /// The node.
    pub node: Arc<Node>,
    /// Whether it may.
    pub approved: bool,
    /// Whether an administrator said so; else the policy decides.
    pub by_administrator: bool,
    /// Whether it answers, for some of the clients at least.
    pub serving: bool,
}

impl Operations {
    /// Creates a service, or changes it.
    ///
    /// # Errors
    /// `TagNotPermitted`; `Conflict` for an address or name that something else has; `Invalid` for a port that is none, or what is too long.
    pub async fn put_service(&self, actor: Actor, new: NewService) -> Result<Arc<VipService>, OpError> {
        self.submit(move |world, context| put_service(world, context, &actor, new))
            .await
    }

    /// Deletes a service. Its addresses answer no more.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_service(&self, actor: Actor, name: ServiceName) -> Result<(), OpError> {
        self.submit(move |world, context| {
            world
                .service(&name)
                .ok_or_else(|| OpError::not_found("service", &name))?;
            let subject = subject(&name);
            let decision = Decision::new(vec![Change::DeleteService(name)], ());
            Ok(decision.noted(world, context, &actor, Action::Delete, subject))
        })
        .await
    }

    /// Decides whether a node may answer for a service; `None` leaves it to the policy.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn approve_service_host(
        &self,
        actor: Actor,
        name: ServiceName,
        host: NodeId,
        approved: Option<bool>,
    ) -> Result<Arc<VipService>, OpError> {
        self.submit(move |world, context| {
            let service = world
                .service(&name)
                .ok_or_else(|| OpError::not_found("service", &name))?;
            let node = world.node(host).ok_or_else(|| OpError::not_found("node", host))?;
            let mut next = service.as_ref().clone();
            match approved {
                Some(approved) => next.hosts.insert(host, approved),
                None => next.hosts.remove(&host),
            };
            let next = Arc::new(next);
            let action = if approved == Some(false) {
                Action::Deny
            } else {
                Action::Approve
            };
            let subject = subject(&name).detail(format_args!("host {}", node.name));
            let decision = Decision::new(vec![Change::PutService(next.clone())], next);
            Ok(decision.noted(world, context, &actor, action, subject))
        })
        .await
    }

    /// The nodes that offer to answer for a service.
    pub fn service_hosts(&self, name: &ServiceName) -> Vec<ServiceHost> {
        let world = self.world();
        let Some(service) = world.service(name) else {
            return Vec::new();
        };
        let choice = world.service_choice(name).cloned().unwrap_or_default();
        let offering = world.nodes_offering(name).map(|node| ServiceHost {
            approved: world.is_service_host_approved(service, node),
            by_administrator: service.hosts.contains_key(&node.id),
            serving: choice.global == Some(node.id) || choice.regional.values().any(|id| *id == node.id),
            node: node.clone(),
        });
        let mut hosts: Vec<_> = offering.collect();
        hosts.sort_by_key(|host| host.node.id);
        hosts
    }
}

fn subject(name: &ServiceName) -> Subject {
    Subject::new(TargetKind::Service, name, name)
}

fn put_service(
    world: &World,
    context: &Context,
    actor: &Actor,
    new: NewService,
) -> Result<Decision<Arc<VipService>>, OpError> {
    check(&new)?;
    let former = world.service(&new.name);
    let added = new
        .tags
        .iter()
        .filter(|tag| former.is_none_or(|former| !former.tags.contains(tag)));
    check_tags(world, actor, added)?;
    if former.is_none() {
        if world.services().count() >= SERVICE_LIMIT {
            return Err(OpError::Invalid(format!(
                "a tailnet has {SERVICE_LIMIT} services at most"
            )));
        }
        if world.node_by_name(new.name.label()).is_some() {
            return Err(OpError::Conflict(format!(
                "a node is called `{}`: choose another name, or rename the node",
                new.name.label()
            )));
        }
    }
    let (ipv4, ipv6) = addresses(world, context, former.map(AsRef::as_ref), &new.addresses)?;
    let service = VipService {
        name: new.name,
        ipv4,
        ipv6,
        comment: new.comment,
        annotations: new.annotations,
        ports: new.ports,
        tags: new.tags,
        hosts: former.map(|former| former.hosts.clone()).unwrap_or_default(),
        created: former.map_or(context.now, |former| former.created),
    };
    if former.is_some_and(|former| **former == service) {
        return Ok(Decision::unchanged(Arc::new(service)));
    }
    let action = if former.is_some() {
        Action::Update
    } else {
        Action::Create
    };
    let subject = subject(&service.name).detail(service.ports.join(" "));
    let service = Arc::new(service);
    let decision = Decision::new(vec![Change::PutService(service.clone())], service);
    Ok(decision.noted(world, context, actor, action, subject))
}

/// The addresses asked for, else those of before, else the next free ones.
fn addresses(
    world: &World,
    context: &Context,
    former: Option<&VipService>,
    wanted: &[IpAddr],
) -> Result<(Ipv4Addr, Ipv6Addr), OpError> {
    let (mut v4, mut v6) = (former.map(|former| former.ipv4), former.map(|former| former.ipv6));
    for addr in wanted {
        let kept = former.is_some_and(|former| former.addresses().contains(addr));
        if !kept && world.is_address_taken(*addr) {
            return Err(OpError::Conflict(format!("{addr} belongs to something else")));
        }
        if !context.prefixes.both().iter().any(|prefix| prefix.contains(addr)) {
            return Err(OpError::Invalid(format!(
                "{addr} is outside the prefixes of the tailnet"
            )));
        }
        match addr {
            IpAddr::V4(addr) => v4 = Some(*addr),
            IpAddr::V6(addr) => v6 = Some(*addr),
        }
    }
    let taken = |addr| world.is_address_taken(addr);
    let v4 = match v4 {
        Some(v4) => v4,
        None => context
            .prefixes
            .next_v4(world.last_v4(), taken)
            .map_err(OpError::AddressesExhausted)?,
    };
    let v6 = match v6 {
        Some(v6) => v6,
        None => context
            .prefixes
            .v6_for(v4, taken)
            .map_err(OpError::AddressesExhausted)?,
    };
    Ok((v4, v6))
}

fn check(new: &NewService) -> Result<(), OpError> {
    let texts = new.annotations.iter().flat_map(|(name, value)| [name, value]);
    if new.annotations.len() > ANNOTATION_LIMIT
        || texts.chain([&new.comment]).any(|text| text.len() > TEXT_LIMIT)
    {
        return Err(OpError::Invalid(format!(
            "a service has {ANNOTATION_LIMIT} annotations at most, and no text over {TEXT_LIMIT} bytes"
        )));
    }
    if new.ports.len() > PORT_LIMIT {
        return Err(OpError::Invalid(format!(
            "a service has {PORT_LIMIT} ports at most"
        )));
    }
    match new.ports.iter().find(|port| !is_port(port)) {
        Some(port) => Err(OpError::Invalid(format!(
            "`{port}` is not a port of a service: write `tcp:443`, `tcp:80-90`, `*` or `do-not-validate`"
        ))),
        None => Ok(()),
    }
}

fn is_port(text: &str) -> bool {
    if matches!(text, "*" | "do-not-validate") {
        return true;
    }
    let Some((protocol, range)) = text.split_once(':') else {
        return false;
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let is_range = match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => 0 < first && first <= last,
        _ => range == "*",
    };
    matches!(protocol, "tcp" | "udp") && is_range
}
