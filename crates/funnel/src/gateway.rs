//! The listeners of the gateway, and what happens to each connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tailwharf_coordinator::Operations;
use tailwharf_coordinator::config::{FunnelListener, FunnelSettings};
use tailwharf_coordinator::ops::FunnelRefusal;
use tailwharf_node::{DialError, TailnetNode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::hello::{HelloError, read_hello};
use crate::ingress::{self, IngressError};
use crate::places::Places;

/// How long a client may take to say for which name it comes.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// How long the node may take to take a connection.
const OPEN_TIME: Duration = Duration::from_secs(10);
/// How long a connection may be silent.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// How long to wait when the system gives no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long open connections may take to end.
const STOP_TIME: Duration = Duration::from_secs(1);
/// The alert `unrecognized_name` (RFC 6066), as a TLS 1.2 record: browsers say then that nobody of this name is here.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// Bytes that are moved at a time.
const CHUNK: usize = 16 * 1024;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: choose another `listen` in `[[funnel.listeners]]`")]
pub struct GatewayError {
    /// The address.
    addr: SocketAddr,
    /// Why.
    #[source]
    source: std::io::Error,
}

/// Why a connection was not passed on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("the client did not say for which name it comes in {} s", HELLO_TIME.as_secs())]
    Slow,
    #[error("{0}")]
    Refused(#[from] FunnelRefusal),
    #[error("the device cannot be reached")]
    Dial(#[from] DialError),
    #[error(transparent)]
    Ingress(#[from] IngressError),
    #[error("the device did not take the connection in {} s", OPEN_TIME.as_secs())]
    Silent,
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    addresses: Vec<SocketAddr>,
    tasks: TaskTracker,
}

/// What all connections share.
struct Shared {
    node: Arc<dyn TailnetNode>,
    directory: Operations,
    places: Places,
    stop: CancellationToken,
}

impl Gateway {
    /// Listens, and returns when the gateway answers.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn start(
        settings: &FunnelSettings,
        node: Arc<dyn TailnetNode>,
        directory: Operations,
        stop: CancellationToken,
    ) -> Result<Self, GatewayError> {
        let shared = Arc::new(Shared {
            node,
            directory,
            places: Places::new(settings.limits),
            stop,
        });
        let tasks = TaskTracker::new();
        let mut addresses = Vec::new();
        for listener in &settings.listeners {
            let failed = |source| GatewayError {
                addr: listener.listen,
                source,
            };
            let socket = TcpListener::bind(listener.listen).await.map_err(failed)?;
            let address = socket.local_addr().map_err(failed)?;
            tracing::info!(%address, port = port(listener, address), "the gateway listens");
            addresses.push(address);
            let serve = accept(shared.clone(), socket, port(listener, address), tasks.clone());
            tasks.spawn(serve);
        }
        Ok(Self { addresses, tasks })
    }

    /// Where it listens, in the order of the settings.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits, for a moment, until all connections have ended after a stop.
    pub async fn stopped(self) {
        self.tasks.close();
        if timeout(STOP_TIME, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                open = self.tasks.len(),
                "some public connections did not end in time"
            );
        }
    }
}

/// The port that the internet sees.
fn port(listener: &FunnelListener, address: SocketAddr) -> u16 {
    listener.port.unwrap_or_else(|| address.port())
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, port: u16, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        let (socket, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a public connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = shared.places.take(source.ip()) else {
            tracing::debug!(%source, "too many public connections");
            continue;
        };
        let shared = shared.clone();
        tasks.spawn(async move {
            let _place = place;
            let stop = shared.stop.clone();
            stop.run_until_cancelled(serve(&shared, socket, source, port))
                .await;
        });
    }
}

async fn serve(shared: &Shared, mut socket: TcpStream, source: SocketAddr, port: u16) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%source, %error, "small packets may be delayed");
    }
    match open(shared, &mut socket, source, port).await {
        Ok((mut stream, hello)) => {
            let (mut reader, mut writer) = socket.split();
            let (mut node_reader, mut node_writer) = tokio::io::split(&mut stream);
            let up = async {
                node_writer.write_all(&hello).await?;
                forward(&mut reader, &mut node_writer).await
            };
            let down = forward(&mut node_reader, &mut writer);
            if let Err(error) = tokio::try_join!(up, down) {
                tracing::debug!(%source, %error, "a public connection broke off");
            }
        }
        Err(failure) => {
            tracing::debug!(%source, %failure, "a public connection was not passed on");
            if !matches!(failure, Failure::Hello(HelloError::Io(_)) | Failure::Slow) {
                // Whoever is gone already misses nothing.
                let _ = timeout(HELLO_TIME, socket.write_all(&UNRECOGNIZED_NAME)).await;
            }
        }
    }
}

/// Finds the node, and opens the way to it. Also gives what the client sent already.
async fn open(
    shared: &Shared,
    socket: &mut TcpStream,
    source: SocketAddr,
    port: u16,
) -> Result<(tailwharf_node::TcpStream, Vec<u8>), Failure> {
    let (name, hello) = timeout(HELLO_TIME, read_hello(socket))
        .await
        .map_err(|_| Failure::Slow)??;
    let target = shared.directory.funnel_target(&name)?;
    let opening = async {
        let mut stream = shared.node.dial_tcp(target.peer_api).await?;
        ingress::open(&mut stream, source, &target.name, port).await?;
        Ok::<_, Failure>(stream)
    };
    let stream = timeout(OPEN_TIME, opening).await.map_err(|_| Failure::Silent)?;
    Ok((stream?, hello))
}

/// Moves bytes one way until the end, and passes the end on.
async fn forward<R, W>(from: &mut R, to: &mut W) -> std::io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = timeout(IDLE_TIME, from.read(&mut chunk))
            .await
            .map_err(|_| std::io::ErrorKind::TimedOut)??;
        if count == 0 {
            return to.shutdown().await;
        }
        timeout(IDLE_TIME, to.write_all(&chunk[..count]))
            .await
            .map_err(|_| std::io::ErrorKind::TimedOut)??;
    }
}
