//! One TCP listener: accepts on one side of the proxy, connects on the other, copies.

use std::net::SocketAddr;
use std::sync::Arc;

use tailwharf_node::splice::splice;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::carrier::{Carrier, Health, Port};
use crate::limits::Permit;
use crate::sockets::{Accept, Dial};

/// Serves a listener until `closed` or the identity's end. Connections go on when only the listener is closed.
pub(crate) async fn serve<L: Accept, D: Dial>(
    mut listener: L,
    port: Port,
    backends: watch::Receiver<Arc<D>>,
    carrier: Arc<Carrier>,
    closed: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Some((stream, peer)) = accepted else { return };
        carrier.metrics.connections.increment();
        let Some(permit) = carrier.room.enter() else {
            carrier.metrics.connections_over_limit.increment();
            L::refuse(stream);
            continue;
        };
        let backends = backends.borrow().clone();
        let (backends, port) = match L::asked(&stream) {
            Some(number) => (backends.at(number), Port { number, ..port }),
            None => (backends, port),
        };
        let revoked = listener.revoked(peer);
        let carried = connection::<L, D>(stream, peer, port, backends, carrier.clone(), permit);
        tokio::spawn(async move {
            tokio::select! {
                () = revoked => {}
                () = carried => {}
            }
        });
    }
}

async fn connection<L: Accept, D: Dial>(
    stream: L::Stream,
    peer: SocketAddr,
    port: Port,
    backends: Arc<D>,
    carrier: Arc<Carrier>,
    _permit: Permit,
) {
    let _open = carrier.metrics.connections_open.enter();
    let carry = async {
        let mut backend = match backends.dial(peer.ip()).await {
            Ok(backend) => backend,
            Err(error) => {
                debug!(identity = %carrier.identity, %peer, %port, %error, "no backend took the connection");
                carrier.metrics.connections_without_backend.increment();
                carrier.report(port, Health::Unreachable(error));
                L::refuse(stream);
                return;
            }
        };
        let header = backends.header(peer);
        drop(backends);
        carrier.report(port, Health::Reachable);
        if let Some(header) = header
            && let Err(error) = backend.write_all(&header).await
        {
            debug!(identity = %carrier.identity, %peer, %port, %error, "the connection broke off");
            return;
        }
        let traffic = &carrier.metrics.traffic;
        if let Err(error) = splice(stream, backend, &carrier.buffers, traffic, carrier.limits.idle()).await {
            debug!(identity = %carrier.identity, %peer, %port, %error, "the connection broke off");
        }
    };
    tokio::select! {
        () = carrier.end.cancelled() => {}
        () = carry => {}
    }
}
