//! An API server that costs little: objects, a long list, watches that stay silent, and sessions.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Barrier;

use crate::proxy::Certificate;
use crate::{serving, speech};

/// A `ConfigMap` of half a kilobyte, as it is asked for most.
const OBJECT: usize = 512;
/// Bytes of the long list, in pieces.
const PIECE: usize = 64 * 1024;
const PIECES: usize = 50 * 1024 * 1024 / PIECE;
/// As many as kube-apiserver allows on a connection.
const MAX_STREAMS: u32 = 250;

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

pub(crate) async fn serve(dir: &Path, sessions: usize) -> Result<()> {
    let tls = Certificate::make(dir, "api")?.server(&[b"h2", b"http/1.1"])?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    serving(listener.local_addr()?);
    let all = Arc::new(Barrier::new(sessions));
    loop {
        let (stream, _) = listener.accept().await?;
        let (tls, all) = (tls.clone(), all.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let stream = tailwharf_tls::accept(stream, tls).await?;
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(MAX_STREAMS);
            let service = service_fn(|request| {
                let answer = answer(request, &all);
                async { Ok::<_, Infallible>(answer) }
            });
            // A client that goes away ends its own connection only.
            let _ = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
            anyhow::Ok(())
        });
    }
}

fn answer(request: Request<Incoming>, all: &Arc<Barrier>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default();
    if path.ends_with("/exec") {
        let pod = path.rsplit('/').nth(1).unwrap_or_default().to_owned();
        tokio::spawn(speak(request, pod, all.clone()));
        return agreed();
    }
    let pieces: BoxStream<'static, Bytes> = if query.contains("watch=true") {
        stream::iter([Bytes::from_static(b"{\"type\":\"BOOKMARK\"}\n")])
            .chain(stream::pending())
            .boxed()
    } else if path == "/api/v1/pods" {
        let piece = Bytes::from(vec![b' '; PIECE]);
        stream::repeat(piece).take(PIECES).boxed()
    } else {
        stream::iter([Bytes::from_static(&[b' '; OBJECT])]).boxed()
    };
    let frames = pieces.map(|piece| Ok(Frame::data(piece))).boxed();
    let mut response = Response::new(StreamBody::new(frames));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// 101, with the newest protocol of kubectl.
fn agreed() -> Response<Body> {
    let mut response = Response::new(StreamBody::new(stream::empty().boxed()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONNECTION, "Upgrade"),
        (UPGRADE, "websocket"),
        (SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io"),
    ] {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    response
}

/// Says what the pod has to say, once all sessions are there.
async fn speak(request: Request<Incoming>, pod: String, all: Arc<Barrier>) -> Result<()> {
    let mut stream = TokioIo::new(hyper::upgrade::on(request).await?);
    all.wait().await;
    for piece in speech(&pod).chunks(1_000) {
        let length = u16::try_from(piece.len() + 1)?.to_be_bytes();
        // A binary frame whose first byte names the stream: standard output.
        let head = [0x82, 126, length[0], length[1], 1];
        stream.write_all(&[&head, piece].concat()).await?;
    }
    // A close frame with the code for a normal end.
    stream.write_all(&[0x88, 2, 0x03, 0xe8]).await?;
    stream.shutdown().await?;
    Ok(())
}
