//! Clients that mean harm: each is refused or bounded, and others are served all the while.

use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::bed::{Bed, DEVICE, LIMIT, backend, read_all, to};

#[tokio::test]
async fn requests_that_servers_read_differently_reach_no_backend_twice() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = smuggled.len();
    for head in [
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nContent-Length: {length}\r\nContent-Length: 0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nContent-Length: 0, {length}\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nContent-Length: +{length}\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nContent-Length : {length}\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nTransfer-Encoding: xchunked\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nTransfer-Encoding: chunked, identity\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nTransfer-Encoding:\x0bchunked\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {DEVICE}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        format!("POST / HTTP/1.0\r\nHost: {DEVICE}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {DEVICE}\r\nX: a\r\n b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {DEVICE}\r\nHost: other\r\n\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: {DEVICE}\r\nX\0Y: 1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {DEVICE}\r\nX: a\0b\r\n\r\n"),
        format!("GET http://me@{DEVICE}/ HTTP/1.1\r\nHost: {DEVICE}\r\n\r\n"),
        format!("CONNECT {DEVICE}:443 HTTP/1.1\r\nHost: {DEVICE}\r\n\r\n"),
        format!("GET / HTTP/3.7\r\nHost: {DEVICE}\r\n\r\n"),
    ] {
        let last = "GET /last HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        let answer = bed.answer(format!("{head}{smuggled}{last}").as_bytes()).await;
        assert!(!answer.contains("GET /smuggled"), "{head:?}: {answer}");
        let refused =
            answer.is_empty() || answer.contains("HTTP/1.1 400 ") || answer.contains("HTTP/1.0 400 ");
        assert!(refused, "{head:?}: {answer}");
    }
    assert!(bed.get("/").await.contains("one: GET"));
}

#[tokio::test]
async fn a_body_in_chunks_beside_a_length_is_one_request() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let request = format!(
        "POST /first HTTP/1.1\r\nHost: {DEVICE}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n\
         GET /second HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close\r\n\r\n"
    );
    let answer = bed.answer(request.as_bytes()).await;
    // As RFC 9112 has it: the chunks count, and nothing is read after them.
    assert!(
        answer.contains("POST /first") && answer.contains("body: 5"),
        "{answer}"
    );
    assert!(!answer.contains("GET /second"), "{answer}");
}

#[tokio::test]
async fn headers_are_bounded() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let one = format!(
        "GET / HTTP/1.1\r\nHost: {DEVICE}\r\nX: {}\r\n\r\n",
        "a".repeat(200_000)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: {DEVICE}\r\n{}\r\n",
        "X: a\r\n".repeat(500)
    );
    let line = format!("GET /{} HTTP/1.1\r\nHost: {DEVICE}\r\n\r\n", "a".repeat(200_000));
    for bytes in [one, many, line] {
        let answer = bed.answer(bytes.as_bytes()).await;
        let refused = ["431", "414", "400"]
            .iter()
            .any(|code| answer.starts_with(&format!("HTTP/1.1 {code}")));
        assert!(refused || answer.is_empty(), "{answer}");
    }
    let fits = format!(
        "GET / HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close\r\nX: {}\r\n\r\n",
        "a".repeat(30_000)
    );
    assert!(bed.answer(fits.as_bytes()).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn what_is_no_tls_is_counted_and_others_are_served() {
    let bed = Bed::new(&to(&[backend("one").await]));
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0x16, 3, 1, 0xff, 0xff],
        &[0; 64],
    ] {
        let mut stream = tokio::net::TcpStream::connect(bed.at(443)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        read_all(stream).await;
    }
    assert_eq!(bed.carrier.metrics.web.handshakes_failed.get(), 3);
    bed.tls(b"http/1.1").await;
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `GET /` of `web` by http, in HPACK without Huffman.
fn request_block() -> Vec<u8> {
    let mut block = vec![0x82, 0x84, 0x86, 0x01, 3];
    block.extend(b"web");
    block
}

#[tokio::test]
async fn resets_and_floods_of_http2_end_that_connection() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let mut resets = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for stream in 0..20_000_u32 {
        resets.extend(frame(1, 5, stream * 2 + 1, &request_block()));
        resets.extend(frame(3, 0, stream * 2 + 1, &8_u32.to_be_bytes()));
    }
    let mut continuations = [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 1, 1, &request_block())].concat();
    for _ in 0..2000 {
        continuations.extend(frame(
            9,
            0,
            1,
            &[&[0x00, 1, b'x', 100][..], &[b'a'; 100]].concat(),
        ));
    }
    let oversized = [PREFACE, &frame(4, 0, 0, &[]), &frame(0, 0, 1, &[0; 1 << 20])].concat();
    let broken = || bed.carrier.metrics.web.broken.get();
    for bytes in [resets, continuations, oversized] {
        let before = broken();
        let mut stream = bed.tls(b"h2").await;
        // The server may leave before it has read all.
        let _ = stream.write_all(&bytes).await;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection is still open");
        until("it is counted", || broken() > before).await;
    }
    assert!(bed.get("/").await.contains("one: GET"));
}

/// Waits for what another task does.
async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::task::yield_now().await;
    }
}

