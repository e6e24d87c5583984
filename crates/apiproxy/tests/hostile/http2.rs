//! The same over HTTP/2, and what only HTTP/2 can do to a proxy.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::bed::{Bed, NAME, eventually};

/// Takes any certificate: these tests are about what is said, not to whom.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tailwharf_tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

async fn secured(bed: &Bed) -> impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {
    let mut config = ClientConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(bed.secured).await.unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let tls = tailwharf_tls::connect(tcp, Arc::new(config), name).await.unwrap();
    assert_eq!(tls.alpn(), Some(&b"h2"[..]));
    tls
}

async fn connect<B>(bed: &Bed) -> SendRequest<B>
where
    B: Body<Data = Bytes, Error = std::convert::Infallible> + Unpin + Send + 'static,
{
    let tls = secured(bed).await;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

fn get(path: &str) -> http::request::Builder {
    Request::builder().uri(format!("https://{NAME}{path}"))
}

#[tokio::test]
async fn h_00_requests_over_http2_are_the_same() {
    let bed = Bed::start().await;
    let mut sender = connect(&bed).await;
    let response = sender
        .send_request(get("/api/v1/pods").body(Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{}");
    let seen = bed.backend.only();
    assert_eq!(seen.all("host"), [NAME]);
    assert_eq!(seen.all("impersonate-user"), ["alice@example.com"]);
    let request = get("/api/v1/pods")
        .header("Impersonate-User", "bob")
        .body(Empty::new())
        .unwrap();
    assert_eq!(
        sender.send_request(request).await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
    let request = Request::builder()
        .uri("https://evil.example/version")
        .body(Empty::new())
        .unwrap();
    assert_eq!(
        sender.send_request(request).await.unwrap().status(),
        StatusCode::MISDIRECTED_REQUEST
    );
    bed.backend.only();
}

#[tokio::test]
async fn h_05_trailers_over_http2_do_not_go_on() {
    let bed = Bed::start().await;
    let mut sender = connect(&bed).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("impersonate-user", "bob".parse().unwrap());
    let frames = [Ok(Frame::data(Bytes::from("{}"))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures::stream::iter(frames));
    let request = get("/api/v1/pods").method(Method::POST).body(body).unwrap();
    assert_eq!(
        sender.send_request(request).await.unwrap().status(),
        StatusCode::OK
    );
    let seen = bed.backend.only();
    assert_eq!(
        (&seen.body[..], seen.all("impersonate-user")),
        (&b"{}"[..], vec!["alice@example.com".to_owned()])
    );
}

#[tokio::test]
async fn f_08_upgrades_inside_http2_are_refused() {
    let bed = Bed::start().await;
    let mut sender = connect(&bed).await;
    let request = get("/api/v1/namespaces/a/pods/p/exec")
        .method(Method::CONNECT)
        .body(Empty::<Bytes>::new())
        .unwrap();
    // The library may not even send what is no plain CONNECT; if it does, it is refused.
    if let Ok(response) = sender.send_request(request).await {
        assert!(response.status().is_client_error(), "{response:?}");
    }
    let mut sender = connect(&bed).await;
    let request = get("/version")
        .header("sec-websocket-version", "13")
        .body(Empty::<Bytes>::new())
        .unwrap();
    assert_eq!(
        sender.send_request(request).await.unwrap().status(),
        StatusCode::OK
    );
    assert!(bed.backend.seen().iter().all(|seen| !seen.head.contains("exec")));
}

#[tokio::test]
async fn d_01_requests_that_are_taken_back_at_once_leave_nothing() {
    let bed = Bed::start().await;
    let sender = connect(&bed).await;
    for _ in 0..500 {
        let mut sender = sender.clone();
        let request = get("/api/v1/pods?watch=1").body(Empty::<Bytes>::new()).unwrap();
        let sent = tokio::spawn(async move { sender.send_request(request).await.map(drop) });
        tokio::task::yield_now().await;
        sent.abort();
    }
    drop(sender);
    eventually("nothing is left", || bed.proxy.open_streams() == 0).await;
    let mut sender = connect(&bed).await;
    let response = sender
        .send_request(get("/api/v1/pods").body(Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK, "others do not feel it");
}

/// Whoever floods is cut off within a bounded time, and others do not feel it.
#[tokio::test]
async fn d_02_floods_of_frames_end_their_own_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let bed = Bed::start().await;
    // HEADERS without an end, then CONTINUATION; PING; SETTINGS; empty DATA on no stream.
    let headers = b"\0\0\x01\x01\0\0\0\0\x01\x82".to_vec();
    let continuation = [&b"\0\x40\0\x09\0\0\0\0\x01"[..], &[0; 16 * 1024]].concat();
    for (begin, flood) in [
        (headers, continuation),
        (Vec::new(), b"\0\0\x06\x04\0\0\0\0\0\0\x01\0\0\x10\0".repeat(1000)),
        (Vec::new(), b"\0\0\0\0\0\0\0\0\x09".repeat(1000)),
    ] {
        let (mut reader, mut writer) = tokio::io::split(secured(&bed).await);
        writer
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        writer.write_all(&begin).await.unwrap();
        // Nobody reads what the proxy says, as whoever floods would do.
        let flooding = async {
            for _ in 0..4096 {
                if writer.write_all(&flood).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
            }
        };
        let stuck = tokio::time::timeout(std::time::Duration::from_secs(2), flooding)
            .await
            .is_err();
        if !stuck {
            let until_the_end = async {
                let mut rest = [0; 4096];
                while matches!(reader.read(&mut rest).await, Ok(1..)) {}
            };
            tokio::time::timeout(crate::bed::DEADLINE, until_the_end)
                .await
                .unwrap();
        }
    }
    let mut sender = connect(&bed).await;
    let response = sender
        .send_request(get("/api/v1/pods").body(Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
