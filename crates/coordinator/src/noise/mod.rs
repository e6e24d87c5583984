//! ts2021: Noise connections and the HTTP/2 inside.

mod stream;

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand::rngs::OsRng;
use tailwharf_wire::{
    key::ChallengePrivate,
    noise::{self, Accepted, NoiseError},
    tailcfg::{CapabilityVersion, EarlyNoise},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

pub use self::stream::NoiseStream;
use crate::machine::Control;

/// The oldest client that is served: 1.80.
const MIN_VERSION: CapabilityVersion = CapabilityVersion(113);
/// Requests that one connection may have open: the map stream and some short ones.
const STREAMS: u32 = 16;
/// What a client may send ahead, in bytes: requests are short.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// How long a client may take to begin with HTTP/2 once the handshake is done.
const PREFACE_TIME: Duration = Duration::from_secs(10);
/// Length of what each HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE_LEN: usize = 24;
/// How often a silent connection is probed, and how long the answer may take: what a node that vanished costs.
const PROBE_INTERVAL: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a Noise connection ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the handshake failed: {0}")]
    Handshake(#[from] NoiseError),
    #[error("the client has capability version {0}, older than {MIN_VERSION}")]
    TooOld(u16),
    #[error("the client said nothing for {} seconds", PREFACE_TIME.as_secs())]
    Silent,
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("HTTP/2 failed")]
    Http(#[from] hyper::Error),
}

/// Finishes the handshake that `initiation` began and serves the connection until it ends. `established` is called once the client has proved to
/// hold its key.
pub(crate) async fn serve<I>(
    control: Arc<Control>,
    mut io: I,
    initiation: &[u8],
    established: impl FnOnce(),
) -> Result<(), ConnectionError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let accepted = match accept(&control, initiation) {
        Ok(accepted) => accepted,
        Err(error) => {
            io.write_all(&noise::error_frame(&refusal(&error))).await?;
            io.shutdown().await?;
            return Err(error);
        }
    };
    io.write_all(&accepted.response).await?;
    let machine = accepted.machine;
    let mut stream = NoiseStream::new(io, accepted.session);
    stream.write_all(&early_payload()).await?;
    timeout(PREFACE_TIME, stream.await_bytes(PREFACE_LEN))
        .await
        .map_err(|_| ConnectionError::Silent)??;
    established();

    let stop = control.stop.clone();
    let service = service_fn(move |request| {
        let control = control.clone();
        async move { Ok::<_, Infallible>(control.serve(machine, request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PROBE_INTERVAL)
        .keep_alive_timeout(PROBE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

fn accept(control: &Control, initiation: &[u8]) -> Result<Accepted, ConnectionError> {
    let accepted = noise::respond(&control.server_key, initiation, &mut OsRng)?;
    if u32::from(accepted.version) < MIN_VERSION.0 {
        return Err(ConnectionError::TooOld(accepted.version));
    }
    Ok(accepted)
}

/// What the client shows to its user.
fn refusal(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TooOld(_) => {
            "this client is too old for the control server: update it to 1.80 or later".to_owned()
        }
        ConnectionError::Handshake(_)
        | ConnectionError::Silent
        | ConnectionError::Io(_)
        | ConnectionError::Http(_) => {
            "the handshake failed: check that the client has the key of this control server".to_owned()
        }
    }
}

/// A challenge that binds node keys to this connection. Registration here rests on machine keys, so its private half is not kept.
fn early_payload() -> Vec<u8> {
    noise::encode_early(&EarlyNoise {
        node_key_challenge: ChallengePrivate::generate(&mut OsRng).public(),
    })
}

#[cfg(test)]
mod tests;
