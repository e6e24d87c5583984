//! The domains that peers reach through this node: what it answers peers leads to the routes that it offers.

use std::sync::{Arc, Mutex};

use tailwharf_node_core::AppConnector;
use tokio::sync::watch;

use crate::control::Announced;
use crate::engine::Engine;
use crate::sync::lock;

/// What this node knows of its domains, and where it tells of it.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    connector: Arc<Mutex<AppConnector>>,
    announced: watch::Sender<Announced>,
}

impl Connector {
    pub(crate) fn new(announced: watch::Sender<Announced>) -> Self {
        Self {
            connector: Arc::default(),
            announced,
        }
    }

    /// Keeps to what the control server says of the domains, for as long as this is polled.
    pub(crate) async fn follow(self, engine: Arc<Engine>) {
        let mut netmaps = engine.watch_netmap();
        loop {
            if let Some(own) = netmaps.borrow_and_update().self_node() {
                lock(&self.connector).configure(own);
            }
            self.announce();
            if netmaps.changed().await.is_err() {
                return;
            }
        }
    }

    /// Learns from an answer that a peer gets.
    pub(crate) fn observe(&self, answer: &[u8]) {
        if self.announced.borrow().prefs.app_connector && lock(&self.connector).observe(answer) {
            self.announce();
        }
    }

    fn announce(&self) {
        let routes = lock(&self.connector).routes();
        self.announced.send_if_modified(|announced| {
            let changed = announced.app_routes != routes;
            announced.app_routes = routes;
            // Nobody is told of what is not offered.
            changed && announced.prefs.app_connector
        });
    }
}
