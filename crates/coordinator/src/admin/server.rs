//! The administrator's socket.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::ops::Operations;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

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

/// Serves the administrator's calls until `stop`.
pub(crate) async fn serve(listener: UnixListener, operations: Operations, stop: CancellationToken) {
    let served =
        axum::serve(listener, api::socket_router(operations)).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the administrator's socket ended");
    }
}
