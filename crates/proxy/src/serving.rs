//! Everything that one identity does on its node: what it serves to the tailnet, and what it reaches there for the cluster.

use std::sync::Arc;

use futures::future::join;
use tailwharf_kube_types::IdentitySpec;
use tailwharf_node::TailnetNode;

use crate::carrier::{Carrier, Port};
use crate::egress::Outlets;
use crate::listeners::Listeners;

/// What one identity does on its node.
pub(crate) struct Serving {
    listeners: Listeners<Arc<dyn TailnetNode>>,
    outlets: Outlets<Arc<dyn TailnetNode>>,
}

impl Serving {
    /// Nothing yet.
    pub(crate) fn new(node: &Arc<dyn TailnetNode>, carrier: &Arc<Carrier>) -> Self {
        Self {
            listeners: Listeners::new(node.clone(), carrier.clone()),
            outlets: Outlets::new(node.clone(), carrier.clone()),
        }
    }

    /// Opens, changes and closes what the spec asks for; connections go on.
    pub(crate) fn apply(&mut self, spec: &IdentitySpec) {
        self.listeners.apply(&spec.listeners);
        self.outlets.apply(spec.egress.as_ref());
    }

    /// What could not be opened, and why.
    pub(crate) fn failed(&self) -> Vec<(Port, String)> {
        let listeners = self.listeners.failed().iter();
        let outlets = self.outlets.failed().iter();
        listeners
            .map(|(port, error)| (*port, error.to_string()))
            .chain(outlets.map(|(port, error)| (*port, error.to_string())))
            .collect()
    }

    /// Tries what connections are passed on to and is not known to answer.
    pub(crate) fn probe(&self) -> impl Future<Output = ()> + Send + use<> {
        let both = join(self.listeners.probe(), self.outlets.probe());
        async {
            both.await;
        }
    }
}
