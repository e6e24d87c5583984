//! The protocol of recorders: `HEAD /v2/record` asks whether it is spoken, `POST /v2/record` brings a recording. The answer to that begins at
//! once and is a line of JSON for what has been stored so far, also while nothing comes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt, Stream, StreamExt};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::store::{MAX_HEADER, Store, StoreError, Writing};

/// How often something is acknowledged while nothing comes.
const IDLE_ACK: Duration = Duration::from_secs(5);
/// Acknowledgements that wait for the sender.
const QUEUE: usize = 16;
/// What one sender may send ahead.
const WINDOW: u32 = 256 * 1024;

type Piece = Result<Frame<Bytes>, Infallible>;
type Answer = Either<StreamBody<mpsc::Receiver<Piece>>, Empty<Bytes>>;

/// Takes recordings from connections until there are no more, or `stop`.
pub async fn serve<S>(connections: impl Stream<Item = S>, store: Store, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let room = Arc::new(Semaphore::new(store.limits().concurrent));
    let mut connections = std::pin::pin!(connections);
    loop {
        let stream = tokio::select! {
            next = connections.next() => next,
            () = stop.cancelled() => None,
        };
        let Some(stream) = stream else { return };
        tokio::spawn(converse(stream, store.clone(), room.clone(), stop.clone()));
    }
}

async fn converse<S>(stream: S, store: Store, room: Arc<Semaphore>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let answer = answer(request, &store, &room);
        async move { Ok::<_, Infallible>(answer) }
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .max_concurrent_streams(8)
        .keep_alive_interval(Duration::from_secs(30))
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => if let Err(error) = ended {
            tracing::debug!(%error, "a connection has ended");
        },
        () = stop.cancelled() => {}
    }
}

fn answer(request: Request<Incoming>, store: &Store, room: &Arc<Semaphore>) -> Response<Answer> {
    let only = |status: StatusCode| {
        let mut response = Response::new(Either::Right(Empty::new()));
        *response.status_mut() = status;
        response
    };
    match (request.method(), request.uri().path()) {
        (&Method::HEAD, "/v2/record") => only(StatusCode::OK),
        (&Method::POST, "/v2/record") => {
            let Ok(place) = room.clone().try_acquire_owned() else {
                return only(StatusCode::SERVICE_UNAVAILABLE);
            };
            let (acks, told) = mpsc::channel(QUEUE);
            let store = store.clone();
            tokio::spawn(async move {
                let _place = place;
                take(request.into_body(), store, acks).await;
            });
            let mut response = Response::new(Either::Left(StreamBody::new(told)));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        (_, "/v2/record") => only(StatusCode::METHOD_NOT_ALLOWED),
        _ => only(StatusCode::NOT_FOUND),
    }
}

/// A recording as far as it has come.
struct Coming {
    store: Store,
    first_line: Vec<u8>,
    /// There is one once the first line is whole.
    writing: Option<Writing>,
}

impl Coming {
    fn keep(&mut self, data: &[u8]) -> Result<(), StoreError> {
        if let Some(writing) = &mut self.writing {
            return writing.write(data);
        }
        self.first_line.extend_from_slice(data);
        match self.first_line.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut begun = self.store.begin(&self.first_line[..=end])?;
                begun.write(&self.first_line[end + 1..])?;
                self.writing = Some(begun);
                Ok(())
            }
            None if self.first_line.len() > MAX_HEADER => {
                Err(StoreError::Header("its first line has no end".to_owned()))
            }
            None => Ok(()),
        }
    }

    /// Sees to it that what came stays; `complete`: nothing is missing.
    fn end(&mut self, complete: bool) -> Result<(), StoreError> {
        let Some(writing) = &self.writing else {
            return Ok(());
        };
        writing.sync()?;
        if complete { writing.seal() } else { Ok(()) }
    }

    fn written(&self) -> u64 {
        self.writing.as_ref().map_or(0, Writing::written)
    }

    /// Does something that waits for the disk. `None`: it could not be done at all.
    async fn on_disk(
        mut self,
        work: impl FnOnce(&mut Self) -> Result<(), StoreError> + Send + 'static,
    ) -> Option<(Self, Result<(), StoreError>)> {
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&mut self);
            (self, done)
        });
        done.await.ok()
    }
}

/// Stores one recording.
async fn take(mut body: Incoming, store: Store, mut acks: mpsc::Sender<Piece>) {
    let mut coming = Coming {
        store,
        first_line: Vec::new(),
        writing: None,
    };
    let mut complete = false;
    loop {
        let mut data = Bytes::new();
        match timeout(IDLE_ACK, body.frame()).await {
            Err(_) => {}
            Ok(None) => {
                complete = true;
                break;
            }
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "a recording broke off");
                break;
            }
            Ok(Some(Ok(frame))) => data = frame.into_data().unwrap_or_default(),
        }
        let Some((kept, stored)) = coming.on_disk(move |coming| coming.keep(&data)).await else {
            return;
        };
        coming = kept;
        if let Err(error) = stored {
            tracing::warn!(%error, "a recording is not stored");
            tell(&mut acks, &json!({"error": error.to_string()})).await;
            return;
        }
        if !tell(&mut acks, &json!({"ack": coming.written()})).await {
            tracing::warn!("whoever sent a recording is gone");
            break;
        }
    }
    if let Some((coming, synced)) = coming.on_disk(move |coming| coming.end(complete)).await {
        let last = match synced {
            Ok(()) => json!({"ack": coming.written()}),
            Err(error) => json!({"error": error.to_string()}),
        };
        tell(&mut acks, &last).await;
    }
}

/// False when nobody listens.
async fn tell(acks: &mut mpsc::Sender<Piece>, what: &serde_json::Value) -> bool {
    acks.send(Ok(Frame::data(Bytes::from(format!("{what}\n")))))
        .await
        .is_ok()
}
