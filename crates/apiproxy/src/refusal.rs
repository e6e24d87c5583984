//! Everything that a request is refused for, as the `Status` that kubectl prints.

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::caller::Denial;
use crate::framing::Violation;
use crate::headers::HeaderError;
use crate::request_info::PathError;

/// Why a request is not passed on, or its answer not passed back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not what HTTP says, or mean different things to different programs.
    #[error("the request is refused: {0}")]
    Framing(#[from] Violation),
    /// The path cannot be read in one way alone.
    #[error("the path of the request is refused: {0}")]
    Path(#[from] PathError),
    /// The target of the request is no path.
    #[error("the target of the request must be a path")]
    Target,
    /// The method is none that Kubernetes knows.
    #[error("the method is not allowed here; use one of {METHODS}")]
    Method,
    /// The request is for another host.
    #[error("this proxy is not {host:?}; call it by its name on the tailnet, {name}")]
    Host {
        /// The host that was asked for.
        host: String,
        /// What this proxy is called.
        name: String,
    },
    /// A web page of somebody else made a browser send the request.
    #[error(
        "a web page of another site sent the request ({0}); only programs and this proxy's own pages may"
    )]
    CrossSite(String),
    /// The caller is nobody.
    #[error("{0}")]
    Denied(#[from] Denial),
    /// Another device has the address of this connection by now.
    #[error("the address of this connection belongs to another device by now; connect again")]
    OtherDevice,
    /// Headers are refused.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// An upgrade that is not one of those of Kubernetes.
    #[error("the upgrade is refused: {0}")]
    Upgrade(&'static str),
    /// The request has to be recorded and cannot be.
    #[error("forbidden: {what} must be recorded, {why}")]
    Recording {
        /// What.
        what: String,
        /// Why it cannot be.
        why: String,
    },
    /// The caller has to confirm first that it is they.
    #[error("confirm that it is you at {url} (code {code}), then run the command again")]
    Confirm {
        /// The page.
        url: String,
        /// What it shows as well.
        code: String,
        /// Until when it is open.
        expires: String,
    },
    /// The grant demands a fresh sign-in, and there is none to be had.
    #[error("the tailnet policy demands a fresh sign-in for this: {0}")]
    SignIn(String),
    /// The caller has too much open.
    #[error(
        "{user} has {open} watches and sessions open through this proxy, and that is the most; close some"
    )]
    TooMany {
        /// The caller.
        user: String,
        /// How many.
        open: usize,
    },
    /// The API server could not be reached.
    #[error(
        "the proxy cannot reach the API server: {0}; try again, and look at the proxy's log if it stays so"
    )]
    Unreachable(String),
    /// The API server did not answer.
    #[error("the API server did not answer within {0} s")]
    TimedOut(u64),
    /// The API server does not accept the proxy.
    #[error("the API server does not accept the proxy's own token; it is read again, try once more")]
    OwnToken,
    /// The API server's answer cannot be passed on.
    #[error("the answer of the API server is refused: {0}")]
    Answer(&'static str),
}

/// The methods of the Kubernetes API.
pub(crate) const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

impl Refusal {
    /// The HTTP status.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        match self {
            Self::Framing(Violation::TooLong) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Framing(_) | Self::Path(_) | Self::Target | Self::Upgrade(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Host { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Header(HeaderError::TooLong) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Header(HeaderError::Spelling(_)) => StatusCode::BAD_REQUEST,
            Self::CrossSite(_)
            | Self::Denied(_)
            | Self::OtherDevice
            | Self::Header(_)
            | Self::Confirm { .. }
            | Self::SignIn(_)
            | Self::Recording { .. } => StatusCode::FORBIDDEN,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unreachable(_) | Self::OwnToken => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Answer(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// The word of Kubernetes for the kind of refusal.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.code() {
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            StatusCode::GATEWAY_TIMEOUT => "Timeout",
            StatusCode::BAD_GATEWAY => "InternalError",
            _ => "BadRequest",
        }
    }

    /// Whether nothing more is read from the connection.
    #[must_use]
    pub fn closes(&self) -> bool {
        matches!(
            self,
            Self::Framing(_) | Self::Target | Self::OtherDevice | Self::Upgrade(_) | Self::Host { .. }
        )
    }

    /// The answer.
    #[must_use]
    pub fn response(&self) -> Response<Bytes> {
        let code = self.code();
        let body = match self {
            Self::Confirm { url, expires, .. } => confirm_body(code, &self.to_string(), url, expires),
            _ => status_body(code, self.reason(), &self.to_string()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = code;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        match self {
            Self::Method => {
                headers.insert(ALLOW, HeaderValue::from_static(METHODS));
            }
            // Clients repeat it by themselves; without the header they show the message at once.
            Self::Unreachable(_) | Self::OwnToken => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        if self.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A `Status` that tells programs the page, too.
fn confirm_body(code: StatusCode, message: &str, url: &str, expires: &str) -> Bytes {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "Forbidden",
        "details": {"causes": [{"reason": "ReauthRequired", "message": url, "field": expires}]},
        "code": code.as_u16(),
    });
    Bytes::from(status.to_string())
}

/// A `Status` of Kubernetes.
pub(crate) fn status_body(code: StatusCode, reason: &str, message: &str) -> Bytes {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code.as_u16(),
    });
    Bytes::from(status.to_string())
}
