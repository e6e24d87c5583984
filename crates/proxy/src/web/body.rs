//! Bodies on their way through the proxy: a piece at a time, counted and bounded.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::caller::remove_claims;
use super::log::Entry;
use super::upstream::{Active, Http1};
use crate::metrics::Metrics;

/// Why a body could not be passed on.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// It is longer than is allowed.
    #[error("the request's body is longer than {0} bytes")]
    TooLong(u64),
    /// The connection on which it came broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// What became of a request's body, also for whoever has given it away.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// More came than is allowed.
    pub(super) too_long: AtomicBool,
    /// The client broke off, or what it sent is no body.
    pub(super) broken: AtomicBool,
}

/// The body of a request on its way to a backend.
#[derive(Debug)]
pub(super) struct Asked {
    body: Option<Incoming>,
    /// Bytes that may still come, of how many.
    room: Option<(u64, u64)>,
    verdict: Arc<Verdict>,
    metrics: Arc<Metrics>,
}

impl Asked {
    /// A body of at most `limit` bytes.
    #[must_use]
    pub(super) fn new(body: Incoming, limit: Option<u64>, metrics: Arc<Metrics>) -> Self {
        Self {
            body: (!body.is_end_stream()).then_some(body),
            room: limit.map(|limit| (limit, limit)),
            verdict: Arc::default(),
            metrics,
        }
    }

    /// Nothing, for a request that is made again.
    #[must_use]
    pub(super) fn empty(metrics: Arc<Metrics>) -> Self {
        Self {
            body: None,
            room: None,
            verdict: Arc::default(),
            metrics,
        }
    }

    /// Tells, also later, what became of it.
    #[must_use]
    pub(super) fn verdict(&self) -> Arc<Verdict> {
        self.verdict.clone()
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let Some(frame) = ready!(Pin::new(body).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let mut frame = frame.inspect_err(|_| this.verdict.broken.store(true, Ordering::Relaxed))?;
        if let Some(data) = frame.data_ref() {
            let length = data.remaining() as u64;
            this.metrics
                .traffic
                .to_backend
                .fetch_add(length, Ordering::Relaxed);
            if let Some((left, limit)) = &mut this.room {
                let Some(rest) = left.checked_sub(length) else {
                    this.verdict.too_long.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err(BodyError::TooLong(*limit))));
                };
                *left = rest;
            }
        } else if let Some(trailers) = frame.trailers_mut() {
            remove_claims(trailers);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// Where the body of an answer comes from.
enum Source {
    /// A page of our own, or nothing.
    Page(Full<Bytes>),
    /// A backend, by HTTP/1.1. The connection is driven by whoever reads the body.
    Http1(Box<Http1>, Incoming),
    /// A backend, by HTTP/2.
    Http2(
        Incoming,
        #[expect(dead_code, reason = "counts as long as it is held")] Active,
    ),
}

/// The body of an answer.
pub(super) struct Reply {
    source: Source,
    length: u64,
    entry: Option<Box<Entry>>,
    metrics: Option<Arc<Metrics>>,
}

impl Reply {
    fn new(source: Source, metrics: Option<Arc<Metrics>>) -> Self {
        Self {
            source,
            length: 0,
            entry: None,
            metrics,
        }
    }

    /// A text of our own.
    #[must_use]
    pub(super) fn page(text: Bytes) -> Self {
        Self::new(Source::Page(Full::new(text)), None)
    }

    /// What a backend answers by HTTP/1.1.
    #[must_use]
    pub(super) fn http1(connection: Box<Http1>, body: Incoming, metrics: Arc<Metrics>) -> Self {
        if body.is_end_stream() {
            connection.settle(&mut Context::from_waker(std::task::Waker::noop()));
            return Self::page(Bytes::new());
        }
        Self::new(Source::Http1(connection, body), Some(metrics))
    }

    /// What a backend answers by HTTP/2.
    #[must_use]
    pub(super) fn http2(body: Incoming, active: Active, metrics: Arc<Metrics>) -> Self {
        Self::new(Source::Http2(body, active), Some(metrics))
    }

    /// Writes a line into the log when the body has ended.
    #[must_use]
    pub(super) fn logged(mut self, entry: Option<Box<Entry>>) -> Self {
        self.entry = entry;
        self
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.source {
            Source::Page(text) => Pin::new(text).poll_frame(cx).map_err(|never| match never {}),
            Source::Http2(body, _) => Pin::new(body).poll_frame(cx),
            Source::Http1(connection, body) => match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => {
                    // The connection hands over what it reads once it has been asked.
                    connection.drive(cx);
                    Pin::new(body).poll_frame(cx)
                }
                ready => ready,
            },
        }
    }

    /// Gives the connection back once nothing more comes.
    fn release(&mut self, cx: &mut Context<'_>) {
        if matches!(&self.source, Source::Http1(_, body) if body.is_end_stream()) {
            let ended = std::mem::replace(&mut self.source, Source::Page(Full::default()));
            if let Source::Http1(connection, _) = ended {
                connection.settle(cx);
            }
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(this.poll_source(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let length = data.remaining() as u64;
            this.length += length;
            if let Some(metrics) = &this.metrics {
                let count: &AtomicU64 = &metrics.traffic.from_backend;
                count.fetch_add(length, Ordering::Relaxed);
            }
        }
        this.release(cx);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Page(text) => text.is_end_stream(),
            Source::Http1(_, body) | Source::Http2(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Page(text) => text.size_hint(),
            Source::Http1(_, body) | Source::Http2(body, _) => body.size_hint(),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.write(self.length, self.is_end_stream());
        }
    }
}
