//! The coordinator and what it shows the internet: a certificate of its own address by ACME (`address`), and the public gateway (Funnel), which brings
//! connections to nodes of the tailnet that the policy lets be reached so.
//!
//! ```text
//! browser ──TLS──► gateway ──server name──► coordinator: which node, and may it
//!                     │
//!                     └──tailnet──► peer API of the node, POST /v0/ingress, 101, then the browser's bytes as they came
//! ```
//!
//! The gateway sees no plain text: TLS ends at the node. It is a device of the tailnet of its own kind: it sees the nodes with the attribute `funnel`
//! alone, and nobody reaches it.
#![forbid(unsafe_code)]

mod address;
mod gateway;
mod hello;
mod ingress;
mod places;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tailwharf_coordinator::ops::GATEWAY_NAME;
use tailwharf_coordinator::{Config, Coordinator, Handle};
use tailwharf_node::{AuthKey, FileStore, Host, HostConfig, Node, NodeConfig, TailnetNode as _};
use tokio_util::sync::CancellationToken;

pub use self::address::AddressError;
pub use self::gateway::{Gateway, GatewayError};
pub use self::hello::{HelloError, read_hello};

/// The file in the data directory with the keys of the gateway's device.
const STATE_FILE: &str = "funnel.state";

/// Runs a coordinator, and its gateway if the configuration has one, until `stop` is cancelled.
///
/// # Errors
/// When one of them does not start.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let funnel = config.funnel.clone();
    let (server_url, state) = (config.server_url.clone(), config.data_dir.join(STATE_FILE));
    if let Some(settings) = &config.acme {
        address::certify(&config, settings, stop.clone()).await?;
    }
    let handle = Coordinator::start(config, stop.clone()).await?;
    let gateway = match funnel.listeners.is_empty() {
        true => None,
        false => {
            let node = join(&handle, server_url, &state).await?;
            let gateway = Gateway::start(&funnel, Arc::new(node), handle.operations().clone(), stop.clone());
            Some(gateway.await.context("the gateway of `funnel` does not start")?)
        }
    };
    stop.cancelled().await;
    if let Some(gateway) = gateway {
        gateway.stopped().await;
    }
    handle.stop().await;
    Ok(())
}

/// Starts the device as which the gateway is on the tailnet. It joins in the background; if somebody deleted it, with the next start.
///
/// # Errors
/// When its state cannot be read, or no key can be made.
pub async fn join(handle: &Handle, server_url: url::Url, state: &Path) -> anyhow::Result<Node> {
    let key = handle.operations().funnel_gateway_key().await?;
    let config = NodeConfig {
        auth_key: AuthKey::new(key.secret.reveal()),
        app: "tailwharf-funnel".to_owned(),
        ..NodeConfig::new(server_url.clone(), GATEWAY_NAME)
    };
    let store = FileStore::new(state.to_owned(), &server_url, GATEWAY_NAME);
    let host = Host::new(&HostConfig::default())?;
    let node = host.start(config, Arc::new(store)).await?;
    tracing::info!(phase = ?node.status().borrow().phase, "the gateway joins the tailnet");
    Ok(node)
}
