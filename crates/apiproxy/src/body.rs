//! Bodies on their way: passed on piece by piece, counted, never gathered.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::audit::Record;
use crate::open::OpenStream;
use crate::upstream::Hold;

/// The body of a request to the API server. Trailers are left out: they could tell an identity.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// The client's.
    Relayed(Incoming),
    /// None.
    Nothing,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            Self::Relayed(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => Poll::Ready(None),
                polled => polled,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Relayed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Relayed(body) => body.size_hint(),
        }
    }
}

/// The body of an answer to a client.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The proxy's own words.
    Own(Option<Bytes>),
    /// The API server's.
    Relayed(Box<Relayed>),
}

/// The API server's answer, on its way to the client.
#[derive(Debug)]
pub(crate) struct Relayed {
    pub(crate) body: Incoming,
    /// Given back when the answer ends as it should.
    pub(crate) hold: Option<Hold>,
    /// Told when it ends, however it does.
    pub(crate) record: Option<Record>,
    /// An answer that goes on until somebody ends it.
    pub(crate) stream: Option<Pin<Box<Cut>>>,
}

/// Ends a stream when its caller may have it no more.
#[derive(Debug)]
pub(crate) struct Cut {
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    open: OpenStream,
}

impl Cut {
    pub(crate) fn new(open: OpenStream) -> Pin<Box<Self>> {
        Box::pin(Self {
            cut: Box::pin(open.cut().cancelled_owned()),
            open,
        })
    }
}

impl Relayed {
    fn end(&mut self, complete: bool) {
        self.stream = None;
        if let Some(hold) = self.hold.take()
            && complete
        {
            hold.done();
        }
        if let Some(record) = self.record.take() {
            record.complete();
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        let complete = self.body.is_end_stream();
        self.end(complete);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let relayed = match self.get_mut() {
            Self::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relayed(relayed) => relayed,
        };
        if let Some(stream) = &mut relayed.stream
            && stream.cut.as_mut().poll(cx).is_ready()
        {
            if let Some(record) = &mut relayed.record {
                record.note(&format!("the stream was ended: {}", stream.open.why()));
            }
            relayed.end(false);
            return Poll::Ready(None);
        }
        let polled = std::task::ready!(Pin::new(&mut relayed.body).poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => {
                if let (Some(data), Some(record)) = (frame.data_ref(), &mut relayed.record) {
                    record.sent(data.len() as u64);
                }
            }
            Some(Err(error)) => {
                if let Some(record) = &mut relayed.record {
                    record.note(&format!("the answer broke off: {error}"));
                }
                relayed.end(false);
            }
            None => relayed.end(true),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Relayed(relayed) => relayed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Relayed(relayed) => relayed.body.size_hint(),
        }
    }
}
