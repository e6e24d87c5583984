//! Connections that carry one request at a time, kept for the next one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::UpstreamError;
use super::dial::Dialer;
use crate::body::Outgoing;

/// Connections in use at once; who comes later waits.
const MAX_BUSY: usize = 1024;
/// Connections kept when nobody uses them.
const MAX_IDLE: usize = 128;
/// An idle connection is given up after this: sooner than the API server does, which closes it after 90 s.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long a used connection may take to be ready for the next request.
const SETTLE_TIME: Duration = Duration::from_millis(500);
/// Most bytes that a connection reads ahead.
const READ_AHEAD: usize = 128 * 1024;
/// Most headers of an answer.
const MAX_HEADERS: usize = 256;

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Outgoing>,
    since: Instant,
}

/// Connections of one request each.
#[derive(Debug)]
pub(super) struct Pool {
    dialer: Arc<Dialer>,
    idle: Mutex<Vec<Idle>>,
    room: Arc<Semaphore>,
}

/// A connection on loan. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Loan {
    sender: SendRequest<Outgoing>,
    pool: Arc<Pool>,
    _room: OwnedSemaphorePermit,
}

impl Loan {
    /// Keeps the connection for the next request.
    pub(super) fn give_back(self) {
        let mut idle = self.pool.lock();
        if idle.len() < MAX_IDLE && !self.sender.is_closed() {
            idle.push(Idle {
                sender: self.sender,
                since: Instant::now(),
            });
        }
    }
}

impl Pool {
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        Self {
            dialer,
            idle: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_BUSY)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up what was idle for too long.
    pub(super) fn sweep(&self) {
        self.lock()
            .retain(|idle| idle.since.elapsed() < IDLE_TIME && !idle.sender.is_closed());
    }

    /// Sends a request. One that a kept connection did not take goes on another.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Loan), UpstreamError> {
        let Ok(room) = self.room.clone().acquire_owned().await else {
            return Err(UpstreamError::TimedOut(Duration::ZERO));
        };
        loop {
            let (mut sender, kept) = match self.kept().await {
                Some(sender) => (sender, true),
                None => (self.open().await?, false),
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let loan = Loan {
                        sender,
                        pool: self.clone(),
                        _room: room,
                    };
                    return Ok((response, loan));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if kept => request = unsent,
                    _ => return Err(UpstreamError::Broken(error.into_error())),
                },
            }
        }
    }

    /// The connection that was used last, if it still stands.
    async fn kept(&self) -> Option<SendRequest<Outgoing>> {
        loop {
            let mut idle = self.lock().pop()?;
            if idle.since.elapsed() >= IDLE_TIME {
                continue;
            }
            if idle.sender.is_ready() {
                return Some(idle.sender);
            }
            if let Ok(Ok(())) = timeout(SETTLE_TIME, idle.sender.ready()).await {
                return Some(idle.sender);
            }
        }
    }

    async fn open(&self) -> Result<SendRequest<Outgoing>, UpstreamError> {
        let stream = self.dialer.connect(|tls| tls.http1).await?;
        let (sender, connection) = builder()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the API server has ended");
            }
        });
        Ok(sender)
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_HEADERS).max_buf_size(READ_AHEAD);
    builder
}

/// Sends a request for an upgrade on a new connection, which belongs to the answer.
pub(super) async fn upgrade(
    dialer: &Dialer,
    request: Request<Outgoing>,
) -> Result<Response<Incoming>, UpstreamError> {
    let stream = dialer.connect(|tls| tls.http1).await?;
    let (mut sender, connection) = builder()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(UpstreamError::Broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to the API server has ended");
        }
    });
    sender.send_request(request).await.map_err(UpstreamError::Broken)
}
