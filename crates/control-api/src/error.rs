//! What can go wrong with a call, by type.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// Why a call failed. Variants come from the status code and from the transport; a message is for people.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 404: there is no such thing.
    #[error("the control server knows no {what}")]
    NotFound {
        /// What was asked for, e.g. `device nAbcCNTRL`.
        what: String,
    },
    /// The token endpoint or a call answered 401, or the token endpoint 400 or 403.
    #[error("the control server refused the credentials ({status}): {message}")]
    CredentialsRefused {
        /// The HTTP status.
        status: u16,
        /// The server's reason.
        message: String,
    },
    /// The token of the platform, which the control server would give an access token for, cannot be read.
    #[error("the workload's token cannot be read from {}; check the projected volume with the ServiceAccount's token", .path.display())]
    WorkloadToken {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// 403: the credentials lack a scope.
    #[error("the control server does not allow it: {message}")]
    Forbidden {
        /// The server's reason.
        message: String,
    },
    /// An auth key was refused with 400, 403 or 422: in practice a tag that the credentials may not give.
    #[error("the control server refused an auth key for {}: {message}", tag_list(.tags))]
    KeyRefused {
        /// The tags that were asked for.
        tags: Vec<String>,
        /// The server's reason.
        message: String,
    },
    /// 409 or 412: the thing changed meanwhile.
    #[error("the control server refused a change of something that changed meanwhile: {message}")]
    Conflict {
        /// The server's reason.
        message: String,
    },
    /// 400 or 422: the server does not accept the request's content.
    #[error("the control server refused the request: {message}")]
    Invalid {
        /// The server's reason.
        message: String,
    },
    /// 429 even after the waits that the client allows itself.
    #[error("the control server limits the rate of calls")]
    RateLimited {
        /// When the server says to come back.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("the control server at {server} cannot be reached")]
    Unreachable {
        /// The base URL.
        server: String,
        /// What the connection said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("the control server at {server} did not answer within {} s", .after.as_secs())]
    TimedOut {
        /// The base URL.
        server: String,
        /// The limit.
        after: Duration,
    },
    /// The answer is larger than the client reads.
    #[error("the control server's answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The answer does not have the documented shape.
    #[error("the control server's answer about {what} is not what the API promises")]
    Malformed {
        /// Which answer.
        what: &'static str,
        /// What the decoder said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Any other status.
    #[error("the control server answered {status}: {message}")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
}

impl Error {
    /// Whether the same call can succeed later although nobody changes anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Unexpected { status, .. } => *status >= 500,
            Self::NotFound { .. }
            | Self::CredentialsRefused { .. }
            | Self::WorkloadToken { .. }
            | Self::Forbidden { .. }
            | Self::KeyRefused { .. }
            | Self::Conflict { .. }
            | Self::Invalid { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. } => false,
        }
    }

    /// A fixed name for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::CredentialsRefused { .. } => "credentials_refused",
            Self::WorkloadToken { .. } => "workload_token",
            Self::Forbidden { .. } => "forbidden",
            Self::KeyRefused { .. } => "key_refused",
            Self::Conflict { .. } => "conflict",
            Self::Invalid { .. } => "invalid",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::TooLarge { .. } => "too_large",
            Self::Malformed { .. } => "malformed",
            Self::Unexpected { .. } => "unexpected",
        }
    }
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The base URL is not an HTTP URL.
    #[error("the control server's URL {url} must begin with https:// or http://")]
    Scheme {
        /// The URL as given.
        url: String,
    },
    /// The system's certificate authorities could not be read, and the URL is an https one.
    #[error(
        "no certificate authority was found on this system; install ca-certificates or set SSL_CERT_FILE"
    )]
    NoRoots,
    /// A credential has characters that cannot stand in a header.
    #[error("the {what} contains characters that an HTTP header cannot carry")]
    NotAHeader {
        /// Which value.
        what: &'static str,
    },
    /// The TLS library refused its own defaults.
    #[error("the TLS library could not be set up")]
    Tls(#[source] rustls::Error),
}

fn tag_list(tags: &[String]) -> String {
    if tags.is_empty() {
        "no tag".to_owned()
    } else {
        tags.join(", ")
    }
}

/// Hides `secret` in a text of the server's, should it echo it.
pub(crate) fn scrub(text: &str, secret: &Secret) -> String {
    if secret.expose().is_empty() {
        text.to_owned()
    } else {
        text.replace(secret.expose(), "[redacted]")
    }
}
