//! The HTTP client of API v2.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH, RETRY_AFTER, USER_AGENT,
};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use url::Url;

use crate::backoff::{MAX_ATTEMPTS, MAX_WAIT, delay};
use crate::error::{ConfigError, Error, scrub};
use crate::network::{DeviceRoutes, DnsConfig, ServiceListBody, VipService};
use crate::oauth::{TokenBody, TokenCache};
use crate::secret::Secret;
use crate::transport::{Answer, Transport};
use crate::types::{
    AuthKey, CreateKey, CreateKeyBody, CreatedKeyBody, Device, DeviceFilter, DeviceId, DeviceListBody, KeyId,
    KeyInfo, KeyListBody, PolicyFile,
};
use crate::{Call, ControlApi};

const HUJSON: HeaderValue = HeaderValue::from_static("application/hujson");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// How the client proves who it is.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// OAuth client credentials; tokens are fetched and renewed as needed.
    OAuthClient {
        /// The client's id.
        id: String,
        /// The client's secret.
        secret: Secret,
    },
    /// Workload identity: the control server trusts the issuer of a token that the platform keeps in a file, and gives an access token for it. No secret
    /// is stored anywhere.
    Workload {
        /// The client's id.
        id: String,
        /// Where the platform writes the token, and replaces it before it ends.
        token_file: PathBuf,
    },
    /// A fixed API key (`tskey-api-…`).
    ApiKey(Secret),
}

/// What a [`Client`] needs to know.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Where the API stands, e.g. `https://api.tailscale.com` or the coordinator's URL. A path is kept as prefix.
    pub base_url: Url,
    /// The tailnet's name; `-` is the one of the credentials.
    pub tailnet: String,
    /// Who calls.
    pub credentials: Credentials,
    /// Sent with every request.
    pub user_agent: String,
    /// Longest time of one attempt, from connecting to the last byte.
    pub timeout: Duration,
}

impl ClientConfig {
    /// A configuration with the usual choices: tailnet `-`, 30 s per attempt.
    pub fn new(base_url: Url, credentials: Credentials) -> Self {
        Self {
            base_url,
            tailnet: "-".to_owned(),
            credentials,
            user_agent: concat!("tailwharf/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeout: Duration::from_secs(30),
        }
    }
}

/// Speaks API v2 over HTTP. Share one: it keeps the connections and the access token.
pub struct Client {
    transport: Transport,
    base: Url,
    tailnet: String,
    credentials: Credentials,
    user_agent: HeaderValue,
    tokens: TokenCache,
}

/// Whether a request may be sent again when the server can have seen it.
#[derive(Clone, Copy, PartialEq)]
enum Repeat {
    Safe,
    OnlyUnseen,
}

/// One request before it is signed.
struct Outgoing {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
    repeat: Repeat,
}

impl Outgoing {
    fn new(method: Method, url: Url) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, JSON);
        Self {
            method,
            url,
            headers,
            body: Bytes::new(),
            repeat: Repeat::Safe,
        }
    }

    fn with_body(mut self, content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        self.headers.insert(CONTENT_TYPE, content_type);
        self.body = body.into();
        self
    }

    fn to_http(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        // Every `Url` with a host is a valid `Uri`; should the crates ever differ, the request fails to connect.
        *request.uri_mut() = self.url.as_str().parse().unwrap_or_default();
        request
    }
}

