//! One HTTP exchange: connection reuse, time limit, size limit.

use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig as TlsConfig, RootCertStore};
use url::Url;

use crate::error::{ConfigError, Error};

/// A tailnet of 10,000 devices is listed in some 10 MB.
const MAX_BODY: usize = 32 << 20;
/// What is read of an error's body: its message.
const MAX_ERROR_BODY: usize = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_IDLE_CONNECTIONS: usize = 4;

/// An answer, read whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why an exchange failed, and whether the server can have seen the request.
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) unseen: bool,
}

pub(crate) struct Transport {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    server: String,
    timeout: Duration,
}

impl Transport {
    pub(crate) fn new(base: &Url, timeout: Duration) -> Result<Self, ConfigError> {
        let roots = match base.scheme() {
            "https" => native_roots()?,
            "http" => RootCertStore::empty(),
            _ => {
                return Err(ConfigError::Scheme {
                    url: base.to_string(),
                });
            }
        };
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(ConfigError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp);
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self {
            http,
            server: base.to_string(),
            timeout,
        })
    }

    pub(crate) async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        match tokio::time::timeout(self.timeout, self.exchange_untimed(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure {
                error: Error::TimedOut {
                    server: self.server.clone(),
                    after: self.timeout,
                },
                unseen: false,
            }),
        }
    }

    async fn exchange_untimed(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let response = self.http.request(request).await.map_err(|error| Failure {
            unseen: error.is_connect(),
            error: self.unreachable(error.into()),
        })?;
        self.read(response)
            .await
            .map_err(|error| Failure { error, unseen: false })
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Answer, Error> {
        let (parts, body) = response.into_parts();
        let limit = if parts.status.is_success() {
            MAX_BODY
        } else {
            MAX_ERROR_BODY
        };
        let body = match Limited::new(body, limit).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                if parts.status.is_success() {
                    return Err(Error::TooLarge { limit });
                }
                Bytes::new()
            }
            Err(error) => return Err(self.unreachable(error)),
        };
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    fn unreachable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::Unreachable {
            server: self.server.clone(),
            source,
        }
    }
}

fn native_roots() -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 {
        Err(ConfigError::NoRoots)
    } else {
        Ok(roots)
    }
}
