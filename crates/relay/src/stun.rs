//! Tells nodes from which address their packets come.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tailwharf_wire::stun;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::metrics::ShellCounters;

/// More than any request that a node sends.
const MAX_REQUEST_LEN: usize = 512;
/// How long to wait when the system has no means to receive.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Answers binding requests until `stop`.
pub(crate) async fn serve(socket: UdpSocket, counters: Arc<ShellCounters>, stop: CancellationToken) {
    let mut packet = [0; MAX_REQUEST_LEN];
    let mut answer = Vec::new();
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut packet) => received,
        };
        let (len, from) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot receive STUN requests");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        match stun::parse_request(&packet[..len]) {
            Ok(tx_id) => {
                counters.stun_answered.add();
                answer.clear();
                stun::encode_response(tx_id, seen(from), &mut answer);
                // A full send buffer drops the answer, as any router on the way might. The node asks again.
                let _ = socket.try_send_to(&answer, from);
            }
            Err(error) => {
                counters.stun_ignored.add();
                tracing::trace!(%from, %error, "ignored a UDP packet");
            }
        }
    }
}

/// The address without the disguise that IPv4 has on a socket for both families.
fn seen(from: SocketAddr) -> SocketAddr {
    SocketAddr::new(from.ip().to_canonical(), from.port())
}
