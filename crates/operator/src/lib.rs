//! The operator: follows the cluster and brings it, and the tailnet, to what people asked for.
//!
//! Nothing is decided here. [`tailwharf_plan`] turns a snapshot into a plan; this crate takes the snapshot from its
//! caches and carries the plan out. Start reading at `controllers/service.rs`; then `world.rs` (caches, and which change
//! wakes what), `queue.rs`, and `execute.rs`, the only writer.
//!
//! Several replicas may run: one holds the Lease and writes, the others keep their caches warm.

mod cache;
mod certificates;
mod controllers;
pub mod doctor;
mod error;
mod events;
mod execute;
pub mod explain;
mod exposing;
mod http;
mod lease;
pub mod logs;
mod metrics;
pub mod migrate;
mod operator;
pub mod overview;
mod queue;
mod release;
mod world;

use std::net::SocketAddr;

use ::http::HeaderValue;
use ::http::header::USER_AGENT;
use anyhow::Context as _;
use tailwharf_control_api::{Client as ControlClient, ClientConfig};
use tokio_util::sync::CancellationToken;

pub use operator::{Operator, StartError};

/// What the binary resolved from its environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What plans depend on.
    pub plan: tailwharf_plan::Settings,
    /// The control server's API and the credentials for it.
    pub control: ClientConfig,
    /// Name of this replica: its pod.
    pub replica: String,
    /// Where `/healthz`, `/readyz` and `/metrics` are served, usually `[::]:9001`.
    pub health_listen: SocketAddr,
}

/// Runs the operator until `stop`.
///
/// # Errors
/// When the cluster or the credentials are not what it needs to start; see [`StartError`].
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let client = client().await?;
    let operator = operator(client, settings)?;
    operator.run(stop).await.context("the operator could not start")
}

/// Removes every device, and then what was made for it, as the operator that leaves the cluster. The operators of `deployment` are stopped first.
///
/// # Errors
/// When the cluster or the credentials are not what it needs, or when `stop` comes before all is removed.
pub async fn release_all(
    mut settings: Settings,
    deployment: &str,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (namespace, client) = (settings.plan.namespace.clone(), client().await?);
    release::stop_operators(&client, &namespace, deployment)
        .await
        .with_context(|| format!("Deployment {deployment} in namespace {namespace} could not be stopped"))?;
    settings.plan.releasing = true;
    let operator = operator(client, settings)?;
    operator.run(stop.clone()).await?;
    anyhow::ensure!(
        !stop.is_cancelled(),
        "it was stopped before all devices were removed"
    );
    Ok(())
}

/// A client of the cluster that this process runs in, or of the current kubeconfig.
async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer()
        .await
        .context("no Kubernetes cluster: run in a pod, or set KUBECONFIG to a kubeconfig file")?;
    let agent = HeaderValue::from_static(concat!("tailwharf-operator/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    kube::Client::try_from(config).context("the Kubernetes client could not be set up")
}

/// A client of the current kubeconfig's cluster, for commands of people.
async fn here() -> anyhow::Result<kube::Client> {
    let config = kube::Config::infer()
        .await
        .context("no Kubernetes cluster: set KUBECONFIG to a kubeconfig file")?;
    kube::Client::try_from(config).context("the Kubernetes client could not be set up")
}

fn operator(client: kube::Client, settings: Settings) -> anyhow::Result<Operator> {
    let control =
        ControlClient::new(settings.control.clone()).context("the control server's API cannot be used")?;
    Ok(Operator::new(client, std::sync::Arc::new(control), settings))
}
