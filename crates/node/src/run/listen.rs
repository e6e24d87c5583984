//! Listening on this machine: connections in tasks of their own, within the limit of the run.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::Shared;

/// The pause after a failure to accept that passes, such as no free file.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on `addr`, and serves each connection by `serve`. `what` names the listener in logs and errors.
pub(super) async fn serve_tcp<F>(
    tasks: &mut JoinSet<()>,
    addr: SocketAddr,
    what: &'static str,
    shared: Shared,
    serve: impl Fn(TcpStream, Shared) -> F + Send + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("listening on {addr} as {what}"))?;
    tracing::info!(addr = %listener.local_addr()?, "{what}");
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (client, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(slot) = slot(&shared, from) else { continue };
            let serving = serve(client, shared.clone());
            connections.spawn(async move {
                let _slot = slot;
                if let Err(error) = serving.await {
                    tracing::debug!(%from, error = &*error, "{what}: a connection ended");
                }
            });
        }
    });
    Ok(())
}

/// A place for one more connection, if there is one.
pub(super) fn slot(shared: &Shared, from: SocketAddr) -> Option<OwnedSemaphorePermit> {
    let slot = shared.connections.clone().try_acquire_owned().ok();
    if slot.is_none() {
        tracing::warn!(%from, "too many connections: one more was closed");
    }
    slot
}
