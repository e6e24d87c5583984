//! UDP between peers and networks: each pair of addresses is a flow with a socket of its own, so that answers find back.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tailwharf_node_core::Datagram;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::room::Place;
use super::{Carrier, count};

/// A flow without a datagram for this long is forgotten (RFC 4787 asks for at least two minutes).
const IDLE: Duration = Duration::from_secs(120);
/// The same for questions to name servers, which are many and short.
const DNS_IDLE: Duration = Duration::from_secs(10);
const DNS_PORT: u16 = 53;
/// Datagrams of one flow that wait for its socket; later ones are dropped, as on any network.
const QUEUE: usize = 64;

/// Both ends of a flow: the peer, and the address that it named.
type Ends = (SocketAddr, SocketAddr);

/// The flows of one node.
#[derive(Debug, Default)]
pub(super) struct Flows {
    by_ends: HashMap<Ends, mpsc::Sender<Vec<u8>>>,
    tasks: JoinSet<Ends>,
}

impl Flows {
    /// Passes a datagram on, through a new flow if there is none.
    pub(super) fn take(&mut self, carrier: &Arc<Carrier>, datagram: Datagram) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(ends) = ended
                && self.by_ends.get(&ends).is_some_and(mpsc::Sender::is_closed)
            {
                self.by_ends.remove(&ends);
            }
        }
        let ends = (datagram.from, datagram.to);
        if let Some(flow) = self.by_ends.get(&ends).filter(|flow| !flow.is_closed()) {
            let _ = flow.try_send(datagram.payload);
            return;
        }
        let Some(target) = carrier.target(datagram.to) else {
            return;
        };
        let Some(place) = carrier.enter(datagram.from.ip()) else {
            return;
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let _ = sender.try_send(datagram.payload);
        self.by_ends.insert(ends, sender);
        count(&carrier.counters.flows);
        let carrier = carrier.clone();
        self.tasks.spawn(async move {
            if let Err(error) = carry(&carrier, ends, target, receiver, place).await {
                tracing::debug!(from = %ends.0, %target, %error, "a routed UDP flow ended");
            }
            ends
        });
    }
}

/// Carries one flow until it is silent.
async fn carry(
    carrier: &Carrier,
    (peer, named): Ends,
    target: SocketAddr,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    _place: Place,
) -> io::Result<()> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(target).await?;
    let idle = if target.port() == DNS_PORT { DNS_IDLE } else { IDLE };
    let traffic = &carrier.counters.traffic;
    let mut silent_at = Instant::now() + idle;
    loop {
        tokio::select! {
            datagram = datagrams.recv() => {
                let Some(datagram) = datagram else { return Ok(()) };
                // What is refused or does not fit is lost; the next one may arrive.
                if let Ok(sent) = socket.send(&datagram).await {
                    traffic.to_backend.fetch_add(sent as u64, Ordering::Relaxed);
                }
            }
            ready = socket.readable() => {
                ready?;
                pass_back(carrier, &socket, named, peer);
            }
            () = sleep_until(silent_at) => return Ok(()),
        }
        silent_at = Instant::now() + idle;
    }
}

/// Passes back what a socket has.
fn pass_back(carrier: &Carrier, socket: &UdpSocket, named: SocketAddr, peer: SocketAddr) {
    let mut buffer = carrier.buffers.large();
    // A full buffer is a datagram cut short.
    while let Ok(length) = socket.try_recv(&mut buffer)
        && length < buffer.len()
    {
        let sent = carrier
            .engine
            .with_core(|core, now| core.send_transit(named, peer, &buffer[..length], now));
        match sent {
            Ok(()) => {
                let traffic = &carrier.counters.traffic;
                traffic.from_backend.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) => tracing::debug!(%peer, %error, "an answer was not passed back"),
        }
    }
}
