//! Everything that one identity does on its node: what it serves to the tailnet, and what it reaches there for the cluster.

use std::sync::Arc;

use futures::future::join3;
use tailwharf_kube_types::{IdentitySpec, Refusal};
use tailwharf_node::{Node, TailnetNode};

use crate::carrier::{Carrier, Port};
use crate::egress::Outlets;
use crate::hosting::WebHosting;
use crate::listeners::Listeners;

/// What one identity does on its node.
pub(crate) struct Serving {
    listeners: Listeners<Arc<dyn TailnetNode>>,
    outlets: Outlets<Arc<dyn TailnetNode>>,
    /// What is served over HTTP.
    pub(crate) web: WebHosting,
}

impl Serving {
    /// Nothing yet.
    pub(crate) fn new(node: &Node, carrier: &Arc<Carrier>, web: WebHosting) -> Self {
        let node: Arc<dyn TailnetNode> = Arc::new(node.clone());
        Self {
            web,
            listeners: Listeners::new(node.clone(), carrier.clone()),
            outlets: Outlets::new(node.clone(), carrier.clone()),
        }
    }

    /// Opens, changes and closes what the spec asks for; connections go on.
    pub(crate) fn apply(&mut self, spec: &IdentitySpec) {
        self.listeners.apply(&spec.listeners);
        self.outlets.apply(spec.egress.as_ref());
        self.web.apply(spec, true);
    }

    /// What could not be opened, and why.
    pub(crate) fn failed(&self) -> Vec<(Port, String)> {
        let listeners = self.listeners.failed().iter();
        let outlets = self.outlets.failed().iter();
        listeners
            .map(|(port, error)| (*port, error.to_string()))
            .chain(outlets.map(|(port, error)| (*port, error.to_string())))
            .chain(self.web.failed())
            .collect()
    }

    /// Pods that were refused lately.
    pub(crate) fn refused(&self) -> Vec<Refusal> {
        self.outlets.refused()
    }

    /// Tries what connections are passed on to and is not known to answer.
    pub(crate) fn probe(&self) -> impl Future<Output = ()> + Send + use<> {
        let all = join3(self.listeners.probe(), self.outlets.probe(), self.web.probe());
        async {
            all.await;
        }
    }
}
