//! What a well-behaved client and backend see.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::bed::{Bed, DEVICE, backend, to};

#[tokio::test]
async fn a_request_is_passed_on_with_who_asks() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let request = format!(
        "POST /a/b?c=d HTTP/1.1\r\nHost: {DEVICE}\r\nTailscale-User-Login: mallory\r\nx_forwarded_for: 9.9.9.9\r\n\
         X-Forwarded-For: 9.9.9.9\r\nConnection: close, x-gone\r\nX-Gone: 1\r\nContent-Length: 3\r\n\r\nabc"
    );
    let answer = bed.answer(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("one: POST /a/b?c=d HTTP/1.1\n") && answer.contains("body: 3\n"),
        "{answer}"
    );
    assert!(answer.contains("x-forwarded-for: 127.0.0.1\n"), "{answer}");
    assert!(
        answer.contains(&format!("x-forwarded-host: {DEVICE}\n")),
        "{answer}"
    );
    for gone in ["mallory", "9.9.9.9", "x-gone", "x-hop", "x-forwarded-proto"] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }
    assert!(answer.contains("x-end: 2\r\n"), "{answer}");
}

#[tokio::test]
async fn both_versions_are_served_under_tls() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let mut stream = bed.tls(b"http/1.1").await;
    let request = format!("GET /x HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = super::bed::read_all(stream).await;
    assert!(
        answer.contains("one: GET /x HTTP/1.1\n") && answer.contains("x-forwarded-proto: https\n"),
        "{answer}"
    );

    let stream = TokioIo::new(bed.tls(b"h2").await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    for (kind, version) in [("text/plain", "HTTP/1.1"), ("application/grpc", "HTTP/2.0")] {
        let request = Request::post(format!("https://{DEVICE}/x"))
            .header("content-type", kind)
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Full::new(Bytes::from_static(b"abcd")))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.contains(version) && text.contains("body: 4"), "{text}");
        assert!(text.contains("cookie: a=1; b=2"), "{text}");
    }
}

#[tokio::test]
async fn what_a_probe_finds_out_counts_also_for_what_is_served_meanwhile() {
    let spec = to(&[backend("one").await]);
    let mut bed = Bed::new(&spec);
    let probe = bed.server.probe();
    // As when the device gets its name.
    bed.apply(&spec);
    probe.await;
    assert_eq!(bed.server.trouble(), (None, true));
}

#[tokio::test]
async fn the_internet_is_served_only_if_it_is_to_be() {
    let mut spec = to(&[backend("one").await]);
    spec["funnel"] = true.into();
    let mut bed = Bed::new(&spec);
    let request = format!("GET /x HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close\r\n\r\n");
    let mut stream = bed.public().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = super::bed::read_all(stream).await;
    assert!(answer.contains("tailscale-funnel-request: ?1\n"), "{answer}");
    let mut kept = bed.public().await;
    spec["funnel"] = false.into();
    bed.apply(&spec);
    // What has no request under way ends with the port.
    assert_eq!(super::bed::read_all(&mut kept).await, "");
    assert!(
        tokio::net::TcpStream::connect(bed.at(0)).await.is_err(),
        "the port is still open"
    );
}

