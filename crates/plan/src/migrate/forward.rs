//! From the Go operator to tailwharf.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use tailwharf_kube_types::contract::{DEFAULT_POOL, label};
use tailwharf_kube_types::{Parent, ParentKind, names};

use super::{
    Awaited, Copy, Inventory, Leftovers, Migration, OPERATOR_SECRET, Obstacle, Owner, StateView, Step,
    Switch, holder, name, operator_container, parent_of_go, replicas, variable,
};

const TAILSCALE: &str = "https://controlplane.tailscale.com";

/// Plans to take everything over that the Go operator made and tailwharf serves.
#[must_use]
pub fn forward(inventory: &Inventory) -> Migration {
    let mut migration = Migration::default();
    let obstacles = &mut migration.obstacles;
    let sets = inventory.sets(obstacles);
    let namespace = || inventory.namespace.clone();
    let go = inventory.go_operator();
    if go.is_none() && sets.is_empty() {
        obstacles.push(Obstacle::NothingToTake {
            namespace: namespace(),
        });
        return migration;
    }
    let own = inventory.own_operator();
    if own.is_none_or(|own| own.spec.as_ref().and_then(|spec| spec.replicas) == Some(0)) {
        obstacles.push(Obstacle::NoOperator {
            namespace: namespace(),
        });
    }
    let unserved = inventory.unserved.iter().cloned();
    obstacles.extend(unserved.map(|object| Obstacle::Unserved { object }));

    let mut switches = Vec::new();
    for (parent, set) in &sets {
        if holder(set).is_none() {
            continue;
        }
        match inventory.owners.get(parent) {
            Some(owner) => switches.push(switch(inventory, parent, set, owner, obstacles)),
            None => obstacles.push(Obstacle::Orphan {
                set: name(&set.metadata),
                parent: parent.clone(),
            }),
        }
    }
    let device = operator_device(inventory, obstacles);
    let steps = &mut migration.steps;
    let copies = switches.iter().flat_map(|switch| &switch.copies);
    steps.extend(copies.chain(&device).cloned().map(Step::Prepare));
    steps.extend(pools(&switches));
    if let Some(go) = go {
        steps.push(Step::StopOperator {
            deployment: name(&go.metadata),
            replicas: replicas(go.spec.as_ref().and_then(|spec| spec.replicas), &go.metadata),
        });
    }
    steps.extend(switches.into_iter().map(Step::Switch));
    steps.extend(device.map(|copy| {
        Step::Await(Awaited {
            identity: names::OPERATOR_IDENTITY.to_owned(),
            device: Some(copy.device),
        })
    }));
    steps.extend(
        sets.iter()
            .map(|(parent, set)| Step::Remove(leftovers(inventory, parent, set))),
    );
    migration
}

/// What to wait for before anything stops: one step for each pool that gets devices.
fn pools(switches: &[Switch]) -> Vec<Step> {
    let mut pools: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for copy in switches.iter().flat_map(|switch| &switch.copies) {
        let pool = copy.labels.get(label::POOL).map_or(DEFAULT_POOL, String::as_str);
        pools.entry(pool).or_default().push(copy.to.clone());
    }
    let step = |(pool, secrets): (&str, _)| Step::AwaitPool {
        pool: pool.to_owned(),
        secrets,
    };
    pools.into_iter().map(step).collect()
}

fn switch(
    inventory: &Inventory,
    parent: &Parent,
    set: &StatefulSet,
    owner: &Owner,
    obstacles: &mut Vec<Obstacle>,
) -> Switch {
    let class = owner.class.as_deref().or_else(|| match parent.kind {
        ParentKind::Connector => None,
        _ => inventory.setting("PROXY_DEFAULT_CLASS"),
    });
    let pool = class.map_or_else(|| DEFAULT_POOL.to_owned(), names::pool_of_class);
    let replicas = replicas(set.spec.as_ref().and_then(|spec| spec.replicas), &set.metadata);
    let mut copies = Vec::new();
    let mut identities = Vec::new();
    for ordinal in 0..usize::try_from(replicas).unwrap_or_default() {
        let identity = identity(parent, &owner.uid, ordinal);
        let state = inventory.state(&format!("{}-{ordinal}", name(&set.metadata)));
        let copy =
            state.and_then(|state| copy(inventory, state, &identity, labels(parent, &pool), obstacles));
        identities.push(Awaited {
            identity,
            device: copy.as_ref().map(|copy| copy.device.clone()),
        });
        copies.extend(copy);
    }
    Switch {
        parent: parent.clone(),
        set: name(&set.metadata),
        replicas,
        copies,
        identities,
    }
}

