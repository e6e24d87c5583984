//! The way to the API server: its address, its certificate authority, the proxy's token, and connections that are kept.
//!
//! Short requests go over HTTP/1.1, one at a time on a connection, so that no large answer waits behind another. Watches and followed
//! logs share HTTP/2 connections, where one that waits costs next to nothing. Each upgrade has a connection of its own.

mod credentials;
mod dial;
mod http1;
mod http2;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::time::{MissedTickBehavior, interval, timeout};

pub use self::credentials::CredentialError;
use self::credentials::{Token, Trust};
use self::dial::Dialer;
pub(crate) use self::http1::Loan;
use crate::body::Outgoing;

/// How often files are looked at and idle connections are given up.
const UPKEEP: Duration = Duration::from_secs(10);

/// Where the API server is and how the proxy speaks with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// Host name or address of the API server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// PEM file of the authorities that sign its certificate. It is read again when it changes.
    pub ca_file: PathBuf,
    /// File of the token of an account that may do nothing but impersonate. It is read again when it changes. Without one, clients bring
    /// credentials of their own.
    pub token_file: Option<PathBuf>,
}

/// A request did not come back with an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// There is no connection.
    #[error("no connection to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke before the answer.
    #[error("the connection broke before the answer: {0}")]
    Broken(#[source] hyper::Error),
    /// No answer came in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// How long an answer will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// It ends by itself.
    Short,
    /// It goes on until somebody ends it.
    Long,
}

/// What keeps a connection from being used by others until an answer has ended.
#[derive(Debug)]
pub(crate) enum Hold {
    /// Of its own.
    Alone(Loan),
    /// Among others.
    Shared { _place: http2::Place },
}

impl Hold {
    /// The answer has ended as it should: the connection may be used again.
    pub(crate) fn done(self) {
        if let Self::Alone(loan) = self {
            loan.give_back();
        }
    }
}

/// The API server.
#[derive(Debug)]
pub(crate) struct Upstream {
    dialer: Arc<Dialer>,
    token: Option<Token>,
    singles: Arc<http1::Pool>,
    shared: http2::Pool,
}

impl Upstream {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub(crate) fn new(settings: &UpstreamSettings) -> Result<Self, CredentialError> {
        let dialer = Arc::new(Dialer::new(
            settings.host.clone(),
            settings.port,
            Trust::read(settings.ca_file.clone())?,
        )?);
        Ok(Self {
            singles: Arc::new(http1::Pool::new(dialer.clone())),
            shared: http2::Pool::new(dialer.clone()),
            dialer,
            token: settings.token_file.clone().map(Token::read).transpose()?,
        })
    }

    /// The proxy's own credential, with its `Bearer`; `None` when clients bring theirs.
    pub(crate) fn token(&self) -> Option<HeaderValue> {
        self.token.as_ref().map(Token::value)
    }

    /// The API server did not accept the token: it may have been replaced.
    pub(crate) fn token_refused(&self) {
        if let Some(token) = &self.token {
            token.refresh();
        }
    }

    /// Sends a request and waits for the head of the answer, at most for `limit`.
    pub(crate) async fn send(
        &self,
        request: Request<Outgoing>,
        class: Class,
        limit: Option<Duration>,
    ) -> Result<(Response<Incoming>, Hold), UpstreamError> {
        let sending = async {
            let request = match class {
                Class::Short => request,
                Class::Long => match self.shared.send(request).await? {
                    http2::Sent::Answered(response, place) => {
                        return Ok((response, Hold::Shared { _place: place }));
                    }
                    http2::Sent::NotSpoken(request) => request,
                },
            };
            let (response, loan) = self.singles.send(request).await?;
            Ok((response, Hold::Alone(loan)))
        };
        match limit {
            None => sending.await,
            Some(limit) => timeout(limit, sending)
                .await
                .unwrap_or(Err(UpstreamError::TimedOut(limit))),
        }
    }

    /// Sends a request for an upgrade on a connection of its own.
    pub(crate) async fn upgrade(
        &self,
        request: Request<Outgoing>,
        limit: Duration,
    ) -> Result<Response<Incoming>, UpstreamError> {
        timeout(limit, http1::upgrade(&self.dialer, request))
            .await
            .unwrap_or(Err(UpstreamError::TimedOut(limit)))
    }

    /// Looks after files and idle connections, for as long as it is polled.
    pub(crate) async fn maintain(&self) {
        let mut ticks = interval(UPKEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(token) = &self.token {
                token.refresh();
            }
            self.dialer.trust().refresh();
            self.singles.sweep();
            self.shared.sweep();
        }
    }
}
