//! B: where one request ends and the next begins.

use crate::bed::{Bed, NAME};

fn post(headers: &str, body: &str) -> String {
    format!("POST /api/v1/pods HTTP/1.1\r\nHost: {NAME}\r\n{headers}\r\n{body}")
}

async fn all_refused(requests: &[String]) {
    let bed = Bed::start().await;
    for request in requests {
        bed.refused(request, 400).await;
    }
}

#[tokio::test]
async fn b_01_length_and_coding_together_are_refused_and_the_connection_ends() {
    let body = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let bed = Bed::start().await;
    for headers in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let mut client = bed.connect().await;
        client.write(post(headers, body)).await;
        assert_eq!(client.response().await.code, 400);
        client.ends().await;
    }
    assert!(bed.backend.seen().is_empty());
}

#[tokio::test]
async fn b_02_a_length_is_one_number() {
    let lengths = [
        "5\r\nContent-Length: 6",
        "5\r\nContent-Length: 5",
        "+5",
        "0x5",
        "5,5",
        "18446744073709551616",
        "-1",
        "",
        "5 5",
    ];
    let requests = lengths.map(|length| post(&format!("Content-Length: {length}\r\n"), "hello"));
    all_refused(&requests).await;
}

#[tokio::test]
async fn b_03_the_only_coding_is_chunked() {
    let codings = [
        "chunked, identity",
        "xchunked",
        "\tchunked",
        "\"chunked\"",
        "chunked\r\nTransfer-Encoding: chunked",
        "gzip, chunked",
        "",
    ];
    let mut requests = codings
        .map(|coding| post(&format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n"))
        .to_vec();
    requests.push(post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0"));
    all_refused(&requests).await;
}

#[tokio::test]
async fn b_04_lines_and_chunks_have_one_form() {
    let mut requests = vec![
        format!("GET /version HTTP/1.1\nHost: {NAME}\n\n"),
        format!("GET /version HTTP/1.1\r\nHost: {NAME}\r\nX: a\rb\r\n\r\n"),
        format!("GET /version HTTP/1.1\r\nHost: {NAME}\nX: a\r\n\r\n"),
        format!("\r\nGET /version HTTP/1.1\r\nHost: {NAME}\r\n\r\n"),
        format!("GET  /version HTTP/1.1\r\nHost: {NAME}\r\n\r\n"),
        format!("GET /version HTTP/2.0\r\nHost: {NAME}\r\n\r\n"),
    ];
    requests.push("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned());
    all_refused(&requests).await;
    // The head of these is in order, so they may have begun at the API server; they never end there.
    let bed = Bed::start().await;
    for body in [
        "ffffffffffffffff\r\nx".to_owned(),
        format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(1_000_000)),
        "1\r\nxx\r\n0\r\n\r\n".to_owned(),
        "1\nx\r\n0\r\n\r\n".to_owned(),
        "-1\r\nx\r\n0\r\n\r\n".to_owned(),
    ] {
        let mut client = bed.connect().await;
        client.write(post("Transfer-Encoding: chunked\r\n", &body)).await;
        client.ends().await;
    }
    assert!(bed.backend.seen().is_empty());
}

#[tokio::test]
async fn b_05_the_target_is_a_path_at_one_of_our_names() {
    let bed = Bed::start().await;
    for (request, code) in [
        (
            format!("GET http://other/version HTTP/1.1\r\nHost: {NAME}\r\n\r\n"),
            421,
        ),
        (
            format!("CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}\r\n\r\n"),
            405,
        ),
        (format!("TRACE / HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), 405),
        (format!("OPTIONS * HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), 400),
        ("GET /version HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /version HTTP/1.0\r\n\r\n".to_owned(), 400),
        (
            format!("GET /version HTTP/1.1\r\nHost: {NAME}\r\nHost: {NAME}\r\n\r\n"),
            400,
        ),
        (
            "GET /version HTTP/1.1\r\nHost: user@other\r\n\r\n".to_owned(),
            421,
        ),
        (
            format!("GET /version HTTP/1.1\r\nHost: {NAME} other\r\n\r\n"),
            421,
        ),
    ] {
        bed.refused(request, code).await;
    }
    assert_eq!(
        bed.send(format!("GET /version HTTP/1.1\r\nHost: {NAME}:443\r\n\r\n"))
            .await
            .code,
        200
    );
}

#[tokio::test]
async fn b_06_bodies_where_none_is_usual_and_expectations() {
    let bed = Bed::start().await;
    for method in ["GET", "DELETE"] {
        let request =
            format!("{method} /api/v1/pods HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 2\r\n\r\n{{}}");
        assert_eq!(bed.send(request).await.code, 200);
    }
    assert!(bed.backend.seen().iter().all(|seen| seen.body == b"{}"));
    let mut client = bed.connect().await;
    client
        .write(post("Expect: 100-continue\r\nContent-Length: 2\r\n", ""))
        .await;
    assert_eq!(client.response().await.code, 100);
    client.write("{}").await;
    assert_eq!(client.response().await.code, 200);
    assert!(
        bed.backend
            .seen()
            .iter()
            .all(|seen| !seen.names().contains(&"expect".to_owned()))
    );
}

#[tokio::test]
async fn b_07_long_targets_go_on_up_to_a_limit() {
    let bed = Bed::start().await;
    let long = format!("/api/v1/pods?{}", "command=a&".repeat(4000));
    assert_eq!(bed.get(&long, "").await.code, 200);
    let longer = format!("/api/v1/pods?{}", "command=a&".repeat(100_000));
    let mut client = bed.connect().await;
    client
        .write(format!("GET {longer} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"))
        .await;
    client.ends().await;
    assert_eq!(bed.backend.seen().len(), 1);
}
