//! D, and the rest of H, B and X: what stays open, what is used up, and what is replaced meanwhile.

use serde_json::json;
use tailwharf_apiproxy::OWN_CAPABILITY;

use crate::backend::{Then, answer, raw};
use crate::bed::{Bed, NAME, alice, device, eventually, groups};

const WATCH: &str = "/api/v1/pods?watch=1";

fn watching() -> impl Fn(&crate::backend::Seen) -> crate::backend::Reply + Send + Sync {
    |_| {
        raw(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nevent\n\r\n",
            Then::Hang,
        )
    }
}

async fn watch(bed: &Bed) -> crate::bed::Client {
    let mut client = bed.connect().await;
    client
        .write(format!("GET {WATCH} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"))
        .await;
    assert_eq!(client.response().await.code, 200);
    client.until("event").await;
    client
}

#[tokio::test]
async fn h_18_a_grant_that_is_gone_ends_what_it_allowed() {
    let bed = Bed::answering(watching()).await;
    let mut client = watch(&bed).await;
    bed.tailnet.set(Some(device("alice@example.com", &[])));
    client.until("0\r\n\r\n").await;
    eventually("the watch has ended", || bed.proxy.open_streams() == 0).await;
    eventually("the log says why", || {
        let notes = |line: &serde_json::Value| line["annotations"]["tailwharf.dev/notes"].to_string();
        bed.audit()
            .iter()
            .any(|line| notes(line).contains("grants or device"))
    })
    .await;
    // The device is gone.
    bed.tailnet.set(Some(alice()));
    let mut client = watch(&bed).await;
    bed.tailnet.set(None);
    client.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn h_18_a_session_ends_with_its_grant_too() {
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    let bed = Bed::answering(move |_| raw(agreed, Then::Echo)).await;
    let mut client = bed.connect().await;
    client
        .write(format!(
            "POST /api/v1/namespaces/a/pods/p/exec HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
        ))
        .await;
    assert_eq!(client.response().await.code, 101);
    bed.tailnet
        .set(Some(device("alice@example.com", &[groups(&["other"])])));
    client.ends().await;
}

#[tokio::test]
async fn h_18_streams_stay_where_the_policy_says_so() {
    let bed = Bed::answering(watching()).await;
    let keep = (OWN_CAPABILITY, json!([{"keepStreams": true}]));
    bed.tailnet.set(Some(device(
        "alice@example.com",
        &[groups(&["team"]), keep.clone()],
    )));
    let _kept = watch(&bed).await;
    bed.tailnet
        .set(Some(device("alice@example.com", &[groups(&["other"])])));
    let mut newer = watch(&bed).await;
    bed.tailnet
        .set(Some(device("alice@example.com", &[groups(&["third"])])));
    newer.until("0\r\n\r\n").await;
    assert_eq!(bed.proxy.open_streams(), 1, "the first one goes on");
}

#[tokio::test]
async fn d_04_one_user_has_a_limit_and_others_have_their_own() {
    let bed = Bed::answering(watching()).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(watch(&bed).await);
    }
    let status = bed
        .refused(format!("GET {WATCH} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), 429)
        .await;
    assert_eq!(status["reason"], "TooManyRequests");
    // Another user does not feel it. The first one's streams end, since the device is another's now.
    bed.tailnet.set(Some(device("bob@example.com", &[])));
    let _theirs = watch(&bed).await;
}

#[tokio::test]
async fn d_06_storms_of_the_api_server_are_passed_on_as_they_are() {
    let bed = Bed::answering(|_| answer("429 Too Many Requests", "Retry-After: 7\r\n", "{}")).await;
    let response = bed.get("/api/v1/pods", "").await;
    assert_eq!(
        (response.code, response.header("retry-after").as_deref()),
        (429, Some("7"))
    );
    bed.backend.only();
}

#[tokio::test]
async fn d_00_the_api_server_is_away() {
    let bed = Bed::tuned(
        |_| answer("200 OK", "", "{}"),
        |settings| settings.upstream.port = 1,
    )
    .await;
    let response = bed.get("/api/v1/pods", "").await;
    assert_eq!(response.code, 503);
    assert!(
        response.status()["message"]
            .as_str()
            .unwrap()
            .contains("cannot reach the API server")
    );
    let bed = Bed::answering(|_| raw("", Then::Close)).await;
    assert_eq!(bed.get("/api/v1/pods", "").await.code, 503);
    let bed = Bed::answering(|_| raw("nonsense\r\n\r\n", Then::Close)).await;
    assert_eq!(bed.get("/api/v1/pods", "").await.code, 503);
}

#[tokio::test]
async fn x_10_a_new_token_is_used_and_a_refused_one_is_not_the_callers_fault() {
    let bed = Bed::answering(|seen| {
        if seen.all("authorization") == ["Bearer new-token"] {
            answer("200 OK", "", "{}")
        } else {
            answer("401 Unauthorized", "", "{}")
        }
    })
    .await;
    std::fs::write(&bed.backend.token, "new-token").unwrap();
    let first = bed.get("/api/v1/pods", "").await;
    assert!([200, 503].contains(&first.code), "{first:?}");
    assert_eq!(
        bed.get("/api/v1/pods", "").await.code,
        200,
        "the file was read again at once"
    );
}

#[tokio::test]
async fn b_08_a_slow_reader_holds_up_the_api_server_and_not_the_memory() {
    let bed = Bed::answering(|_| {
        let mut reply = answer("200 OK", "", &"x".repeat(64 << 20));
        reply.then = Then::Next;
        reply
    })
    .await;
    let mut client = bed.connect().await;
    client
        .write(format!("GET /api/v1/pods HTTP/1.1\r\nHost: {NAME}\r\n\r\n"))
        .await;
    let response = client.response().await;
    assert_eq!(response.body.len(), 64 << 20);
}

#[tokio::test]
async fn d_07_the_proxy_stops_and_lets_requests_end() {
    let bed = Bed::answering(watching()).await;
    let mut client = watch(&bed).await;
    let mut idle = bed.connect().await;
    bed.stop.cancel();
    idle.ends().await;
    client.ends().await;
}

/// Ten thousand, or as many as the files of this process allow: each connection takes two.
fn connections() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let soft: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    10_000.min((soft.saturating_sub(200)) / 2)
}

#[tokio::test]
async fn d_03_connections_that_say_nothing_keep_nobody_out() {
    let bed = Bed::start().await;
    let mut idle = Vec::new();
    for number in 0..connections() {
        let addr = if number % 2 == 0 { bed.secured } else { bed.addr };
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        if number % 3 == 0 {
            // The begin of a handshake, or of a head.
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"\x16\x03\x01")
                .await
                .unwrap();
        }
        idle.push(stream);
    }
    assert_eq!(bed.get("/api/v1/pods", "").await.code, 200);
    drop(idle);
}

