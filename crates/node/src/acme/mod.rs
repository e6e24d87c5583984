//! Certificates by ACME (RFC 8555). Names of the tailnet are proved by TXT records that the control server sets.
//!
//! An order takes seconds to minutes: fetch a certificate ahead of its use and renew it ahead of its end, never while a
//! request waits for it.

mod account;
mod client;
mod lifetime;

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use url::Url;
use zeroize::Zeroizing;

pub use self::account::AcmeAccount;
use self::client::{Client, decode, location};
pub use self::lifetime::Lifetime;
use crate::host::Host;

/// The kind of [`AcmeError::Refused`] by which a server asks for fewer requests (RFC 8555, section 6.7).
pub const RATE_LIMITED: &str = "urn:ietf:params:acme:error:rateLimited";
/// The directory of Let's Encrypt.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// How long one order may take.
const ORDER_TIME: Duration = Duration::from_secs(300);

/// A certificate with its private key.
#[derive(Clone)]
pub struct Certificate {
    /// The certificate and those above it, as PEM.
    pub chain_pem: String,
    /// The private key in PKCS #8, as PEM.
    pub key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// A certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The tailnet does not let this node have a certificate for the name.
    #[error(
        "the tailnet gives this node no certificate for {name}; turn on HTTPS for the tailnet, or ask for one of {allowed:?}"
    )]
    Name {
        /// The name.
        name: String,
        /// The names that are allowed.
        allowed: Vec<String>,
    },
    /// A key could not be made or used.
    #[error("a key cannot be made or used")]
    Key,
    /// The request for the certificate could not be made.
    #[error("the request for a certificate cannot be made")]
    Request(#[source] rcgen::Error),
    /// The control server did not set the TXT record.
    #[error("the control server did not set the TXT record that proves the name")]
    Record(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The ACME server could not be reached.
    #[error("the exchange with {url} failed")]
    Exchange {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The ACME server refused a request.
    #[error("{url} answered {status}: {detail}")]
    Refused {
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The kind of error, a URN of RFC 8555.
        kind: String,
        /// The server's words.
        detail: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// An answer of the ACME server cannot be used.
    #[error("the answer of {url} cannot be used: {what}")]
    Answer {
        /// The URL.
        url: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The proof was not accepted.
    #[error("the certificate authority did not accept the proof for {name}: {detail}")]
    Invalid {
        /// The name.
        name: String,
        /// The authority's words.
        detail: String,
    },
    /// It took too long.
    #[error("the certificate authority did not finish in {} s", ORDER_TIME.as_secs())]
    TimedOut,
}

/// How control over a name is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By a page that the host of the name serves at port 80 (RFC 8555, 8.3).
    Http,
    /// By a TXT record (RFC 8555, 8.4).
    Dns,
}

impl Method {
    fn challenge(self) -> &'static str {
        match self {
            Self::Http => "http-01",
            Self::Dns => "dns-01",
        }
    }
}

/// What is to be published before the authority looks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Where: the name of a TXT record, or the last part of the page's path, which is below `/.well-known/acme-challenge/`.
    pub place: String,
    /// The record's value, or the page.
    pub content: String,
}

#[derive(Debug, Deserialize)]
struct Order {
    status: String,
    #[serde(default)]
    authorizations: Vec<Url>,
    finalize: Url,
    certificate: Option<Url>,
}

#[derive(Debug, Deserialize)]
struct Authorization {
    status: String,
    #[serde(default)]
    challenges: Vec<Challenge>,
}

#[derive(Debug, Deserialize)]
struct Challenge {
    #[serde(rename = "type")]
    kind: String,
    url: Url,
    #[serde(default)]
    token: String,
    #[serde(default)]
    error: Option<ChallengeError>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ChallengeError {
    detail: String,
}

/// Whether an ACME server has its directory at `url`.
pub(crate) async fn is_directory(host: &Host, url: &Url) -> Result<bool, AcmeError> {
    match client::directory(host, url).await {
        Ok(_) => Ok(true),
        Err(AcmeError::Refused { .. } | AcmeError::Answer { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The time in which an ACME server wants a certificate to be renewed (RFC 9773); its middle has passed if the certificate is to be renewed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct RenewalWindow {
    /// From when on.
    pub start: Timestamp,
    /// Until when.
    pub end: Timestamp,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: RenewalWindow,
}

/// When the server with this directory wants the certificate `id` to be renewed; `None` if it says nothing about that.
///
/// # Errors
/// When the server does not answer, or not so that it can be read.
pub async fn renewal_window(
    host: &Host,
    directory: &Url,
    id: &str,
) -> Result<Option<RenewalWindow>, AcmeError> {
    let Some(mut url) = client::directory(host, directory).await?.renewal_info else {
        return Ok(None);
    };
    let path = format!("{}/{id}", url.path().trim_end_matches('/'));
    url.set_path(&path);
    let info: RenewalInfo = client::read(host, &url).await?;
    Ok(Some(info.suggested_window))
}

/// Orders a certificate for `name`, in place of the one `replaces`, with a proof that `publish` publishes.
///
/// # Errors
/// [`AcmeError`] names the step that failed.
pub async fn order<F>(
    host: &Host,
    account: &AcmeAccount,
    name: &str,
    replaces: Option<&str>,
    method: Method,
    publish: impl FnMut(Proof) -> F,
) -> Result<Certificate, AcmeError>
where
    F: Future<Output = Result<(), AcmeError>>,
{
    timeout(
        ORDER_TIME,
        order_slowly(host, account, name, replaces, method, publish),
    )
    .await
    .map_err(|_| AcmeError::TimedOut)?
}

async fn order_slowly<F>(
    host: &Host,
    account: &AcmeAccount,
    name: &str,
    replaces: Option<&str>,
    method: Method,
    mut publish: impl FnMut(Proof) -> F,
) -> Result<Certificate, AcmeError>
where
    F: Future<Output = Result<(), AcmeError>>,
{
    let mut client = Client::start(host, account).await?;
    let new_order = client.directory.new_order.clone();
    let mut identifiers = json!({"identifiers": [{"type": "dns", "value": name}]});
    if let (Some(replaces), Some(_)) = (replaces, &client.directory.renewal_info) {
        identifiers["replaces"] = replaces.into();
    }
    let response = client.post(&new_order, Some(&identifiers)).await?;
    let order_url = location(&new_order, &response)?;
    let order: Order = decode(&new_order, response.body())?;
    for url in &order.authorizations {
        let authorization: Authorization = client.call(url, None).await?;
        if authorization.status == "valid" {
            continue;
        }
        let mut challenges = authorization.challenges.into_iter();
        let challenge = challenges
            .find(|challenge| challenge.kind == method.challenge())
            .ok_or_else(|| AcmeError::Answer {
                url: url.to_string(),
                what: match method {
                    Method::Http => "it offers no proof by HTTP",
                    Method::Dns => "it offers no proof by DNS",
                },
            })?;
        let proof = match method {
            Method::Http => Proof {
                content: account.key_authorization(&challenge.token),
                place: challenge.token,
            },
            Method::Dns => Proof {
                place: format!("_acme-challenge.{}", name.trim_start_matches("*.")),
                content: account.dns_proof(&challenge.token),
            },
        };
        publish(proof).await?;
        client.post(&challenge.url, Some(&json!({}))).await?;
        client.poll(url, |state| proved(name, state)).await??;
    }
    let (request, key) = certificate_request(name)?;
    client
        .poll(&order_url, |order: Order| in_time(name, &order, "ready"))
        .await??;
    client
        .post(&order.finalize, Some(&json!({"csr": request})))
        .await?;
    let certificate = client
        .poll(&order_url, |order: Order| {
            in_time(name, &order, "valid").map(|state| state.map(|()| order.certificate))
        })
        .await??
        .ok_or_else(|| AcmeError::Answer {
            url: order_url.to_string(),
            what: "it names no certificate",
        })?;
    let chain = client.post(&certificate, None).await?;
    let chain_pem = String::from_utf8(chain.into_body().into()).map_err(|_| AcmeError::Answer {
        url: certificate.to_string(),
        what: "it is not PEM",
    })?;
    Ok(Certificate {
        chain_pem,
        key_pem: key.serialize_pem().into(),
    })
}

/// Whether an authorization was decided, and how.
fn proved(name: &str, authorization: Authorization) -> Option<Result<(), AcmeError>> {
    match authorization.status.as_str() {
        "pending" | "processing" => None,
        "valid" => Some(Ok(())),
        other => {
            let errors = authorization.challenges.into_iter();
            let detail = errors.filter_map(|challenge| challenge.error).next();
            Some(Err(AcmeError::Invalid {
                name: name.to_owned(),
                detail: detail.map_or_else(|| other.to_owned(), |error| error.detail),
            }))
        }
    }
}

/// Whether an order has come to `state`, or can no more.
fn in_time(name: &str, order: &Order, state: &str) -> Option<Result<(), AcmeError>> {
    match order.status.as_str() {
        status if status == state || status == "valid" => Some(Ok(())),
        "pending" | "ready" | "processing" => None,
        other => Some(Err(AcmeError::Invalid {
            name: name.to_owned(),
            detail: format!("the order is {other}"),
        })),
    }
}

/// A new key and the request to certify it, in the form that ACME takes.
fn certificate_request(name: &str) -> Result<(String, KeyPair), AcmeError> {
    use base64::Engine as _;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AcmeError::Request)?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(AcmeError::Request)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(AcmeError::Request)?;
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(request.der());
    Ok((encoded, key))
}
