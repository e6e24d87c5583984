//! A TCP connection, plain or under TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tailwharf_tls::ClientTls;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use crate::mark;

/// One address gets this long before the next one of the same name is tried beside it (RFC 8305 calls it the
/// connection attempt delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A connection to a server.
#[derive(Debug)]
pub(crate) enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<ClientTls<TcpStream>>),
}

/// Runs the TLS handshake on a new connection if asked to.
pub(crate) async fn secure(
    tcp: TcpStream,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
) -> io::Result<MaybeTls> {
    tcp.set_nodelay(true)?;
    match tls {
        None => Ok(MaybeTls::Plain(tcp)),
        Some((config, name)) => {
            let stream = tailwharf_tls::connect(tcp, config, name).await?;
            Ok(MaybeTls::Tls(Box::new(stream)))
        }
    }
}

/// Resolves `host`, a name or an address.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let addrs: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if addrs.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{host} has no address"),
        ));
    }
    Ok(addrs)
}

/// Connects to the first of `addrs` that answers.
pub(crate) async fn connect_first(addrs: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = tokio::task::JoinSet::new();
    for (position, addr) in (0_u32..).zip(addrs) {
        attempts.spawn(async move {
            tokio::time::sleep(ATTEMPT_DELAY * position).await;
            let socket = match addr {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            mark::apply(&socket)?;
            socket.connect(addr).await
        });
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(error) => last = io::Error::other(error),
        }
    }
    Err(last)
}

impl AsyncRead for MaybeTls {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