/// The name of an object's Identity, as its own plan makes it.
pub(super) fn identity(parent: &Parent, uid: &str, ordinal: usize) -> String {
    match parent.kind {
        ParentKind::Connector => names::replica_name(&parent.name, uid, ordinal),
        _ => names::identity_name(&parent.name, uid),
    }
}

/// The copy of a state; `None` if there is no device yet, so that tailwharf makes one.
fn copy(
    inventory: &Inventory,
    state: &StateView,
    identity: &str,
    labels: BTreeMap<String, String>,
    obstacles: &mut Vec<Obstacle>,
) -> Option<Copy> {
    if let Some(message) = &state.error {
        obstacles.push(Obstacle::Unreadable {
            secret: state.name.clone(),
            message: message.clone(),
        });
        return None;
    }
    let device = state.device.clone()?;
    let plain = |url: &str| match url.trim_end_matches('/') {
        "" => TAILSCALE.to_owned(),
        url => url.to_owned(),
    };
    let (server, expected) = (
        plain(&state.control_url),
        plain(inventory.setting("OPERATOR_LOGIN_SERVER").unwrap_or_default()),
    );
    if server != expected && inventory.own_operator().is_some() {
        obstacles.push(Obstacle::OtherServer {
            device: device.fqdn.clone(),
            server,
            expected,
        });
    }
    Some(Copy {
        from: state.name.clone(),
        to: names::secret_name(identity),
        labels,
        device,
    })
}

/// The operator's own device.
fn operator_device(inventory: &Inventory, obstacles: &mut Vec<Obstacle>) -> Option<Copy> {
    let container = operator_container(inventory.go_operator()?)?;
    let (variable_name, default) = OPERATOR_SECRET;
    let secret = variable(container, variable_name).unwrap_or(default);
    let to = names::secret_name(names::OPERATOR_IDENTITY);
    if inventory.state(&to).is_some_and(|state| state.device.is_some()) {
        return None;
    }
    let parent = Parent {
        kind: ParentKind::Operator,
        namespace: inventory.namespace.clone(),
        name: "operator".to_owned(),
    };
    let pool = match inventory.setting("APISERVER_PROXY") {
        Some("true" | "noauth") => names::API_SERVER_PROXY_POOL,
        _ => DEFAULT_POOL,
    };
    let labels = labels(&parent, pool);
    copy(
        inventory,
        inventory.state(secret)?,
        names::OPERATOR_IDENTITY,
        labels,
        obstacles,
    )
}

fn labels(parent: &Parent, pool: &str) -> BTreeMap<String, String> {
    let mut labels = parent.labels();
    labels.insert(label::POOL.to_owned(), pool.to_owned());
    labels
}

/// What the Go operator made for an object that is tailwharf's by then.
fn leftovers(inventory: &Inventory, parent: &Parent, set: &StatefulSet) -> Leftovers {
    let services = inventory.services.iter().map(|service| &service.metadata);
    let states = inventory.states.iter();
    Leftovers {
        parent: parent.clone(),
        sets: vec![name(&set.metadata)],
        services: services
            .filter(|metadata| metadata.namespace.as_deref() == Some(&inventory.namespace))
            .filter(|metadata| parent_of_go(metadata).as_ref() == Some(parent))
            .map(name)
            .collect(),
        secrets: states
            .filter(|state| !state.is_ours && state.parent.as_ref() == Some(parent))
            .map(|state| state.name.clone())
            .collect(),
    }
}
