//! Talking to an ACME server: nonces, signed requests, errors, waiting.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::sleep;
use url::Url;

use super::{AcmeAccount, AcmeError};
use crate::host::Host;
use crate::{fetch, http1};

/// The error of a nonce that was used or is too old; the answer brings a fresh one.
const BAD_NONCE: &str = "urn:ietf:params:acme:error:badNonce";
/// How often a request is made again with a fresh nonce.
const ATTEMPTS: usize = 6;
/// The pause between the first looks at what the server is working on; it grows with each.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two looks that we choose ourselves.
const PAUSE: Duration = Duration::from_secs(3);
/// A longer pause than this is not taken from a server.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Where the server takes which request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Directory {
    new_nonce: Url,
    new_account: Url,
    pub(super) new_order: Url,
    /// Where renewal information is (RFC 9773), if the server has it.
    pub(super) renewal_info: Option<Url>,
}

/// What the server says about a failure (RFC 7807).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    detail: String,
}

/// One account's dealings with its server.
pub(super) struct Client<'a> {
    host: &'a Host,
    account: &'a AcmeAccount,
    pub(super) directory: Directory,
    nonce: Option<String>,
    /// The URL of the account, once it is known.
    location: Option<String>,
}

impl<'a> Client<'a> {
    /// Reads the directory and finds or makes the account.
    pub(super) async fn start(host: &'a Host, account: &'a AcmeAccount) -> Result<Self, AcmeError> {
        let directory = directory(host, account.directory()).await?;
        let mut client = Self {
            host,
            account,
            directory,
            nonce: None,
            location: None,
        };
        let new_account = client.directory.new_account.clone();
        let terms = serde_json::json!({"termsOfServiceAgreed": true});
        let response = client.post(&new_account, Some(&terms)).await?;
        client.location = Some(location(&new_account, &response)?.to_string());
        Ok(client)
    }

    /// Sends a signed request; without a payload it reads.
    pub(super) async fn post(
        &mut self,
        url: &Url,
        payload: Option<&Value>,
    ) -> Result<Response<Bytes>, AcmeError> {
        let mut attempts = 0;
        loop {
            let nonce = self.nonce().await?;
            let request = self
                .account
                .sign(url.as_str(), &nonce, self.location.as_deref(), payload)?;
            let sent = send(self.host, Method::POST, url, request.into()).await;
            attempts += 1;
            match sent {
                Ok(response) => {
                    self.nonce = replay_nonce(&response);
                    return Ok(response);
                }
                Err(AcmeError::Refused { kind, .. }) if kind == BAD_NONCE && attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Client::post`], with the answer decoded.
    pub(super) async fn call<T: DeserializeOwned>(
        &mut self,
        url: &Url,
        payload: Option<&Value>,
    ) -> Result<T, AcmeError> {
        let response = self.post(url, payload).await?;
        decode(url, response.body())
    }

    /// Reads `url` until `done` has a result. The caller bounds the time.
    pub(super) async fn poll<T: DeserializeOwned, R>(
        &mut self,
        url: &Url,
        done: impl Fn(T) -> Option<R>,
    ) -> Result<R, AcmeError> {
        let mut own = FIRST_PAUSE;
        loop {
            let response = self.post(url, None).await?;
            if let Some(result) = done(decode(url, response.body())?) {
                return Ok(result);
            }
            sleep(retry_after(&response).unwrap_or(own).min(LONGEST_PAUSE)).await;
            own = (own * 2).min(PAUSE);
        }
    }

    async fn nonce(&mut self) -> Result<String, AcmeError> {
        if let Some(nonce) = self.nonce.take() {
            return Ok(nonce);
        }
        let url = &self.directory.new_nonce;
        let response = send(self.host, Method::HEAD, url, Bytes::new()).await?;
        replay_nonce(&response).ok_or_else(|| AcmeError::Answer {
            url: url.to_string(),
            what: "it has no nonce",
        })
    }
}

/// Reads the directory at `url`.
pub(super) async fn directory(host: &Host, url: &Url) -> Result<Directory, AcmeError> {
    read(host, url).await
}

/// Reads what is free for all to read at `url`.
pub(super) async fn read<T: DeserializeOwned>(host: &Host, url: &Url) -> Result<T, AcmeError> {
    let response = send(host, Method::GET, url, Bytes::new()).await?;
    decode(url, response.body())
}

/// How long the server asks to wait, if it does so in seconds.
fn retry_after(response: &Response<Bytes>) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?;
    value.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// The URL of what a request has made.
pub(super) fn location(url: &Url, response: &Response<Bytes>) -> Result<Url, AcmeError> {
    response
        .headers()
        .get(header::LOCATION)
        .and_then(|location| url.join(location.to_str().ok()?).ok())
        .ok_or_else(|| AcmeError::Answer {
            url: url.to_string(),
            what: "it does not say where to go on",
        })
}

pub(super) fn decode<T: DeserializeOwned>(url: &Url, body: &[u8]) -> Result<T, AcmeError> {
    serde_json::from_slice(body).map_err(|_| AcmeError::Answer {
        url: url.to_string(),
        what: "it is not the JSON expected there",
    })
}

fn replay_nonce(response: &Response<Bytes>) -> Option<String> {
    let nonce = response.headers().get("replay-nonce")?.to_str().ok()?;
    Some(nonce.to_owned())
}

async fn send(host: &Host, method: Method, url: &Url, body: Bytes) -> Result<Response<Bytes>, AcmeError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| AcmeError::Exchange {
        url: url.to_string(),
        source,
    };
    let request = Request::builder()
        .method(method)
        .uri(fetch::target(url))
        .header(header::HOST, url.authority())
        .header(
            header::USER_AGENT,
            concat!("tailwharf/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONTENT_TYPE, "application/jose+json")
        .body(Full::new(body))
        .map_err(|error| failed(error.into()))?;
    let stream = fetch::connect(host, url, &[])
        .await
        .map_err(|error| failed(error.into()))?;
    let response = http1::exchange(stream, request)
        .await
        .map_err(|error| failed(error.into()))?;
    match response.status() {
        StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(response),
        status => {
            let problem: Problem = serde_json::from_slice(response.body()).unwrap_or_default();
            Err(AcmeError::Refused {
                url: url.to_string(),
                status: status.as_u16(),
                kind: problem.kind,
                retry_after: retry_after(&response),
                detail: match problem.detail.is_empty() {
                    true => http1::first_line(response.body()),
                    false => problem.detail.chars().take(300).collect(),
                },
            })
        }
    }
}
