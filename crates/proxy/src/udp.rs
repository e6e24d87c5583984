//! One UDP socket on one side of the proxy: each sender is a flow with a socket of its own on the other side, so that answers find their way back. A
//! flow ends when nothing was said for a while.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tailwharf_node::splice::Buffers;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::backend::{BackendError, Backends};
use crate::carrier::{Carrier, Health, Port};
use crate::limits::Permit;
use crate::sockets::{Datagrams, Flow, OpenFlow, Origin, Sent};

/// Longest datagram carried; a tailnet's packets have 1280 bytes.
const MAX_DATAGRAM: usize = 2048;

/// One listener's table of flows.
type Flows<F> = Arc<Mutex<HashMap<Origin, Entry<F>>>>;

struct Entry<F> {
    flow: Arc<F>,
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
pub(crate) async fn serve<S: Datagrams, O: OpenFlow>(
    socket: S,
    port: Port,
    mut backends: watch::Receiver<Arc<O>>,
    carrier: Arc<Carrier>,
    closed: CancellationToken,
) {
    let socket = Arc::new(socket);
    let flows = Flows::<O::Flow>::default();
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
                let current = current.current().await;
                // Peers of flows that end here open new ones with their next datagram.
                lock(&flows).retain(|_, entry| current.iter().any(|place| holds(place, &entry.backend)));
                continue;
            }
            received = socket.receive(&mut buffer) => received,
        };
        let Some((length, from)) = received else { return };
        let known = lock(&flows)
            .get(&from)
            .map(|entry| (entry.flow.clone(), entry.activity.clone()));
        let flow = match known {
            Some(flow) => flow,
            None => {
                let Some(permit) = carrier.room.enter() else {
                    carrier.metrics.flows_over_limit.increment();
                    continue;
                };
                let backends = backends.borrow().clone();
                match open(&flows, &socket, from, backends.as_ref(), &carrier, permit).await {
                    Ok(flow) => {
                        carrier.report(port, Health::Reachable);
                        flow
                    }
                    Err(error) => {
                        debug!(identity = %carrier.identity, ?from, %port, %error, "no flow to a backend");
                        carrier.metrics.datagrams_dropped.increment();
                        carrier.report(port, Health::Unreachable(error));
                        continue;
                    }
                }
            }
        };
        if pass_on(flow.0.as_ref(), &flow.1, &buffer[..length], &carrier) == Sent::Gone {
            lock(&flows).remove(&from);
        }
    }
}

/// Sends a datagram to the backend. As on any network, what cannot be sent at once is lost.
fn pass_on(flow: &impl Flow, activity: &Activity, data: &[u8], carrier: &Carrier) -> Sent {
    activity.touch();
    let sent = flow.send(data);
    let metrics = &carrier.metrics;
    match sent {
        Sent::Yes => {
            let length = data.len() as u64;
            metrics.traffic.to_backend.fetch_add(length, Ordering::Relaxed);
        }
        Sent::Lost | Sent::Gone => metrics.datagrams_dropped.increment(),
    }
    sent
}

/// Opens a flow and the task that carries its answers.
async fn open<S: Datagrams, O: OpenFlow>(
    flows: &Flows<O::Flow>,
    listener: &Arc<S>,
    from: Origin,
    backends: &O,
    carrier: &Arc<Carrier>,
    permit: Permit,
) -> Result<(Arc<O::Flow>, Arc<Activity>), BackendError> {
    let (flow, backend) = backends.open(from).await?;
    let (flow, activity, end) = (Arc::new(flow), Activity::new(), CancellationToken::new());
    let entry = Entry {
        flow: flow.clone(),
        backend,
        activity: activity.clone(),
        _end: end.clone().drop_guard(),
    };
    lock(flows).insert(from, entry);
    let answers = Answers {
        flows: Arc::downgrade(flows),
        listener: listener.clone(),
        from,
        flow: flow.clone(),
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
    Ok((flow, activity))
}

impl OpenFlow for Backends {
    type Flow = UdpSocket;

    async fn open(&self, from: Origin) -> Result<(UdpSocket, SocketAddr), BackendError> {
        let backend = *self
            .addresses(from.peer.ip())
            .await?
            .first()
            .ok_or(BackendError::None)?;
        let any: IpAddr = if backend.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let connected = async {
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
            socket.connect(backend).await?;
            socket.writable().await?;
            Ok::<_, io::Error>(socket)
        };
        let socket = connected
            .await
            .map_err(|error| BackendError::Refused(backend, error.kind()))?;
        Ok((socket, backend))
    }

    async fn current(&self) -> Vec<SocketAddr> {
        let mut current = Vec::new();
        for family in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            current.extend(self.addresses(family).await.unwrap_or_default());
        }
        current
    }
}

impl Flow for UdpSocket {
    fn send(&self, data: &[u8]) -> Sent {
        match self.try_send(data) {
            Ok(_) => Sent::Yes,
            Err(_) => Sent::Lost,
        }
    }

    async fn receive(&self, buffers: &Arc<Buffers>, take: impl FnOnce(&[u8]) + Send) -> io::Result<()> {
        loop {
            self.readable().await?;
            // Held while something is read only, so that silent flows share few.
            let mut buffer = buffers.small();
            match self.try_recv(&mut buffer) {
                // A full buffer is a datagram cut short, and larger than what a tailnet carries.
                Ok(length) if length == buffer.len() => {}
                Ok(length) => {
                    take(&buffer[..length]);
                    return Ok(());
                }
                // Nothing there after all, or the backend's port is closed at the moment; the next datagram tries again.
                Err(_) => {}
            }
        }
    }
}

/// The way back of one flow.
struct Answers<S, F> {
    flows: std::sync::Weak<Mutex<HashMap<Origin, Entry<F>>>>,
    listener: Arc<S>,
    from: Origin,
    flow: Arc<F>,
    activity: Arc<Activity>,
    carrier: Arc<Carrier>,
    _permit: Permit,
}

impl<S: Datagrams, F: Flow> Answers<S, F> {
    /// Carries answers until the flow was silent for too long, then removes it.
    async fn carry(&self) {
        let _open = self.carrier.metrics.flows_open.enter();
        let idle = self.carrier.limits.udp_idle;
        loop {
            let answer = self
                .flow
                .receive(&self.carrier.buffers, |answer| self.pass_back(answer));
            match timeout_at(self.activity.last() + idle, answer).await {
                Err(_) if Instant::now() >= self.activity.last() + idle => break,
                Ok(Err(_)) => break,
                Err(_) | Ok(Ok(())) => {}
            }
        }
        if let Some(flows) = self.flows.upgrade() {
            lock(&flows).remove(&self.from);
        }
    }

    fn pass_back(&self, answer: &[u8]) {
        self.activity.touch();
        let metrics = &self.carrier.metrics;
        if self.listener.send(answer, self.from) {
            let length = answer.len() as u64;
            metrics.traffic.from_backend.fetch_add(length, Ordering::Relaxed);
        } else {
            metrics.datagrams_dropped.increment();
        }
    }
}

/// Whether a flow goes to a place, whose port may stand for all.
fn holds(place: &SocketAddr, backend: &SocketAddr) -> bool {
    place.ip() == backend.ip() && (place.port() == backend.port() || place.port() == 0)
}

fn lock<F>(flows: &Flows<F>) -> MutexGuard<'_, HashMap<Origin, Entry<F>>> {
    flows.lock().unwrap_or_else(PoisonError::into_inner)
}
