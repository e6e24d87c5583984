//! Which node answers for a VIP service, where several offer to.
//!
//! A client finds a service at the node whose allowed addresses hold those of the service. Clients are sent to a host in their own home region where
//! there is one, else to the host of all. A host keeps its clients as long as it can be relied on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use rpds::RedBlackTreeMapSync as Table;
use tailwharf_wire::tailcfg::{NodeId, RegionId};

use crate::{
    model::{Node, ServiceName},
    world::World,
};

/// The hosts of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Who answers where no host is in the client's own region.
    pub global: Option<NodeId>,
    /// Who answers for the clients of a region, where this is somebody else.
    pub regional: BTreeMap<RegionId, NodeId>,
    /// All who may answer, whether they can at this moment or not, in the order of their stable ids.
    pub candidates: Vec<NodeId>,
    /// The service's addresses as prefixes.
    prefixes: Vec<IpNet>,
}

impl Choice {
    /// Who answers for clients of a region.
    pub fn host_for(&self, region: Option<RegionId>) -> Option<NodeId> {
        region
            .and_then(|region| self.regional.get(&region).copied())
            .or(self.global)
    }

    fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.global.into_iter().chain(self.regional.values().copied())
    }
}

/// The hosts of all services.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    choices: Table<ServiceName, Arc<Choice>>,
    /// The services for which a node answers, for somebody at least.
    serving: Table<NodeId, Arc<BTreeSet<ServiceName>>>,
}

impl Hosts {
    pub(crate) fn choice(&self, name: &ServiceName) -> Option<&Arc<Choice>> {
        self.choices.get(name)
    }

    /// The addresses of services that a node answers for, as those in a region see it.
    pub(crate) fn prefixes_of(&self, id: NodeId, region: Option<RegionId>) -> Vec<IpNet> {
        let served = self
            .choices_of(id)
            .filter(|choice| choice.host_for(region) == Some(id));
        served
            .flat_map(|choice| choice.prefixes.iter().copied())
            .collect()
    }

    /// The regions in which a node answers for other services than elsewhere.
    pub(crate) fn regions_of(&self, id: NodeId) -> impl Iterator<Item = RegionId> {
        let regions: BTreeSet<RegionId> = self
            .choices_of(id)
            .flat_map(|choice| choice.regional.keys().copied())
            .collect();
        regions.into_iter()
    }

    fn choices_of(&self, id: NodeId) -> impl Iterator<Item = &Arc<Choice>> {
        self.serving
            .get(&id)
            .into_iter()
            .flat_map(|services| services.iter())
            .filter_map(|name| self.choices.get(name))
    }

    /// Whether another node could take over a service of this one.
    pub(crate) fn has_rival(&self, id: NodeId) -> bool {
        self.choices_of(id).any(|choice| choice.candidates.len() > 1)
    }

    /// The nodes of which each may answer for a service that another may answer for, too.
    pub(crate) fn contested(&self) -> impl Iterator<Item = NodeId> {
        let contested = self.choices.values().filter(|choice| choice.candidates.len() > 1);
        contested.flat_map(|choice| choice.candidates.iter().copied())
    }

    /// Chooses the hosts of a service anew. The nodes concerned, if anything differs.
    pub(crate) fn settle(&mut self, world: &World, name: &ServiceName) -> Option<BTreeSet<NodeId>> {
        let former = self.choices.get(name).cloned().unwrap_or_default();
        let next = choose(world, name, &former);
        if next == *former {
            return None;
        }
        let concerned = former.nodes().chain(next.nodes()).collect();
        for id in former.nodes() {
            self.serve(id, |services| {
                services.remove(name);
            });
        }
        for id in next.nodes() {
            self.serve(id, |services| {
                services.insert(name.clone());
            });
        }
        if next == Choice::default() {
            self.choices.remove_mut(name);
        } else {
            self.choices.insert_mut(name.clone(), Arc::new(next));
        }
        Some(concerned)
    }

    fn serve(&mut self, id: NodeId, edit: impl FnOnce(&mut BTreeSet<ServiceName>)) {
        let mut services = self.serving.get(&id).cloned().unwrap_or_default();
        edit(Arc::make_mut(&mut services));
        if services.is_empty() {
            self.serving.remove_mut(&id);
        } else {
            self.serving.insert_mut(id, services);
        }
    }
}

/// The nodes that may answer for a service, in the order of their stable ids.
fn candidates<'a>(world: &'a World, name: &ServiceName) -> Vec<&'a Arc<Node>> {
    let Some(service) = world.service(name) else {
        return Vec::new();
    };
    let mut candidates: Vec<_> = world
        .nodes_offering(name)
        .filter(|node| world.is_member(node.id) && world.is_service_host_approved(service, node))
        .collect();
    candidates.sort_by(|a, b| a.stable_id.0.cmp(&b.stable_id.0));
    candidates
}

fn choose(world: &World, name: &ServiceName, former: &Choice) -> Choice {
    let Some(service) = world.service(name) else {
        return Choice::default();
    };
    let candidates = candidates(world, name);
    let dependable: Vec<_> = candidates
        .iter()
        .filter(|node| world.is_dependable(node.id))
        .collect();
    let is_dependable = |id: &NodeId| dependable.iter().any(|node| node.id == *id);
    let is_candidate = |id: &NodeId| candidates.iter().any(|node| node.id == *id);
    let global = former
        .global
        .filter(is_dependable)
        .or_else(|| dependable.first().map(|node| node.id))
        .or_else(|| former.global.filter(is_candidate));
    let mut regional: BTreeMap<RegionId, NodeId> = BTreeMap::new();
    for node in &dependable {
        if let Some(region) = node.home_region() {
            let kept = former.regional.get(&region).filter(|id| {
                dependable
                    .iter()
                    .any(|node| node.id == **id && node.home_region() == Some(region))
            });
            regional
                .entry(region)
                .or_insert_with(|| kept.copied().unwrap_or(node.id));
        }
    }
    // Where the host of all is in the region, it serves the region, too.
    if let Some(region) = dependable
        .iter()
        .find(|node| Some(node.id) == global)
        .and_then(|node| node.home_region())
    {
        regional.remove(&region);
    }
    Choice {
        candidates: candidates.iter().map(|node| node.id).collect(),
        prefixes: service.prefixes().to_vec(),
        global,
        regional,
    }
}

#[cfg(test)]
mod tests;
