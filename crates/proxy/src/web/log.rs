//! The access log: one line for each request, with who made it.

use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::Instant;
use tracing::info;

use super::caller::Caller;

/// Longest target that is logged, in bytes.
const MAX_TARGET: usize = 1024;

/// One request, until its answer has ended.
#[derive(Debug)]
pub(super) struct Entry {
    identity: Arc<str>,
    caller: Arc<Caller>,
    method: Method,
    host: String,
    target: String,
    status: StatusCode,
    backend: Option<Arc<str>>,
    began: Instant,
}

impl Entry {
    /// A request that has just come.
    #[must_use]
    pub(super) fn new(
        identity: Arc<str>,
        caller: Arc<Caller>,
        method: Method,
        host: String,
        target: &str,
    ) -> Self {
        let mut end = target.len().min(MAX_TARGET);
        while !target.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            identity,
            caller,
            method,
            host,
            target: target[..end].to_owned(),
            status: StatusCode::OK,
            backend: None,
            began: Instant::now(),
        }
    }

    /// What it is answered with, and whose answer that is.
    pub(super) fn answered(&mut self, status: StatusCode, backend: Option<Arc<str>>) {
        self.status = status;
        self.backend = backend;
    }

    /// Writes the line.
    pub(super) fn write(&self, bytes: u64, complete: bool) {
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        info!(
            target: "access",
            identity = %self.identity,
            from = %self.caller.address(),
            user = self.caller.text(),
            method = %self.method,
            host = self.host,
            path = self.target,
            status = self.status.as_u16(),
            bytes,
            complete,
            micros,
            backend = self.backend.as_deref().unwrap_or_default(),
            "request"
        );
    }
}