/// A header in HPACK, literal and without Huffman.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |text: &[u8]| u8::try_from(text.len()).unwrap();
    [&[0x00, length(name)][..], name, &[length(value)], value].concat()
}

#[tokio::test]
async fn headers_of_http2_that_are_none_elsewhere_reach_no_backend() {
    let bed = Bed::new(&to(&[backend("one").await]));
    for (name, value) in [
        (&b"x"[..], &b"a\r\nx-injected: 1"[..]),
        (b"x", b"a\nx-injected: 1"),
        (b"x", b"a\0"),
        (b"x\r\nx-injected", b"1"),
        (b"x-injected: 1\r\nx", b"1"),
        (b"X-Upper", b"1"),
        (b"x y", b"1"),
        (b"", b"1"),
        (b"connection", b"x-injected"),
        (b"transfer-encoding", b"chunked"),
        (b":path", b"/second"),
        (b":injected", b"1"),
        (b"host", b"other\r\n"),
        (b"content-length", b"5"),
    ] {
        let block = [request_block(), literal(name, value)].concat();
        let mut stream = bed.tls(b"h2").await;
        let bytes = [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 5, 1, &block)].concat();
        stream.write_all(&bytes).await.unwrap();
        let status = answer_of_stream(&mut stream).await;
        // 400 is in the static table of HPACK.
        assert!(
            status.is_none_or(|block| block.first() == Some(&0x8c)),
            "{:?}: {:?}",
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(value)
        );
    }
    assert!(bed.get("/").await.contains("one: GET"));
}

/// The block of the first HEADERS frame that comes; none when the stream is reset or the connection ends before.
async fn answer_of_stream(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let read = async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.ok()?;
            match head[3] {
                1 => return Some(payload),
                3 | 7 => return None,
                _ => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, read).await.expect("no answer at all")
}

#[tokio::test]
async fn what_a_client_claims_of_itself_reaches_no_backend() {
    let bed = Bed::new(&to(&[backend("one").await]));
    for name in [
        "Tailscale-User-Login",
        "tailscale_user_login",
        "TAILSCALE-User_Name",
        "Tailscale-Funnel-Request",
        "Tailscale-App-Capabilities",
        "X-Forwarded-For",
        "x_forwarded_for",
        "X-Forwarded-Proto",
        "X-Real-Ip",
        "Forwarded",
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {DEVICE}\r\n{name}: forged\r\nConnection: close, {name}\r\n\r\n"
        );
        let answer = bed.answer(request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && !answer.contains("forged"),
            "{name}: {answer}"
        );
    }
    // A client cannot have what we say of it taken out again.
    let request =
        format!("GET / HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close, X-Forwarded-For, Host\r\n\r\n");
    let answer = bed.answer(request.as_bytes()).await;
    assert!(
        answer.contains("x-forwarded-for: 127.0.0.1") && answer.contains("host: "),
        "{answer}"
    );
}

/// The clock runs ahead whenever nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn clients_that_are_slow_are_left() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let silent = tokio::net::TcpStream::connect(bed.at(443)).await.unwrap();
    let mut in_head = bed.plain().await;
    in_head
        .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nX: ")
        .await
        .unwrap();
    let mut in_body = bed.plain().await;
    in_body
        .write_all(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nab")
        .await
        .unwrap();
    for (what, mut stream) in [("handshake", silent), ("head", in_head), ("body", in_body)] {
        let mut all = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(3 * 60 * 60), stream.read_to_end(&mut all)).await;
        assert!(read.is_ok(), "one that is slow with its {what} is never left");
    }
}

#[tokio::test]
async fn frames_of_a_websocket_are_passed_on_without_being_held() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let ask =
        format!("GET /ws HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut stream = bed.tls(b"http/1.1").await;
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    // A frame that says it is as long as a frame can be, from one who takes nothing of the echo: it can be written to no end only if somebody holds it.
    stream.write_all(&[0x82, 0x7f]).await.unwrap();
    stream.write_all(&i64::MAX.to_be_bytes()).await.unwrap();
    let piece = vec![7; 1 << 20];
    let mut written = 0_usize;
    while let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&piece)).await {
        written += piece.len();
        assert!(written < 256 << 20, "somebody holds the frame");
    }
    assert_eq!(bed.carrier.metrics.web.upgraded.get(), 1);
    assert!(bed.get("/").await.contains("one: GET"), "others are served");
    drop(stream);
    until("the room is free again", || {
        bed.carrier.metrics.web.upgraded.get() == 0
    })
    .await;
}

#[tokio::test]
async fn requests_at_once_on_one_connection_are_bounded() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let stream = TokioIo::new(bed.tls(b"h2").await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut silent = Vec::new();
    for _ in 0..300 {
        let mut sender = sender.clone();
        silent.push(tokio::spawn(async move {
            let request = Request::get(format!("https://{DEVICE}/silent"))
                .body(Empty::<bytes::Bytes>::new())
                .unwrap();
            sender.send_request(request).await
        }));
    }
    let mut other = bed.tls(b"http/1.1").await;
    let request = format!("GET / HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close\r\n\r\n");
    other.write_all(request.as_bytes()).await.unwrap();
    let answer = read_all(other).await;
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {}", StatusCode::OK.as_u16())),
        "{answer}"
    );
    for task in silent {
        task.abort();
    }
}
