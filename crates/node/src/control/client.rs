//! Requests to the control server: HTTP/2 over a Noise connection.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tailwharf_wire::json::{self, JsonError};
use tailwharf_wire::key::NodePublic;

use super::noise_stream::NoiseStream;
use crate::http1::{self, HttpError};

/// Flow control windows. They bound what the server may send ahead; memory is only taken when it does.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;

/// Short requests are answered within this time.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A longer wait than this is not taken from a `Retry-After` header.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);

/// A request to the control server failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("cannot build the request")]
    Request(#[source] http::Error),
    #[error("cannot encode the request")]
    Encode(#[source] JsonError),
    #[error("the connection to the control server broke off")]
    Exchange(#[source] hyper::Error),
    #[error("the control server did not answer in time")]
    TimedOut,
    #[error("the control server's answer could not be read")]
    Body(#[source] HttpError),
    #[error("the control server's answer cannot be understood")]
    Decode(#[source] JsonError),
    #[error("the control server answered {status}: {text}")]
    Status {
        status: StatusCode,
        text: String,
        retry_after: Option<Duration>,
    },
}

/// One connection to the control server, for any number of requests at the same time. Dropping it closes the connection.
#[derive(Debug, Clone)]
pub(crate) struct ControlClient {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
    local: IpAddr,
}

impl ControlClient {
    /// `local` is our end of the connection.
    pub(crate) async fn start(
        stream: NoiseStream,
        authority: String,
        local: IpAddr,
    ) -> Result<Self, CallError> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(64 << 10)
            .max_header_list_size(16 << 10)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(CallError::Exchange)?;
        // Ends when the last sender and the last body are dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "control connection ended");
            }
        });
        Ok(Self {
            sender,
            authority,
            local,
        })
    }

    /// The address of this machine from which the connection goes.
    pub(crate) fn local(&self) -> IpAddr {
        self.local
    }

    /// POSTs JSON and gives the answer as it arrives, if its status is 200.
    pub(crate) async fn open<T: Serialize>(
        &self,
        path: &str,
        node_key: NodePublic,
        message: &T,
    ) -> Result<Incoming, CallError> {
        let body = json::to_vec(message).map_err(CallError::Encode)?;
        let response = self.send(Method::POST, path, node_key, body.into()).await?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let status = response.status();
        let retry_after = retry_after(&response);
        let body = http1::read_body(response.into_body())
            .await
            .map_err(CallError::Body)?;
        Err(CallError::Status {
            status,
            text: http1::first_line(&body),
            retry_after,
        })
    }

    /// POSTs JSON and reads the whole answer, which comes within `limit`.
    pub(crate) async fn post<T: Serialize>(
        &self,
        path: &str,
        node_key: NodePublic,
        message: &T,
        limit: Option<Duration>,
    ) -> Result<Bytes, CallError> {
        let exchange = async {
            let body = self.open(path, node_key, message).await?;
            http1::read_body(body).await.map_err(CallError::Body)
        };
        tokio::time::timeout(limit.unwrap_or(CALL_TIMEOUT), exchange)
            .await
            .map_err(|_| CallError::TimedOut)?
    }

    /// POSTs JSON and decodes the answer.
    pub(crate) async fn call<T: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        node_key: NodePublic,
        message: &T,
        limit: Option<Duration>,
    ) -> Result<R, CallError> {
        let body = self.post(path, node_key, message, limit).await?;
        json::from_slice(&body).map_err(CallError::Decode)
    }

    /// Sends bytes, or nothing, and waits for the head of the answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        node_key: NodePublic,
        body: Bytes,
    ) -> Result<Response<Incoming>, CallError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .header("Ts-Lb", node_key.to_string())
            .body(Full::new(body))
            .map_err(CallError::Request)?;
        self.sender
            .clone()
            .send_request(request)
            .await
            .map_err(CallError::Exchange)
    }
}

/// The delay form of the header; the date form is not used by control servers.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}
