//! What the API, the administrator's socket and the web console share.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use url::Url;

use crate::config::Limits;
use crate::http::{Rate, Source};
use crate::model::CredentialId;
use crate::oidc::Provider;
use crate::ops::Operations;
use crate::web::Sessions;
use crate::workload::Issuers;

/// Failed attempts of one source to prove who it is: so many at once, and so many a second later on.
const ATTEMPTS: (f64, f64) = (30.0, 1.0);
/// Seconds' worth of calls that a credential may make at once.
const CALL_BURST: f64 = 2.0;

/// One coordinator, as its HTTP handlers see it.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) operations: Operations,
    /// The address by which people and nodes reach this server.
    pub(crate) url: Url,
    pub(crate) issuers: Issuers,
    /// By whom people sign in, if not by links alone.
    pub(crate) provider: Option<Provider>,
    /// Who is signed in at the console.
    pub(crate) sessions: Sessions,
    /// Failed attempts to prove who one is.
    attempts: Rate<Source>,
    /// Calls of the API by credential.
    calls: Rate<CredentialId>,
}

/// Too much was tried. What remains to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany(pub(crate) Duration);

impl Site {
    pub(crate) fn new(
        operations: Operations,
        url: Url,
        issuers: Issuers,
        provider: Option<Provider>,
        limits: &Limits,
    ) -> Self {
        let calls = f64::from(limits.calls_per_second);
        Self {
            operations,
            url,
            issuers,
            provider,
            sessions: Sessions::default(),
            attempts: Rate::new(ATTEMPTS.1, ATTEMPTS.0),
            calls: Rate::new(calls, calls * CALL_BURST),
        }
    }

    /// Refuses a source that failed too often to prove who it is.
    pub(crate) fn may_try(&self, from: Origin) -> Result<(), TooMany> {
        self.attempts.check(&from.0).map_err(TooMany)
    }

    /// Counts a failed attempt.
    pub(crate) fn failed(&self, from: Origin) {
        self.attempts.count(from.0);
    }

    /// Counts a call by a credential, or refuses it.
    pub(crate) fn count_call(&self, by: &CredentialId) -> Result<(), TooMany> {
        self.calls.check(by).map_err(TooMany)?;
        self.calls.count(by.clone());
        Ok(())
    }
}

/// Where a request comes from. All that come over the administrator's socket count as one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin(Source);

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let source = parts.extensions.get::<Source>().copied();
        Ok(Self(source.unwrap_or_else(|| {
            Source::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        })))
    }
}
