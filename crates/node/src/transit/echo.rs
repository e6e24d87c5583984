//! Pings of peers to addresses of networks, by sockets that need no right where the system allows them (Linux `icmp(7)`, `ping_group_range`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tailwharf_node_core::Echo;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::Carrier;
use super::room::Place;

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of the header of an ICMP echo.
const HEADER: usize = 8;

/// Pings in the name of a peer, and answers it when there was an answer.
pub(super) async fn answer(
    carrier: Arc<Carrier>,
    echo: Echo,
    target: IpAddr,
    _place: (OwnedSemaphorePermit, Place),
) {
    match timeout(TIMEOUT, ping(target, echo.payload())).await {
        Ok(Ok(())) => carrier.engine.with_core(|core, now| core.answer_echo(&echo, now)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => tell_once(),
        Ok(Err(error)) => tracing::debug!(%target, %error, "a routed ping failed"),
        Err(_) => tracing::debug!(%target, "a routed ping was not answered"),
    }
}

fn tell_once() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::info!(
            "pings of peers to routed networks are not answered: the system lets this process open no ICMP sockets (sysctl net.ipv4.ping_group_range)"
        );
    }
}

/// Returns when the target has answered.
async fn ping(target: IpAddr, payload: &[u8]) -> io::Result<()> {
    let (domain, protocol, kind, reply) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // For the runtime it is a socket of datagrams like any other.
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(SocketAddr::new(target, 0)).await?;
    // The kernel fills in identifier and checksum.
    let mut request = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    request.extend_from_slice(payload);
    socket.send(&request).await?;
    let mut answer = vec![0; request.len()];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= HEADER && answer[0] == reply && answer[HEADER..length] == request[HEADER..] {
            return Ok(());
        }
    }
}