#[tokio::test]
async fn d_05_a_long_body_goes_through_and_is_not_in_the_log() {
    let bed = Bed::start().await;
    let mut client = bed.connect().await;
    client
        .write(format!("POST /api/v1/namespaces/a/configmaps HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n"))
        .await;
    let chunk = format!("10000\r\n{}\r\n", "secret!!".repeat(8192));
    for _ in 0..128 {
        client.write(&chunk).await;
    }
    client.write("0\r\n\r\n").await;
    assert_eq!(client.response().await.code, 200);
    assert_eq!(bed.backend.only().body.len(), 8 << 20);
    eventually("the log has it", || bed.audit().len() == 1).await;
    assert!(!bed.audit()[0].to_string().contains("secret!!"));
}

#[tokio::test]
async fn x_03_another_cluster_is_not_reached_through_this_one() {
    let bed = Bed::start().await;
    for host in ["other.tail1234.ts.net", "kubernetes.default.svc", "127.0.0.2"] {
        bed.refused(format!("GET /api/v1/pods HTTP/1.1\r\nHost: {host}\r\n\r\n"), 421)
            .await;
    }
    bed.refused(
        format!("GET https://other/api/v1/pods HTTP/1.1\r\nHost: {NAME}\r\n\r\n"),
        421,
    )
    .await;
}

#[tokio::test]
async fn x_04_nobody_says_for_another_where_a_connection_comes_from() {
    let bed = Bed::start().await;
    let request = format!("GET /api/v1/pods HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    let mut client = bed.connect().await;
    client
        .write(format!("PROXY TCP4 100.64.0.9 100.64.0.1 1 443\r\n{request}"))
        .await;
    client.ends().await;
    let mut client = bed.connect().await;
    let version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x64\x40\0\x09\x64\x40\0\x01\0\x01\x01\xbb";
    client.write([&version_2[..], request.as_bytes()].concat()).await;
    client.ends().await;
    assert!(bed.backend.seen().is_empty());
}

#[tokio::test]
async fn x_09_bodies_and_tokens_are_never_in_the_log() {
    let bed = Bed::answering(|_| answer("200 OK", "", r#"{"data":{"k":"dG9wc2VjcmV0"}}"#)).await;
    for (method, path, kind) in [
        ("POST", "/api/v1/namespaces/a/secrets", "application/json"),
        (
            "PATCH",
            "/api/v1/namespaces/a/secrets/s",
            "application/strategic-merge-patch+json",
        ),
        (
            "PATCH",
            "/api/v1/namespaces/a/secrets/s",
            "application/apply-patch+yaml",
        ),
        (
            "POST",
            "/api/v1/namespaces/a/serviceaccounts/s/token",
            "application/json",
        ),
    ] {
        let body = "dG9wc2VjcmV0";
        let response = bed
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: {kind}\r\nAuthorization: Bearer dG9wc2VjcmV0\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        assert_eq!(response.code, 200);
    }
    eventually("the log has all", || bed.audit().len() == 4).await;
    assert!(
        bed.audit()
            .iter()
            .all(|line| !line.to_string().contains("dG9wc2VjcmV0"))
    );
}
