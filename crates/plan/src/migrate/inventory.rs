//! What a migration finds in the operator's namespace. It holds no secret, so that it can be kept and printed.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Secret, Service};
use tailwharf_kube_types::contract::label;
use tailwharf_kube_types::{Identity, Parent, StateSecret};

use super::{
    Device, Obstacle, is_go_operator, is_own_operator, name, operator_container, parent_of_go, variable,
};

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The operator's namespace.
    pub namespace: String,
    /// Its Deployments.
    pub deployments: Vec<Deployment>,
    /// Its StatefulSets.
    pub stateful_sets: Vec<StatefulSet>,
    /// Its Services.
    pub services: Vec<Service>,
    /// Its Secrets that hold the state of a device.
    pub states: Vec<StateView>,
    /// Its Identities.
    pub identities: Vec<Identity>,
    /// People's objects that have, or are to have, devices.
    pub owners: BTreeMap<Parent, Owner>,
    /// Objects that only the Go operator serves, as kind and name.
    pub unserved: Vec<String>,
}

/// An object of people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its UID.
    pub uid: String,
    /// The ProxyClass that it names.
    pub class: Option<String>,
}

/// What a Secret tells of the device whose state it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateView {
    /// Name of the Secret.
    pub name: String,
    /// For whom it was made, by its labels.
    pub parent: Option<Parent>,
    /// Whether tailwharf made it.
    pub is_ours: bool,
    /// The device, once there is one.
    pub device: Option<Device>,
    /// Where the device is registered; empty for Tailscale's service.
    pub control_url: String,
    /// Why it cannot be read.
    pub error: Option<String>,
}

impl StateView {
    /// Reads a Secret; `None` if it holds no device's state.
    #[must_use]
    pub fn from_secret(secret: &Secret) -> Option<Self> {
        let labels = secret.metadata.labels.clone().unwrap_or_default();
        let view = Self {
            name: name(&secret.metadata),
            parent: Parent::from_labels(&labels),
            is_ours: labels.contains_key(label::POOL),
            ..Self::default()
        };
        let state = match StateSecret::from_data(secret.data.as_ref()?) {
            Ok(state) => state,
            Err(error) => {
                return view.parent.is_some().then(|| Self {
                    error: Some(error.to_string()),
                    ..view
                });
            }
        };
        let profile = state.profile?;
        let id = state.device_id.unwrap_or(profile.node_id);
        let fqdn = state.device_fqdn.unwrap_or(profile.hostname);
        Some(Self {
            device: (!id.is_empty()).then_some(Device { id, fqdn }),
            control_url: profile.control_url,
            ..view
        })
    }
}

impl Inventory {
    pub(super) fn go_operator(&self) -> Option<&Deployment> {
        self.deployments
            .iter()
            .find(|deployment| is_go_operator(deployment))
    }

    pub(super) fn own_operator(&self) -> Option<&Deployment> {
        self.deployments
            .iter()
            .find(|deployment| is_own_operator(deployment))
    }

    /// A variable of tailwharf's operator.
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        let container = operator_container(self.own_operator()?)?;
        variable(container, name).filter(|value| !value.is_empty())
    }

    /// The StatefulSets of the Go operator, by the object for which they were made; obstacles where they are not one for one.
    pub(super) fn sets(&self, obstacles: &mut Vec<Obstacle>) -> BTreeMap<Parent, &StatefulSet> {
        let mut sets: BTreeMap<Parent, Vec<&StatefulSet>> = BTreeMap::new();
        for set in &self.stateful_sets {
            if let Some(parent) = parent_of_go(&set.metadata) {
                sets.entry(parent).or_default().push(set);
            }
        }
        let mut only = BTreeMap::new();
        for (parent, found) in sets {
            match found.as_slice() {
                [set] => {
                    only.insert(parent, *set);
                }
                several => obstacles.push(Obstacle::SeveralSets {
                    parent,
                    sets: several.iter().map(|set| name(&set.metadata)).collect(),
                }),
            }
        }
        only
    }

    pub(super) fn state(&self, name: &str) -> Option<&StateView> {
        self.states.iter().find(|state| state.name == name)
    }
}
