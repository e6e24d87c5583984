//! The client of the administrator's socket.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use url::{Url, form_urlencoded};

/// The longest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 256 << 20;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("no coordinator answers at {}: start it, or name its configuration file", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This user may not open the socket.
    #[error("you may not open {}: run this as the user that runs the coordinator", socket.display())]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The coordinator refused.
    #[error("{message}")]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// The coordinator's words.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to the coordinator broke")]
    Broken(#[source] hyper::Error),
    /// The answer is too long, or broke off.
    #[error("the answer of the coordinator could not be read to its end")]
    Incomplete(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer, or the request, is not what this version knows.
    #[error("the coordinator's answer is not understood: is it another version?")]
    Unexpected(#[source] serde_json::Error),
    /// The request cannot be written as HTTP.
    #[error("the request cannot be made")]
    Request(#[source] http::Error),
}

/// A client of one socket. Each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// An error of the API.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

impl Client {
    /// A client of the socket at `socket`. It connects with the first call.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_path_buf(),
        }
    }

    /// Makes a call that takes and gives JSON. `path` are the segments below `/api/v2`; they may hold any text.
    ///
    /// # Errors
    /// `Refused` with the coordinator's words, or what kept the call from reaching it.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, ClientError> {
        let body = body
            .map(serde_json::to_vec)
            .transpose()
            .map_err(ClientError::Unexpected)?;
        let answer = self.send(method, path, body.unwrap_or_default().into()).await?;
        serde_json::from_slice(&answer).map_err(ClientError::Unexpected)
    }

    /// Reads something, with parameters behind the path.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn query<T: DeserializeOwned>(
        &self,
        path: &[&str],
        parameters: &[(&str, &str)],
    ) -> Result<T, ClientError> {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish();
        let target = format!("{}?{query}", target(path));
        let answer = self.exchange(Method::GET, target, Bytes::new()).await?;
        serde_json::from_slice(&answer).map_err(ClientError::Unexpected)
    }

    /// Reads a text as it is.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn read(&self, path: &[&str]) -> Result<Bytes, ClientError> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Makes a call with a text, and gives the answer as it is.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn send(&self, method: Method, path: &[&str], body: Bytes) -> Result<Bytes, ClientError> {
        self.exchange(method, target(path), body).await
    }

    async fn exchange(&self, method: Method, target: String, body: Bytes) -> Result<Bytes, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "coordinator")
            .body(Full::new(body))
            .map_err(ClientError::Request)?;
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ClientError::Broken)?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(ClientError::Broken)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_LIMIT)
                .collect()
                .await
                .map_err(ClientError::Incomplete)?;
            Ok((head.status, body.to_bytes()))
        };
        let (status, body) = tokio::select! {
            answered = exchange => answered?,
            // The connection ends first only if it breaks: the exchange holds the sender.
            Err(error) = connection => return Err(ClientError::Broken(error)),
        };
        if status.is_success() {
            return Ok(body);
        }
        let message = serde_json::from_slice(&body)
            .map(|refusal: Refusal| refusal.message)
            .unwrap_or_default();
        let message = if message.is_empty() {
            status.to_string()
        } else {
            message
        };
        Err(ClientError::Refused { status, message })
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted { socket, source },
            _ => ClientError::NotRunning { socket, source },
        }
    }
}

/// The request target of a path below `/api/v2`, each segment escaped.
fn target(path: &[&str]) -> String {
    let mut target = "/api/v2".to_owned();
    if let Ok(mut url) = Url::parse("http://coordinator/api/v2") {
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        target = url.path().to_owned();
    }
    target
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn segments_are_escaped() {
        assert_eq!(target(&["device", "fd7a::1"]), "/api/v2/device/fd7a::1");
        assert_eq!(target(&["users", "a/b?c d"]), "/api/v2/users/a%2Fb%3Fc%20d");
    }
}
