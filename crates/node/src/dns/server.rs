//! Taking queries: from datagrams, and from streams (RFC 7766).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{DATAGRAM, Resolver, Transport};

/// A stream without a query for this long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// Streams at the same time; more are closed.
const MAX_STREAMS: usize = 128;

/// Datagrams whose answers are under way; more are dropped, and asked again.
const MAX_DATAGRAMS: usize = 512;

impl Resolver {
    /// Answers the queries that come to a socket, until it fails.
    pub async fn serve_udp(&self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // Linux reports here that the client of an earlier answer is gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => {
                    tracing::warn!(%error, "the DNS socket cannot be read");
                    return;
                }
            };
            while tasks.try_join_next().is_some() {}
            if tasks.len() >= MAX_DATAGRAMS {
                continue;
            }
            let (resolver, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            tasks.spawn(async move {
                if let Some(answer) = resolver.answer(&query, Transport::Udp).await
                    && let Err(error) = socket.send_to(&answer, from).await
                {
                    tracing::debug!(%from, %error, "an answer was not sent");
                }
            });
        }
    }

    /// Answers the queries of the connections to a listener.
    pub async fn serve_tcp(&self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_STREAMS));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, from)) => {
                    let Ok(place) = places.clone().try_acquire_owned() else {
                        continue;
                    };
                    let resolver = self.clone();
                    tasks.spawn(async move {
                        let _place = place;
                        if let Err(error) = resolver.serve_stream(stream).await {
                            tracing::debug!(%from, %error, "DNS connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a DNS connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Answers the queries of one connection, one after the other, until it ends or is idle.
    ///
    /// # Errors
    /// When the connection breaks, or its other side is silent inside of a query.
    pub async fn serve_stream(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        loop {
            let length = match timeout(IDLE, stream.read_u16()).await {
                Ok(Ok(length)) => length,
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            let mut query = vec![0; length.into()];
            timeout(IDLE, stream.read_exact(&mut query)).await??;
            let Some(answer) = self.answer(&query, Transport::Stream).await else {
                return Ok(());
            };
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
    }
}

/// Writes a message with its length before it.
pub(super) async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the message is too long for DNS over TCP",
        )
    })?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}
