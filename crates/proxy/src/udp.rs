//! One UDP listener: each peer address is a flow with a socket of its own towards the backend, so that answers find
//! their way back. A flow ends when nothing was said for a while.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::backend::Backends;
use crate::carrier::{Carrier, Port};
use crate::limits::Permit;
use crate::sockets::Datagrams;

/// Longest datagram carried; a tailnet's packets have 1280 bytes.
const MAX_DATAGRAM: usize = 2048;

/// One listener's table of flows.
type Flows = Arc<Mutex<HashMap<SocketAddr, Flow>>>;

struct Flow {
    socket: Arc<UdpSocket>,
    backend: SocketAddr,
    activity: Arc<Activity>,
    /// Ends the task that carries answers.
    _end: DropGuard,
}

/// When a flow last carried something, in milliseconds since it began.
struct Activity {
    began: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
        })
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + std::time::Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// Serves a socket until `closed` or the identity's end; its flows end with it.
pub(crate) async fn serve<S: Datagrams>(
    socket: S,
    port: Port,
    mut backends: watch::Receiver<Arc<Backends>>,
    carrier: Arc<Carrier>,
    closed: CancellationToken,
) {
    let socket = Arc::new(socket);
    let flows = Flows::default();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            () = closed.cancelled() => return,
            () = carrier.end.cancelled() => return,
            changed = backends.changed() => {
                if changed.is_err() {
                    return;
                }
                let current = backends.borrow_and_update().clone();
                leave_old_backends(&flows, &current).await;
                continue;
            }
            received = socket.receive(&mut buffer) => received,
        };
        let Some((length, peer)) = received else { return };
        let known = lock(&flows)
            .get(&peer)
            .map(|flow| (flow.socket.clone(), flow.activity.clone()));
        let flow = match known {
            Some(flow) => flow,
            None => {
                let Some(permit) = carrier.room.enter() else {
                    carrier.metrics.flows_over_limit.increment();
                    continue;
                };
                let backends = backends.borrow().clone();
                match open(&flows, &socket, peer, &backends, &carrier, permit).await {
                    Ok(flow) => flow,
                    Err(error) => {
                        debug!(%peer, %port, %error, "no flow to a backend");
                        carrier.metrics.datagrams_dropped.increment();
                        continue;
                    }
                }
            }
        };
        pass_on(&flow.0, &flow.1, &buffer[..length], &carrier);
    }
}

/// Sends a datagram to the backend. As on any network, what cannot be sent at once is lost.
fn pass_on(socket: &UdpSocket, activity: &Activity, data: &[u8], carrier: &Carrier) {
    activity.touch();
    match socket.try_send(data) {
        Ok(sent) => {
            carrier
                .metrics
                .traffic
                .to_backend
                .fetch_add(sent as u64, Ordering::Relaxed);
        }
        Err(_) => carrier.metrics.datagrams_dropped.increment(),
    }
}

/// Opens a flow for `peer` and the task that carries its answers.
async fn open<S: Datagrams>(
    flows: &Flows,
    tailnet: &Arc<S>,
    peer: SocketAddr,
    backends: &Backends,
    carrier: &Arc<Carrier>,
    permit: Permit,
) -> io::Result<(Arc<UdpSocket>, Arc<Activity>)> {
    let backend = *backends
        .addresses(peer.ip())
        .await
        .map_err(io::Error::other)?
        .first()
        .ok_or_else(no_backend)?;
    let any: IpAddr = if backend.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(backend).await?;
    socket.writable().await?;
    let (socket, activity, end) = (Arc::new(socket), Activity::new(), CancellationToken::new());
    let flow = Flow {
        socket: socket.clone(),
        backend,
        activity: activity.clone(),
        _end: end.clone().drop_guard(),
    };
    lock(flows).insert(peer, flow);
    let answers = Answers {
        flows: Arc::downgrade(flows),
        tailnet: tailnet.clone(),
        peer,
        socket: socket.clone(),
        activity: activity.clone(),
        carrier: carrier.clone(),
        _permit: permit,
    };
    tokio::spawn(async move {
        tokio::select! {
            () = end.cancelled() => {}
            () = answers.carrier.end.cancelled() => {}
            () = answers.carry() => {}
        }
    });
    Ok((socket, activity))
}

fn no_backend() -> io::Error {
    io::ErrorKind::AddrNotAvailable.into()
}

/// The way back of one flow.
struct Answers<S> {
    flows: std::sync::Weak<Mutex<HashMap<SocketAddr, Flow>>>,
    tailnet: Arc<S>,
    peer: SocketAddr,
    socket: Arc<UdpSocket>,
    activity: Arc<Activity>,
    carrier: Arc<Carrier>,
    _permit: Permit,
}

impl<S: Datagrams> Answers<S> {
    /// Carries answers until the flow was silent for too long, then removes it.
    async fn carry(&self) {
        let _open = self.carrier.metrics.flows_open.enter();
        loop {
            let deadline = self.activity.last() + self.carrier.limits.udp_idle;
            match timeout_at(deadline, self.socket.readable()).await {
                Err(_) if Instant::now() >= self.activity.last() + self.carrier.limits.udp_idle => break,
                Err(_) => {}
                Ok(Err(_)) => break,
                Ok(Ok(())) => self.answer().await,
            }
        }
        if let Some(flows) = self.flows.upgrade() {
            lock(&flows).remove(&self.peer);
        }
    }

    async fn answer(&self) {
        let mut buffer = self.carrier.buffers.small();
        match self.socket.try_recv(&mut buffer) {
            // A full buffer is a datagram cut short, and larger than what a tailnet carries.
            Ok(length) if length == buffer.len() => self.carrier.metrics.datagrams_dropped.increment(),
            Ok(length) => {
                self.activity.touch();
                if self.tailnet.send(&buffer[..length], self.peer) {
                    self.carrier
                        .metrics
                        .traffic
                        .from_backend
                        .fetch_add(length as u64, Ordering::Relaxed);
                } else {
                    self.carrier.metrics.datagrams_dropped.increment();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The backend's port is closed at the moment; the next datagram tries again.
            Err(_) => self.carrier.metrics.datagrams_dropped.increment(),
        }
    }
}

/// Ends the flows whose backend is not one any more. Their peers open new ones with their next datagram.
async fn leave_old_backends(flows: &Flows, backends: &Backends) {
    let mut current = Vec::new();
    for family in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        current.extend(backends.addresses(family).await.unwrap_or_default());
    }
    lock(flows).retain(|_, flow| current.contains(&flow.backend));
}

fn lock(flows: &Flows) -> MutexGuard<'_, HashMap<SocketAddr, Flow>> {
    flows.lock().unwrap_or_else(PoisonError::into_inner)
}