impl Client {
    /// Makes a client. Nothing is sent yet.
    ///
    /// # Errors
    /// When the URL, a credential or the system's certificates cannot be used.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        let ClientConfig {
            base_url,
            tailnet,
            credentials,
            user_agent,
            timeout,
        } = config;
        let user_agent =
            HeaderValue::from_str(&user_agent).map_err(|_| ConfigError::NotAHeader { what: "user agent" })?;
        if let Credentials::ApiKey(key) = &credentials {
            bearer(key).ok_or(ConfigError::NotAHeader { what: "API key" })?;
        }
        let transport = Transport::new(&base_url, timeout)?;
        Ok(Self {
            transport,
            base: base_url,
            tailnet,
            credentials,
            user_agent,
            tokens: TokenCache::default(),
        })
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v2"]).extend(segments);
        }
        url
    }

    fn tailnet_url(&self, rest: &[&str]) -> Url {
        self.url(&[&["tailnet", self.tailnet.as_str()], rest].concat())
    }

    /// Sends a signed request. A token that the server no longer accepts is renewed once.
    async fn send(&self, mut request: Outgoing) -> Result<Answer, Error> {
        request.headers.insert(USER_AGENT, self.user_agent.clone());
        let token = self.token().await?;
        request.headers.insert(AUTHORIZATION, authorization(&token)?);
        let answer = self.send_with_retries(&request).await?;
        if answer.status != StatusCode::UNAUTHORIZED || matches!(self.credentials, Credentials::ApiKey(_)) {
            return Ok(answer);
        }
        self.tokens.discard(&token).await;
        let token = self.token().await?;
        request.headers.insert(AUTHORIZATION, authorization(&token)?);
        self.send_with_retries(&request).await
    }

    async fn send_with_retries(&self, request: &Outgoing) -> Result<Answer, Error> {
        let mut attempt = 1;
        loop {
            let outcome = self.transport.exchange(request.to_http()).await;
            let wait = delay(attempt, &mut rand::thread_rng());
            let last = attempt == MAX_ATTEMPTS;
            attempt += 1;
            match outcome {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                    // The server did nothing, so any request may be repeated.
                    let asked = retry_after(&answer.headers);
                    let wait = asked.unwrap_or(wait);
                    if last || wait > MAX_WAIT {
                        return Err(Error::RateLimited { retry_after: asked });
                    }
                    sleep(wait).await;
                }
                Ok(answer) if answer.status.is_server_error() && request.repeat == Repeat::Safe && !last => {
                    let wait = retry_after(&answer.headers).unwrap_or(wait);
                    if wait > MAX_WAIT {
                        return Ok(answer);
                    }
                    sleep(wait).await;
                }
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    let repeatable = failure.unseen || request.repeat == Repeat::Safe;
                    if last || !repeatable || !failure.error.is_transient() {
                        return Err(failure.error);
                    }
                    sleep(wait).await;
                }
            }
        }
    }

    async fn token(&self) -> Result<Secret, Error> {
        match &self.credentials {
            Credentials::ApiKey(key) => Ok(key.clone()),
            Credentials::OAuthClient { id, secret } => {
                let form = [
                    ("grant_type", "client_credentials"),
                    ("client_id", id),
                    ("client_secret", secret.expose()),
                ];
                self.tokens.get(self.fetch_token("token", &form, secret)).await
            }
            Credentials::Workload { id, token_file } => {
                self.tokens.get(self.exchange_token(id, token_file)).await
            }
        }
    }

    /// The platform replaces the token from time to time, so it is read for each exchange.
    async fn exchange_token(&self, id: &str, token_file: &Path) -> Result<TokenBody, Error> {
        let text = tokio::fs::read_to_string(token_file)
            .await
            .map_err(|source| Error::WorkloadToken {
                path: token_file.to_owned(),
                source,
            })?;
        let token = Secret::new(text.trim());
        let form = [("client_id", id), ("jwt", token.expose())];
        self.fetch_token("token-exchange", &form, &token).await
    }

    async fn fetch_token(
        &self,
        endpoint: &str,
        form: &[(&str, &str)],
        secret: &Secret,
    ) -> Result<TokenBody, Error> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let mut request = Outgoing::new(Method::POST, self.url(&["oauth", endpoint])).with_body(FORM, form);
        request.headers.insert(USER_AGENT, self.user_agent.clone());
        let answer = self.send_with_retries(&request).await?;
        match answer.status {
            StatusCode::OK => decode("an access token", &answer.body),
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::CredentialsRefused {
                    status: answer.status.as_u16(),
                    message: scrub(&message(&answer), secret),
                })
            }
            _ => Err(failure("token endpoint".to_owned(), &answer)),
        }
    }

    /// Reads something that has no call of its own in [`ControlApi`]. `path` are the segments below `/api/v2`; `what` names it in errors.
    ///
    /// # Errors
    /// As the calls of [`ControlApi`].
    pub async fn read<T: DeserializeOwned>(&self, what: &'static str, path: &[&str]) -> Result<T, Error> {
        self.get(what, self.url(path), "").await
    }

    async fn get<T: DeserializeOwned>(&self, what: &'static str, url: Url, id: &str) -> Result<T, Error> {
        let answer = self.send(Outgoing::new(Method::GET, url)).await?;
        if answer.status != StatusCode::OK {
            return Err(failure(format!("{what} {id}").trim_end().to_owned(), &answer));
        }
        decode(what, &answer.body)
    }

    /// A repeated attempt can meet its own success as [`Error::NotFound`]; callers take that for done anyway.
    async fn delete(&self, what: &str, url: Url, id: &str) -> Result<(), Error> {
        let answer = self.send(Outgoing::new(Method::DELETE, url)).await?;
        if answer.status.is_success() {
            Ok(())
        } else {
            Err(failure(format!("{what} {id}"), &answer))
        }
    }

    async fn mint(&self, key: &CreateKey) -> Result<AuthKey, Error> {
        let body = serde_json::to_vec(&CreateKeyBody::from(key)).map_err(|source| Error::Malformed {
            what: "an auth key",
            source: source.into(),
        })?;
        let mut request = Outgoing::new(Method::POST, self.tailnet_url(&["keys"])).with_body(JSON, body);
        request.repeat = Repeat::OnlyUnseen;
        let answer = self.send(request).await?;
        match answer.status {
            status if status.is_success() => {
                let CreatedKeyBody { id, key, expires } = decode("an auth key", &answer.body)?;
                Ok(AuthKey { id, key, expires })
            }
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(Error::KeyRefused {
                    tags: key.tags.clone(),
                    message: message(&answer),
                })
            }
            _ => Err(failure("tailnet".to_owned(), &answer)),
        }
    }

    /// Writes something as JSON. `what` names it, should it not be there.
    async fn write(
        &self,
        what: String,
        method: Method,
        url: Url,
        body: &impl Serialize,
    ) -> Result<Answer, Error> {
        let body = serde_json::to_vec(body).map_err(|source| Error::Malformed {
            what: "a request",
            source: source.into(),
        })?;
        let answer = self
            .send(Outgoing::new(method, url).with_body(JSON, body))
            .await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(failure(what, &answer))
        }
    }

    async fn write_tags(&self, id: &DeviceId, tags: &[String]) -> Result<(), Error> {
        let url = self.url(&["device", id.as_str(), "tags"]);
        let body = serde_json::json!({ "tags": tags });
        self.write(format!("device {id}"), Method::POST, url, &body)
            .await
            .map(drop)
    }

    async fn write_routes(&self, id: &DeviceId, routes: &[IpNet]) -> Result<DeviceRoutes, Error> {
        let url = self.url(&["device", id.as_str(), "routes"]);
        let body = serde_json::json!({ "routes": routes });
        let answer = self
            .write(format!("device {id}"), Method::POST, url, &body)
            .await?;
        decode("routes", &answer.body)
    }

    fn service_url(&self, name: &str) -> Url {
        self.tailnet_url(&["vip-services", name])
    }

    async fn read_policy(&self) -> Result<PolicyFile, Error> {
        let mut request = Outgoing::new(Method::GET, self.tailnet_url(&["acl"]));
        request.headers.insert(ACCEPT, HUJSON);
        policy_file(&self.send(request).await?)
    }

    async fn write_policy(&self, hujson: &str, if_match: Option<&str>) -> Result<PolicyFile, Error> {
        let mut request =
            Outgoing::new(Method::POST, self.tailnet_url(&["acl"])).with_body(HUJSON, hujson.to_owned());
        request.headers.insert(ACCEPT, HUJSON);
        if let Some(etag) = if_match {
            let etag = HeaderValue::from_str(etag).map_err(|_| Error::Invalid {
                message: "the entity tag is not one of the server's".to_owned(),
            })?;
            request.headers.insert(IF_MATCH, etag);
            // A repetition would find the tag changed by the attempt before and report a conflict that is none.
            request.repeat = Repeat::OnlyUnseen;
        }
        policy_file(&self.send(request).await?)
    }
}

