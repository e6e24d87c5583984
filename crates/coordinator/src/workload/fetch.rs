//! Small documents by HTTPS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::timeout;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// The longest document, in bytes.
const DOCUMENT_LIMIT: usize = 256 * 1024;
/// How long a document may take, from connecting to its last byte.
const DOCUMENT_TIME: Duration = Duration::from_secs(5);

/// Why a document did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("it is not an https:// address")]
    Address,
    #[error("the answer has status {0}")]
    Status(StatusCode),
    #[error("no whole answer of at most {DOCUMENT_LIMIT} bytes came")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer came within {} s", DOCUMENT_TIME.as_secs())]
    TimedOut,
}

/// Fetches documents from servers whose certificates it trusts.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Fetcher {
    /// Trusts the certificates in a file, or those of the system.
    ///
    /// # Errors
    /// What is wrong with the certificates, in words.
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(file) => {
                let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
                for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
                    let certificate = certificate.map_err(|error| wrong(&error))?;
                    roots.add(certificate).map_err(|error| wrong(&error))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// The document at `url`.
    pub(crate) async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        self.send(url, Request::new(Full::default())).await
    }

    /// The answer to a form.
    pub(crate) async fn post_form(
        &self,
        url: &str,
        form: String,
        authorization: Option<&str>,
    ) -> Result<Bytes, FetchError> {
        let mut request = Request::new(Full::from(form));
        *request.method_mut() = Method::POST;
        let kind = header::HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        let json = header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::ACCEPT, json);
        if let Some(text) = authorization {
            let mut value =
                header::HeaderValue::from_str(text).map_err(|error| FetchError::Broken(error.into()))?;
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        self.send(url, request).await
    }

    async fn send(&self, url: &str, mut request: Request<Full<Bytes>>) -> Result<Bytes, FetchError> {
        let uri: Uri = url.parse().map_err(|_| FetchError::Address)?;
        if uri.scheme_str() != Some("https") {
            return Err(FetchError::Address);
        }
        *request.uri_mut() = uri;
        let exchange = async {
            let answer = self
                .0
                .request(request)
                .await
                .map_err(|error| FetchError::Broken(error.into()))?;
            if answer.status() != StatusCode::OK {
                return Err(FetchError::Status(answer.status()));
            }
            let body = Limited::new(answer.into_body(), DOCUMENT_LIMIT).collect().await;
            Ok(body.map_err(FetchError::Broken)?.to_bytes())
        };
        timeout(DOCUMENT_TIME, exchange)
            .await
            .map_err(|_| FetchError::TimedOut)?
    }
}
