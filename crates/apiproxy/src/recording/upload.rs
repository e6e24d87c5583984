//! A recording on its way to a recorder: `POST /v2/record` over HTTP/2 without TLS, which the tailnet encrypts. The recorder acknowledges what
//! it has stored.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::SinkExt;
use futures::channel::mpsc;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::server::Tailnet;

/// Time to reach one recorder, and to find one that works.
const DIAL: Duration = Duration::from_secs(5);
const ALL: Duration = Duration::from_secs(30);
/// Time for the answer to a question.
const ANSWER: Duration = Duration::from_secs(10);
/// A recorder that acknowledges nothing for so long is gone: it does so even when nothing comes.
const SILENCE: Duration = Duration::from_secs(30);
/// Time for the last acknowledgement.
const FAREWELL: Duration = Duration::from_secs(30);
/// Pieces of a recording that wait for the recorder.
const QUEUE: usize = 32;
/// Longest acknowledgement.
const MAX_ACK: usize = 64 * 1024;

type Piece = Result<Frame<Bytes>, std::convert::Infallible>;
type Body = Either<StreamBody<mpsc::Receiver<Piece>>, Empty<Bytes>>;

/// A recording cannot be made, or not be finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("no recorder is named")]
    None,
    #[error("no recorder answered within {seconds} s", seconds = ALL.as_secs())]
    TimedOut,
    #[error("the recorder {0} cannot be reached: {1}")]
    Unreachable(SocketAddr, String),
    #[error("the recorder {0} does not speak version 2 of the protocol (status {1})")]
    Version(SocketAddr, u16),
    #[error("the recorder {0} answered with status {1}")]
    Refused(SocketAddr, u16),
    #[error("the recorder {0} says: {1}")]
    Failed(SocketAddr, String),
    #[error("the recorder {0} has ended the recording")]
    Ended(SocketAddr),
    #[error("the recorder {0} has acknowledged nothing for {seconds} s", seconds = SILENCE.as_secs())]
    Silent(SocketAddr),
}

/// What a recorder says now and then.
#[derive(Debug, Deserialize)]
struct Ack {
    #[serde(default)]
    ack: u64,
    #[serde(default)]
    error: String,
}

/// A recording that a recorder takes.
pub(crate) struct Upload {
    recorder: SocketAddr,
    pieces: mpsc::Sender<Piece>,
    sent: u64,
    acked: watch::Receiver<Result<u64, UploadError>>,
    _connection: DropGuard,
}

/// Begins a recording with its first line, at the first of `recorders` that stores it.
///
/// # Errors
/// What the last of them said.
pub(crate) async fn begin(
    tailnet: &Arc<dyn Tailnet>,
    recorders: &[SocketAddr],
    header: Vec<u8>,
) -> Result<Upload, UploadError> {
    let header = Bytes::from(header);
    let any = async {
        let mut last = UploadError::None;
        for recorder in recorders {
            match at(tailnet, *recorder, header.clone()).await {
                Ok(upload) => return Ok(upload),
                Err(error) => {
                    tracing::warn!(%error, "a recorder does not record");
                    last = error;
                }
            }
        }
        Err(last)
    };
    timeout(ALL, any).await.unwrap_or(Err(UploadError::TimedOut))
}

async fn at(tailnet: &Arc<dyn Tailnet>, recorder: SocketAddr, header: Bytes) -> Result<Upload, UploadError> {
    let unreachable = |why: String| UploadError::Unreachable(recorder, why);
    let stream = match timeout(DIAL, tailnet.dial(recorder)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => {
            return Err(unreachable(format!(
                "it did not answer within {} s",
                DIAL.as_secs()
            )));
        }
    };
    let (mut sender, connection) = http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    let end = CancellationToken::new();
    let ended = end.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = connection => {}
            () = ended.cancelled() => {}
        }
    });
    let guard = end.drop_guard();
    let probe = ask(&mut sender, recorder, Method::HEAD, Either::Right(Empty::new())).await?;
    if probe.status() != StatusCode::OK {
        return Err(UploadError::Version(recorder, probe.status().as_u16()));
    }
    let (mut pieces, body) = mpsc::channel(QUEUE);
    let sent = header.len() as u64;
    // The queue is empty: nothing waits here.
    if pieces.send(Ok(Frame::data(header))).await.is_err() {
        return Err(UploadError::Ended(recorder));
    }
    let answer = ask(
        &mut sender,
        recorder,
        Method::POST,
        Either::Left(StreamBody::new(body)),
    )
    .await?;
    if answer.status() != StatusCode::OK {
        return Err(UploadError::Refused(recorder, answer.status().as_u16()));
    }
    let (acks, acked) = watch::channel(Ok(0));
    tokio::spawn(listen(recorder, answer.into_body(), acks));
    let mut upload = Upload {
        recorder,
        pieces,
        sent,
        acked,
        _connection: guard,
    };
    upload.stored(sent, SILENCE).await?;
    Ok(upload)
}

