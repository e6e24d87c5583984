//! A hosted device, as a service that runs on it sees it.

use std::sync::Arc;

use rustls::server::ResolvesServerCert;
use tailwharf_node::Node;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Job, Shared};
use crate::certificates::{Keeper, Wanted};
use crate::web::Certificates;

/// A device that this pod hosts.
pub struct Device {
    identity: Arc<str>,
    shared: Arc<Shared>,
    node: Node,
    control_server: String,
    fence: CancellationToken,
}

impl Device {
    pub(super) fn new(job: &Job, node: Node, control_server: &str) -> Self {
        Self {
            identity: job.name.clone(),
            shared: job.shared.clone(),
            node,
            control_server: control_server.to_owned(),
            fence: job.fence.clone(),
        }
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Orders a certificate for the device's name, renews it ahead of its end, and keeps it in the device's Secret, until `end`: from the ACME server with
    /// this directory, or else the control server's own, or Let's Encrypt's. Without a certificate yet, handshakes fail.
    #[must_use]
    pub fn keep_certificate(
        &self,
        directory: Option<String>,
        end: CancellationToken,
    ) -> Arc<dyn ResolvesServerCert> {
        let served = Arc::new(Certificates::default());
        let fence = self.fence.child_token();
        let (wanted, asked) = watch::channel(Wanted::device(directory, &self.control_server));
        let keeper = Keeper {
            identity: self.identity.clone(),
            cluster: self.shared.cluster.clone(),
            issuer: self.shared.issuer.clone(),
            node: self.node.clone(),
            served: served.clone(),
            fence: fence.clone(),
            wanted: asked,
            step: watch::channel(None).0,
        };
        let keeping = async move {
            // What is wanted stays the same.
            let _wanted = wanted;
            let mut keeping = std::pin::pin!(keeper.run());
            tokio::select! {
                () = keeping.as_mut() => return,
                () = end.cancelled() => fence.cancel(),
            }
            keeping.await;
        };
        tokio::spawn(keeping.in_current_span());
        served
    }
}
