//! The web server of a hosted identity, with its certificates.

use std::sync::Arc;

use tailwharf_kube_types::identity::web::{HTTPS_PORT, Web as Spec};
use tailwharf_kube_types::{ConditionType, IdentityReason, IdentitySpec, Step};
use tailwharf_node::{Node, NodeStatus, TailnetNode};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use super::{Job, Shared};
use crate::carrier::{Carrier, Port};
use crate::certificates::{Keeper, Wanted};
use crate::status::WebFacts;
use crate::web::WebServer;

/// What runs once an identity serves HTTP.
struct Running {
    server: WebServer<Arc<dyn TailnetNode>>,
    wanted: watch::Sender<Wanted>,
    step: watch::Receiver<Option<Step>>,
    funnel: bool,
    /// Ends the keeper of the certificates.
    _end: DropGuard,
}

/// The web server of an identity, while it has one.
pub(crate) struct WebHosting {
    name: Arc<str>,
    shared: Arc<Shared>,
    node: Node,
    carrier: Arc<Carrier>,
    fence: CancellationToken,
    /// The spec and the device's full name, as they are served.
    applied: Option<(Spec, Option<String>)>,
    running: Option<Box<Running>>,
}

impl WebHosting {
    /// For an identity on `node`; nothing is served yet.
    pub(super) fn new(job: &Job, node: Node, carrier: Arc<Carrier>) -> Self {
        Self {
            name: job.name.clone(),
            shared: job.shared.clone(),
            node,
            carrier,
            fence: job.fence.clone(),
            applied: None,
            running: None,
        }
    }

    /// Serves what the spec asks for, if it or the device's name has changed; `again`: in any case, since a port may have failed.
    pub(crate) fn apply(&mut self, spec: &IdentitySpec, again: bool) {
        let Some(web) = &spec.web else {
            self.applied = None;
            self.running = None;
            return;
        };
        let device = self
            .node
            .status()
            .borrow()
            .fqdn
            .as_ref()
            .map(|name| name.to_ascii_lowercase());
        let applied = self.applied.as_ref();
        if !again && applied.is_some_and(|(old, name)| old == web && *name == device) {
            return;
        }
        let wanted = Wanted::of(web, &spec.login_server);
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.start(wanted.clone()),
        };
        running
            .wanted
            .send_if_modified(|told| std::mem::replace(told, wanted.clone()) != wanted);
        running.funnel = web.funnel;
        running.server.apply(web, device.as_deref());
        self.running = Some(running);
        self.applied = Some((web.clone(), device));
    }

    fn start(&self, wanted: Wanted) -> Box<Running> {
        let sockets: Arc<dyn TailnetNode> = Arc::new(self.node.clone());
        let server = WebServer::new(sockets, self.carrier.clone());
        let (wanted, asked) = watch::channel(wanted);
        let (told, step) = watch::channel(None);
        let fence = self.fence.child_token();
        let keeper = Keeper {
            identity: self.name.clone(),
            cluster: self.shared.cluster.clone(),
            issuer: self.shared.issuer.clone(),
            node: self.node.clone(),
            served: server.certificates().clone(),
            fence: fence.clone(),
            wanted: asked,
            step: told,
        };
        tokio::spawn(keeper.run().in_current_span());
        Box::new(Running {
            server,
            wanted,
            step,
            funnel: false,
            _end: fence.drop_guard(),
        })
    }

    /// Ports that could not be opened, and why.
    pub(crate) fn failed(&self) -> Vec<(Port, String)> {
        let failed = self.running.iter().flat_map(|running| running.server.failed());
        failed.map(|(port, why)| (*port, why.clone())).collect()
    }

    /// Connects once to each backend of which nothing good is known.
    pub(crate) fn probe(&self) -> impl Future<Output = ()> + Send + use<> {
        let probe = self.running.as_ref().map(|running| running.server.probe());
        async move {
            if let Some(probe) = probe {
                probe.await;
            }
        }
    }

    /// Waits until the certificates have come further.
    pub(crate) async fn changed(&mut self) {
        let changed = match &mut self.running {
            Some(running) => running.step.changed().await.is_ok(),
            None => false,
        };
        // A keeper that has ended tells nothing any more.
        if !changed {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a backend cannot be reached.
    pub(crate) fn has_trouble(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.server.trouble().0.is_some())
    }

    /// What is known of it, if something is served.
    pub(crate) fn facts(&mut self) -> Option<WebFacts> {
        let running = self.running.as_mut()?;
        let (trouble, tried) = running.server.trouble();
        Some(WebFacts {
            trouble,
            tried,
            certificate: running.step.borrow_and_update().clone(),
            funnel: running.funnel.then(|| funnel(&self.node.status().borrow())),
        })
    }
}

/// Whether the internet reaches a device that is to be reached from there.
fn funnel(status: &NodeStatus) -> Step {
    let condition = ConditionType::FunnelReady;
    let may = status
        .funnel_ports
        .iter()
        .any(|ports| ports.contains(&HTTPS_PORT));
    match &status.fqdn {
        Some(name) if may => Step::done(
            condition,
            format!("The internet reaches the device at https://{name}."),
        ),
        _ => {
            let text = "The control server does not let the internet reach the device. Give its tag the attribute \"funnel\" in nodeAttrs of the policy, \
                        turn on HTTPS certificates, and use a control server with a gateway on port 443.";
            Step::blocked(condition, IdentityReason::FunnelUnavailable, text)
        }
    }
}
