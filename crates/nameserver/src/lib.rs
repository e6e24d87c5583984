//! DNS for the cluster: a pod that answers for names of the tailnet, from records that the operator writes into a ConfigMap.
//!
//! `zone.rs` says what is answered; this file has the sockets, `watch.rs` follows the file of records.
#![forbid(unsafe_code)]

mod watch;
mod zone;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch as channel};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use zone::Zones;

/// The longest query that is read; real ones have less than 512 bytes.
const MAX_QUERY: usize = 4096;
/// TCP connections at a time.
const CONNECTIONS: usize = 256;
/// How long a TCP connection may wait for its next query.
const IDLE: Duration = Duration::from_secs(10);
/// Answers given at a stretch before other tasks have their turn.
const BATCH: usize = 64;
/// Space for queries that wait.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What the nameserver has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to answer, over UDP and TCP; port 1053 by default.
    pub listen: SocketAddr,
    /// The file of records.
    pub records: PathBuf,
}

/// Answers until `stop`.
///
/// # Errors
/// When the address cannot be used.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let Settings { listen, records } = settings;
    let in_use = || format!("cannot listen on {listen}; choose another address with --listen");
    let tcp = TcpListener::bind(listen).await.with_context(in_use)?;
    // With port 0, both get the one that was free.
    let at = tcp.local_addr().with_context(in_use)?;
    let (following, zones) = watch::follow(records);
    let mut tasks = JoinSet::new();
    tasks.spawn(following);
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(4) {
        let socket = udp_socket(at).with_context(in_use)?;
        tasks.spawn(answer_datagrams(socket, zones.clone()));
    }
    tasks.spawn(answer_connections(tcp, zones));
    info!(address = %at, "the nameserver answers");
    stop.cancelled().await;
    tasks.shutdown().await;
    Ok(())
}

/// One of several sockets among which the kernel divides the clients.
fn udp_socket(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // The kernel may allow less.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

async fn answer_datagrams(socket: UdpSocket, zones: channel::Receiver<Arc<Zones>>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        if let Err(error) = socket.readable().await {
            warn!(%error, "the socket for queries failed");
            return;
        }
        let known = zones.borrow().clone();
        for _ in 0..BATCH {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, client)) => {
                    if let Some(answer) = known.respond(&buffer[..length], true) {
                        // A client whose answer is lost asks again.
                        let _ = socket.try_send_to(&answer, client);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // That an earlier answer found no socket at its client.
                Err(_) => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn answer_connections(listener: TcpListener, zones: channel::Receiver<Arc<Zones>>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            continue;
        };
        let zones = zones.clone();
        tokio::spawn(async move {
            let _permit = permit;
            // Whatever goes wrong here is the client's doing, and ends its connection.
            let _ = answer_connection(stream, zones).await;
        });
    }
}

async fn answer_connection(mut stream: TcpStream, zones: channel::Receiver<Arc<Zones>>) -> io::Result<()> {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        let Some(query) = buffer.get_mut(..length) else {
            return Ok(());
        };
        timeout(IDLE, stream.read_exact(query)).await??;
        let known = zones.borrow().clone();
        let Some(answer) = known.respond(query, false) else {
            return Ok(());
        };
        let mut framed = Vec::with_capacity(answer.len() + 2);
        framed.extend_from_slice(
            &u16::try_from(answer.len())
                .map_err(io::Error::other)?
                .to_be_bytes(),
        );
        framed.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