#[tokio::test]
async fn large_bodies_stream_both_ways_and_connections_are_used_again() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let stream = TokioIo::new(bed.tls(b"http/1.1").await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let body = Bytes::from(vec![7; 3 << 20]);
    for _ in 0..3 {
        let request = Request::post("/echo")
            .header("host", DEVICE)
            .body(Full::new(body.clone()))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
    assert_eq!(bed.carrier.metrics.connections.get(), 1);
}

#[tokio::test]
async fn a_connection_leaves_http() {
    let bed = Bed::new(&to(&[backend("one").await]));
    let mut stream = bed.tls(b"http/1.1").await;
    let ask = format!(
        "GET /ws HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly"
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let text = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(
        text.starts_with("http/1.1 101") && text.contains("upgrade: websocket"),
        "{text}"
    );
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"early");
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
    stream.shutdown().await.unwrap();
    assert_eq!(super::bed::read_all(stream).await, "");
}

#[tokio::test]
async fn pages_say_what_is_wrong() {
    let mut spec = to(&[backend("one").await]);
    spec["routes"] = json!([
        {"path": "/one", "pathType": "Prefix", "backend": "main"},
        {"path": "/none", "pathType": "Prefix", "backend": "none"},
        {"path": "/dead", "pathType": "Prefix", "backend": "dead"},
    ]);
    spec["backends"].as_array_mut().unwrap().extend([
        json!({"name": "none", "problem": "Service web has no ready endpoint."}),
        json!({"name": "dead", "addresses": [{"address": "127.0.0.1", "port": 1}, {"address": "127.0.0.2", "port": 1}]}),
    ]);
    spec["maxBodyBytes"] = 10.into();
    spec["responseTimeoutSeconds"] = 1.into();
    let bed = Bed::new(&spec);
    for (path, status, words) in [
        ("/other", "404", "No route"),
        ("/none", "503", "Service web has no ready endpoint."),
        ("/dead", "503", "takes no connections"),
        ("/one/../dead", "503", "takes no connections"),
        ("/%zz", "400", "path"),
    ] {
        let answer = bed.get(path).await;
        let found = answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(words);
        assert!(found, "{path}: {answer}");
    }
    let long =
        format!("POST /one HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close\r\nContent-Length: 11\r\n\r\n");
    assert!(bed.answer(long.as_bytes()).await.starts_with("HTTP/1.1 413 "));
    let chunked = format!(
        "POST /one HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n"
    );
    assert!(bed.answer(chunked.as_bytes()).await.starts_with("HTTP/1.1 413 "));
    let (trouble, _) = bed.server.trouble();
    assert_eq!(
        trouble.unwrap().reason,
        tailwharf_kube_types::IdentityReason::BackendWithoutAddress
    );
}

#[tokio::test]
async fn a_slow_or_breaking_backend_is_told_apart() {
    let mut spec = to(&[backend("one").await]);
    spec["responseTimeoutSeconds"] = 1.into();
    let mut bed = Bed::new(&spec);
    assert!(bed.get("/silent").await.starts_with("HTTP/1.1 504 "));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for answer in [
            "",
            "nonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    bed.apply(&to(&[address]));
    assert!(bed.get("/").await.starts_with("HTTP/1.1 502 "));
    assert!(bed.get("/").await.starts_with("HTTP/1.1 502 "));
    // The client must not take the beginning for the whole.
    let broken = bed.get("/").await;
    let cut = broken.starts_with("HTTP/1.1 200 ")
        && broken.contains("content-length: 100\r\n")
        && broken.len() < 300;
    assert!(broken.is_empty() || cut, "{broken}");
}

#[tokio::test]
async fn port_80_sends_clients_to_https() {
    let mut spec = to(&[]);
    spec["http"] = "Redirect".into();
    let mut bed = Bed::new(&spec);
    for host in [DEVICE, "web", "100.64.0.1:80"] {
        let request = format!("GET /a?b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = bed.answer(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
        assert!(
            answer.contains(&format!("location: https://{DEVICE}/a?b\r\n")),
            "{answer}"
        );
    }
    let address = bed.at(80);
    spec["http"] = "Closed".into();
    bed.apply(&spec);
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(address).await.is_err() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("port 80 is still open");
}

#[tokio::test]
async fn endpoints_come_and_go_without_a_failed_request() {
    let (one, two) = (backend("one").await, backend("two").await);
    let dead: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let mut bed = Bed::new(&to(&[one, two, dead]));
    let mut seen = [0, 0];
    for _ in 0..20 {
        let answer = bed.get("/").await;
        seen[0] += usize::from(answer.contains("one: GET"));
        seen[1] += usize::from(answer.contains("two: GET"));
    }
    assert!(
        seen[0] >= 5 && seen[1] >= 5 && seen[0] + seen[1] == 20,
        "{seen:?}"
    );
    bed.apply(&to(&[two]));
    for _ in 0..5 {
        assert!(bed.get("/").await.contains("two: GET"));
    }
}