async fn ask(
    sender: &mut SendRequest<Body>,
    recorder: SocketAddr,
    method: Method,
    body: Body,
) -> Result<Response<Incoming>, UploadError> {
    let unreachable = |why: String| UploadError::Unreachable(recorder, why);
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{recorder}/v2/record"))
        .body(body)
        .map_err(|error| unreachable(error.to_string()))?;
    match timeout(ANSWER, sender.send_request(request)).await {
        Ok(answer) => answer.map_err(|error| unreachable(error.to_string())),
        Err(_) => Err(unreachable(format!(
            "it did not answer within {} s",
            ANSWER.as_secs()
        ))),
    }
}

/// Reads acknowledgements until there are no more.
async fn listen(recorder: SocketAddr, mut body: Incoming, acks: watch::Sender<Result<u64, UploadError>>) {
    let mut text = Vec::new();
    let why = 'all: loop {
        match timeout(SILENCE, body.frame()).await {
            Err(_) => break UploadError::Silent(recorder),
            Ok(None | Some(Err(_))) => break UploadError::Ended(recorder),
            Ok(Some(Ok(frame))) => {
                let Ok(mut data) = frame.into_data() else { continue };
                text.extend_from_slice(&data.copy_to_bytes(data.remaining()));
            }
        }
        let mut read = serde_json::Deserializer::from_slice(&text).into_iter::<Ack>();
        let mut whole = 0;
        loop {
            match read.next() {
                Some(Ok(ack)) if ack.error.is_empty() => {
                    whole = read.byte_offset();
                    let _ = acks.send(Ok(ack.ack));
                }
                Some(Ok(ack)) => break 'all UploadError::Failed(recorder, ack.error),
                Some(Err(error)) if error.is_eof() => break,
                Some(Err(error)) => break 'all UploadError::Failed(recorder, error.to_string()),
                None => {
                    whole = text.len();
                    break;
                }
            }
        }
        text.drain(..whole);
        if text.len() > MAX_ACK {
            break UploadError::Failed(recorder, "an acknowledgement without end".to_owned());
        }
    };
    // Without a receiver, nobody waits for it.
    let _ = acks.send(Err(why));
}

impl Upload {
    /// Sends more; waits while the recorder is behind.
    ///
    /// # Errors
    /// When the recorder has gone.
    pub(crate) async fn send(&mut self, lines: Vec<u8>) -> Result<(), UploadError> {
        if let Err(error) = &*self.acked.borrow() {
            return Err(error.clone());
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.sent += lines.len() as u64;
        let recorder = self.recorder;
        tokio::select! {
            sent = self.pieces.send(Ok(Frame::data(Bytes::from(lines)))) => sent.map_err(|_| UploadError::Ended(recorder)),
            error = failed(&mut self.acked) => Err(error),
        }
    }

    /// The recorder.
    pub(crate) fn recorder(&self) -> SocketAddr {
        self.recorder
    }

    /// When the recorder fails, why.
    pub(crate) fn failure(&self) -> impl Future<Output = UploadError> + Send + 'static {
        let mut acked = self.acked.clone();
        async move { failed(&mut acked).await }
    }

    /// Ends the recording; returns when the recorder has stored all of it.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) async fn finish(mut self) -> Result<(), UploadError> {
        let sent = self.sent;
        self.pieces.close_channel();
        self.stored(sent, FAREWELL).await
    }

    async fn stored(&mut self, sent: u64, limit: Duration) -> Result<(), UploadError> {
        let recorder = self.recorder;
        let stored = self
            .acked
            .wait_for(|acked| acked.as_ref().is_ok_and(|acked| *acked >= sent) || acked.is_err());
        match timeout(limit, stored).await {
            Err(_) => Err(UploadError::Silent(recorder)),
            Ok(Err(_)) => Err(UploadError::Ended(recorder)),
            Ok(Ok(acked)) => acked.as_ref().map(|_| ()).map_err(Clone::clone),
        }
    }
}

async fn failed(acked: &mut watch::Receiver<Result<u64, UploadError>>) -> UploadError {
    let failed = acked.wait_for(Result::is_err).await.ok();
    match failed.and_then(|acked| acked.as_ref().err().cloned()) {
        Some(error) => error,
        // It has been told already.
        None => std::future::pending().await,
    }
}
