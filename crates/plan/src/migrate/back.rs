//! From tailwharf to the Go operator.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use tailwharf_kube_types::contract::MAX_IDENTITY_NAME;
use tailwharf_kube_types::{Identity, Parent, ParentKind, names};

use super::{
    Copy, Device, Inventory, Migration, OPERATOR_SECRET, Obstacle, Return, Step, name, operator_container,
    parent_of_go, replicas, variable,
};

/// Plans to give every device to the Go operator: those that it had, in what it made for them as far as that is still there, and those that tailwharf
/// made since.
#[must_use]
pub fn back(inventory: &Inventory) -> Migration {
    let mut migration = Migration::default();
    let obstacles = &mut migration.obstacles;
    let sets = inventory.sets(obstacles);
    let Some(go) = inventory.go_operator() else {
        obstacles.push(Obstacle::NoGoOperator {
            namespace: inventory.namespace.clone(),
        });
        return migration;
    };
    let mut hosted: BTreeMap<Parent, Vec<&Identity>> = BTreeMap::new();
    for identity in &inventory.identities {
        let labels = identity.metadata.labels.clone().unwrap_or_default();
        if let Some(parent) = Parent::from_labels(&labels) {
            hosted.entry(parent).or_default().push(identity);
        }
    }
    let mut returns = Vec::new();
    let mut awaited = Vec::new();
    for (parent, identities) in &hosted {
        if parent.kind == ParentKind::Operator {
            let secret = operator_container(go)
                .and_then(|container| variable(container, OPERATOR_SECRET.0))
                .unwrap_or(OPERATOR_SECRET.1);
            returns.push(operator_device(inventory, parent, identities, secret));
            continue;
        }
        let back = give_back(inventory, parent, identities, sets.get(parent).copied());
        awaited.extend(back.copies.iter().map(|copy| Step::AwaitProxy {
            secret: copy.to.clone(),
        }));
        returns.push(back);
    }
    let steps = &mut migration.steps;
    if let Some(own) = inventory.own_operator() {
        steps.push(Step::StopOperator {
            deployment: name(&own.metadata),
            replicas: replicas(own.spec.as_ref().and_then(|spec| spec.replicas), &own.metadata),
        });
    }
    steps.extend(returns.into_iter().map(Step::Return));
    steps.push(Step::StartOperator {
        deployment: name(&go.metadata),
        replicas: replicas(go.spec.as_ref().and_then(|spec| spec.replicas), &go.metadata),
    });
    steps.extend(awaited);
    migration
}

fn give_back(
    inventory: &Inventory,
    parent: &Parent,
    identities: &[&Identity],
    set: Option<&StatefulSet>,
) -> Return {
    let services = inventory.services.iter().map(|service| &service.metadata);
    let headless = services
        .filter(|metadata| parent_of_go(metadata).as_ref() == Some(parent))
        .map(name)
        .next();
    let owner = inventory.owners.get(parent);
    let uid = owner.map(|owner| owner.uid.clone()).unwrap_or_default();
    // A name that the Go operator could have made; its own has one generated character more or less.
    let base = set
        .map(|set| name(&set.metadata))
        .or_else(|| headless.clone())
        .unwrap_or_else(|| go_name(parent, &uid));
    let copies = identities.iter().filter_map(|identity| {
        let from = names::secret_name(&name(&identity.metadata));
        let device = inventory.state(&from)?.device.clone()?;
        let ordinal = match parent.kind {
            ParentKind::Connector => ordinal(&name(&identity.metadata))?,
            _ => 0,
        };
        Some(Copy {
            from,
            to: format!("{base}-{ordinal}"),
            labels: parent.labels(),
            device,
        })
    });
    Return {
        parent: parent.clone(),
        copies: copies.collect(),
        identities: identities
            .iter()
            .map(|identity| name(&identity.metadata))
            .collect(),
        service: (headless.is_none() && owner.is_some()).then(|| (base.clone(), uid)),
        set: set.map(|set| {
            let pods = replicas(set.spec.as_ref().and_then(|spec| spec.replicas), &set.metadata);
            (name(&set.metadata), pods)
        }),
    }
}

fn operator_device(inventory: &Inventory, parent: &Parent, identities: &[&Identity], secret: &str) -> Return {
    let copies = identities.iter().filter_map(|identity| {
        let from = names::secret_name(&name(&identity.metadata));
        let device: Device = inventory.state(&from)?.device.clone()?;
        Some(Copy {
            from,
            to: secret.to_owned(),
            labels: BTreeMap::new(),
            device,
        })
    });
    Return {
        parent: parent.clone(),
        copies: copies.collect(),
        identities: identities
            .iter()
            .map(|identity| name(&identity.metadata))
            .collect(),
        service: None,
        set: None,
    }
}

/// A name for what the Go operator makes anew: another than that of the Identity, whose Secret goes.
fn go_name(parent: &Parent, uid: &str) -> String {
    let identity = names::identity_name(&parent.name, uid);
    let (base, suffix) = identity.rsplit_once('-').unwrap_or((&identity, ""));
    let mut base: String = base.to_owned();
    base.truncate(MAX_IDENTITY_NAME - suffix.len() - 2);
    format!("{}-g{suffix}", base.trim_end_matches('-'))
}

/// The ordinal at the end of the name of one of several Identities.
fn ordinal(identity: &str) -> Option<usize> {
    identity.rsplit_once('-')?.1.parse().ok()
}
