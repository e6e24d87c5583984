//! The two HTTP/1.1 exchanges that come before everything else: a small request, and a protocol upgrade.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::stream::MaybeTls;

/// Answers to these requests are short; what is longer is not from the server we look for.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// An exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("the HTTP exchange broke off")]
    Exchange(#[source] hyper::Error),
    #[error("the answer is longer than {MAX_ANSWER_BYTES} bytes, or broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the server answered {status}: {text}")]
    Status { status: StatusCode, text: String },
    #[error("the server changed the connection under the upgrade")]
    Stream,
}

/// Sends one request and reads the whole answer, which must have status 200.
pub(crate) async fn call<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Bytes, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let response = exchange(stream, request).await?;
    match response.status() {
        StatusCode::OK => Ok(response.into_body()),
        status => Err(HttpError::Status {
            status,
            text: first_line(response.body()),
        }),
    }
}

/// Sends one request and reads the whole answer, whatever its status.
pub(crate) async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (head, body) = send(stream, request).await?.into_parts();
    Ok(Response::from_parts(head, read_body(body).await?))
}

/// A connection that has left HTTP.
pub(crate) struct Upgraded {
    pub(crate) stream: MaybeTls,
    /// What the server sent behind the header block.
    pub(crate) read: Bytes,
}

/// Sends an upgrade request, which must be answered by 101.
pub(crate) async fn upgrade(stream: MaybeTls, request: Request<Full<Bytes>>) -> Result<Upgraded, HttpError> {
    let response = send(stream, request).await?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = read_body(response.into_body()).await?;
        return Err(HttpError::Status {
            status,
            text: first_line(&body),
        });
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(HttpError::Exchange)?;
    let parts = upgraded
        .downcast::<TokioIo<MaybeTls>>()
        .map_err(|_| HttpError::Stream)?;
    Ok(Upgraded {
        stream: parts.io.into_inner(),
        read: parts.read_buf,
    })
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(HttpError::Exchange)?;
    // Ends with the answer, with the upgrade, or when `sender` and the body are dropped.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(HttpError::Exchange)
}

/// Reads a body of bounded size.
pub(crate) async fn read_body(body: Incoming) -> Result<Bytes, HttpError> {
    Ok(Limited::new(body, MAX_ANSWER_BYTES)
        .collect()
        .await
        .map_err(HttpError::Body)?
        .to_bytes())
}

/// What of an error page goes into an error: the first line, cut at 200 characters.
pub(crate) fn first_line(body: &[u8]) -> String {
    String::from_utf8_lossy(body)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .chars()
        .take(200)
        .collect()
}