impl ControlApi for Client {
    fn verify(&self) -> Call<'_, ()> {
        Box::pin(async { self.list_keys().await.map(drop) })
    }

    fn create_key<'a>(&'a self, request: &'a CreateKey) -> Call<'a, AuthKey> {
        Box::pin(self.mint(request))
    }

    fn list_keys(&self) -> Call<'_, Vec<KeyInfo>> {
        Box::pin(async {
            let list: KeyListBody = self.get("list of keys", self.tailnet_url(&["keys"]), "").await?;
            Ok(list.keys)
        })
    }

    fn delete_key<'a>(&'a self, id: &'a KeyId) -> Call<'a, ()> {
        Box::pin(self.delete("key", self.tailnet_url(&["keys", id.as_str()]), id.as_str()))
    }

    fn device<'a>(&'a self, id: &'a DeviceId) -> Call<'a, Device> {
        Box::pin(self.get("device", self.url(&["device", id.as_str()]), id.as_str()))
    }

    fn list_devices<'a>(&'a self, filter: &'a DeviceFilter) -> Call<'a, Vec<Device>> {
        Box::pin(async move {
            let mut list: DeviceListBody = self
                .get("list of devices", self.tailnet_url(&["devices"]), "")
                .await?;
            list.devices.retain(|device| filter.matches(device));
            Ok(list.devices)
        })
    }

    fn set_device_tags<'a>(&'a self, id: &'a DeviceId, tags: &'a [String]) -> Call<'a, ()> {
        Box::pin(self.write_tags(id, tags))
    }

    fn delete_device<'a>(&'a self, id: &'a DeviceId) -> Call<'a, ()> {
        Box::pin(self.delete("device", self.url(&["device", id.as_str()]), id.as_str()))
    }

    fn device_routes<'a>(&'a self, id: &'a DeviceId) -> Call<'a, DeviceRoutes> {
        let url = self.url(&["device", id.as_str(), "routes"]);
        Box::pin(self.get("device", url, id.as_str()))
    }

    fn set_device_routes<'a>(&'a self, id: &'a DeviceId, routes: &'a [IpNet]) -> Call<'a, DeviceRoutes> {
        Box::pin(self.write_routes(id, routes))
    }

    fn list_services(&self) -> Call<'_, Vec<VipService>> {
        Box::pin(async {
            let url = self.tailnet_url(&["vip-services"]);
            let list: ServiceListBody = self.get("list of services", url, "").await?;
            Ok(list.services)
        })
    }

    fn service<'a>(&'a self, name: &'a str) -> Call<'a, VipService> {
        Box::pin(self.get("service", self.service_url(name), name))
    }

    fn put_service<'a>(&'a self, service: &'a VipService) -> Call<'a, ()> {
        Box::pin(async move {
            let url = self.service_url(&service.name);
            let what = format!("service {}", service.name);
            self.write(what, Method::PUT, url, service).await.map(drop)
        })
    }

    fn delete_service<'a>(&'a self, name: &'a str) -> Call<'a, ()> {
        Box::pin(self.delete("service", self.service_url(name), name))
    }

    fn dns(&self) -> Call<'_, DnsConfig> {
        let url = self.tailnet_url(&["dns", "configuration"]);
        Box::pin(self.get("DNS configuration", url, ""))
    }

    fn set_dns<'a>(&'a self, dns: &'a DnsConfig) -> Call<'a, ()> {
        Box::pin(async move {
            let url = self.tailnet_url(&["dns", "configuration"]);
            let what = "tailnet".to_owned();
            self.write(what, Method::POST, url, dns).await.map(drop)
        })
    }

    fn policy(&self) -> Call<'_, PolicyFile> {
        Box::pin(self.read_policy())
    }

    fn set_policy<'a>(&'a self, hujson: &'a str, if_match: Option<&'a str>) -> Call<'a, PolicyFile> {
        Box::pin(self.write_policy(hujson, if_match))
    }
}

fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn authorization(token: &Secret) -> Result<HeaderValue, Error> {
    bearer(token).ok_or_else(|| Error::Malformed {
        what: "an access token",
        source: "it has characters that an HTTP header cannot carry".into(),
    })
}

fn decode<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|source| Error::Malformed {
        what,
        source: source.into(),
    })
}

fn policy_file(answer: &Answer) -> Result<PolicyFile, Error> {
    if answer.status != StatusCode::OK {
        return Err(failure("policy file".to_owned(), answer));
    }
    let hujson = std::str::from_utf8(&answer.body).map_err(|source| Error::Malformed {
        what: "the policy file",
        source: source.into(),
    })?;
    let etag = answer
        .headers
        .get(ETAG)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    Ok(PolicyFile {
        hujson: hujson.to_owned(),
        etag,
    })
}

/// The error of an answer whose status no caller treats specially.
fn failure(what: String, answer: &Answer) -> Error {
    let status = answer.status.as_u16();
    let message = message(answer);
    match answer.status {
        StatusCode::NOT_FOUND => Error::NotFound { what },
        StatusCode::UNAUTHORIZED => Error::CredentialsRefused { status, message },
        StatusCode::FORBIDDEN => Error::Forbidden { message },
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Error::Conflict { message },
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Error::Invalid { message },
        _ => Error::Unexpected { status, message },
    }
}

/// The server's words: `message` of its own errors, `error_description` or `error` of OAuth ones, else the status.
fn message(answer: &Answer) -> String {
    const MAX_CHARS: usize = 512;
    #[derive(Deserialize, Default)]
    struct Body {
        message: Option<String>,
        error_description: Option<String>,
        error: Option<String>,
    }
    let body: Body = serde_json::from_slice(&answer.body).unwrap_or_default();
    let words = body
        .message
        .or(body.error_description)
        .or(body.error)
        .filter(|text| !text.trim().is_empty());
    match words {
        Some(text) => text.trim().chars().take(MAX_CHARS).collect(),
        None => answer
            .status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned(),
    }
}

/// `Retry-After` in its form of seconds (RFC 9110, 10.2.3); the form of a date is not used by API servers.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}
