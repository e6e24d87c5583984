//! The administrator's socket.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::http;
use crate::site::Site;

/// Connections that are served at one time.
const CONNECTIONS: usize = 32;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;
/// How long to wait when the system gives no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the socket. One that a dead coordinator left behind is replaced.
///
/// # Errors
/// When the file cannot be made, or another coordinator answers there.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another coordinator uses this data directory",
        ));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file takes over the mode that the socket has when it is bound, so that there is no moment in which others may open it.
    File::from(OwnedFd::from(socket.try_clone()?)).set_permissions(Permissions::from_mode(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

/// Serves the administrator's calls until `stop`. Each connection is one of `tasks`.
pub(crate) async fn serve(
    listener: UnixListener,
    site: Arc<Site>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let router = api::socket_router(site);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let next = async {
            // Further clients wait in the backlog. The semaphore is never closed.
            let permit = room.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => return,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "a connection to the administrator's socket could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (stop, router) = (stop.clone(), router.clone());
        tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = http::serve_connection(&stop, socket, router).await {
                tracing::debug!(%error, "connection to the administrator's socket ended");
            }
        });
    }
}
