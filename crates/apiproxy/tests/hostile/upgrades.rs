//! F: nothing flows before both sides have agreed.

use crate::backend::{Then, answer, raw};
use crate::bed::{Bed, NAME, eventually};

const EXEC: &str = "/api/v1/namespaces/a/pods/p/exec?command=sh&stdin=true";
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";

fn upgrade(more: &str) -> String {
    format!(
        "GET {EXEC} HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Protocol: v5.channel.k8s.io,v4.channel.k8s.io\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn f_00_bytes_flow_both_ways_and_each_end_is_passed_on() {
    let bed = Bed::answering(|_| raw(AGREED, Then::Echo)).await;
    let mut client = bed.connect().await;
    client.write(upgrade("")).await;
    let response = client.response().await;
    assert_eq!(response.code, 101);
    assert_eq!(response.header("upgrade").as_deref(), Some("websocket"));
    assert_eq!(
        response.header("sec-websocket-protocol").as_deref(),
        Some("v5.channel.k8s.io")
    );
    client.write("hello").await;
    client.until("HELLO").await;
    assert_eq!(bed.proxy.open_streams(), 1);
    tokio::io::AsyncWriteExt::shutdown(&mut client.0).await.unwrap();
    client.ends().await;
    eventually("nothing is left of the session", || bed.proxy.open_streams() == 0).await;
    eventually("the session is in the audit log", || {
        bed.audit()
            .iter()
            .any(|line| line["responseStatus"]["code"] == 101)
    })
    .await;
}

#[tokio::test]
async fn f_01_a_refusal_is_an_answer_and_no_tunnel() {
    for (status, expected) in [
        ("403 Forbidden", 403),
        ("500 Internal Server Error", 500),
        ("200 OK", 502),
        ("204 No Content", 502),
    ] {
        let bed = Bed::answering(move |_| {
            let body = if status.starts_with("204") {
                ""
            } else {
                r#"{"kind":"Status","status":"Failure","code":0}"#
            };
            let mut reply = answer(status, "", body);
            reply.then = Then::Echo;
            reply
        })
        .await;
        let mut client = bed.connect().await;
        client
            .write(format!(
                "{}GET /api/v1/secrets HTTP/1.1\r\nHost: {NAME}\r\n\r\n",
                upgrade("")
            ))
            .await;
        let response = client.response().await;
        assert_eq!(response.code, expected, "{response:?}");
        client.ends().await;
        bed.backend.only();
        assert!(
            bed.backend.raw.lock().unwrap().is_empty(),
            "what came early must not arrive"
        );
        eventually("nothing is left of it", || bed.proxy.open_streams() == 0).await;
    }
}

#[tokio::test]
async fn f_02_early_bytes_arrive_after_the_agreement() {
    let bed = Bed::answering(|_| raw(&format!("{AGREED}early answer"), Then::Echo)).await;
    let mut client = bed.connect().await;
    client.write(format!("{}early request", upgrade(""))).await;
    assert_eq!(client.response().await.code, 101);
    client.until("early answerEARLY REQUEST").await;
    assert_eq!(&*bed.backend.raw.lock().unwrap(), b"early request");
}

#[tokio::test]
async fn f_03_another_agreement_than_asked_for_is_none() {
    for agreed in [
        AGREED.replace("websocket", "SPDY/3.1"),
        AGREED.replace("Upgrade: websocket\r\n", ""),
        AGREED.replace("v5.channel", "v6.channel"),
    ] {
        let bed = Bed::answering(move |_| raw(&agreed, Then::Echo)).await;
        let mut client = bed.connect().await;
        client.write(format!("{}early", upgrade(""))).await;
        assert_eq!(client.response().await.code, 502);
        client.ends().await;
        assert!(bed.backend.raw.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn f_04_an_upgrade_is_not_sent_elsewhere() {
    for code in [
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let bed = Bed::answering(move |_| answer(code, "Location: https://kubelet:10250/exec\r\n", "")).await;
        let response = bed.send(upgrade("")).await;
        assert_eq!(response.code, 502);
        assert_eq!(response.header("location"), None);
    }
}

#[tokio::test]
async fn f_05_redirects_of_plain_requests_are_passed_and_never_followed() {
    let bed = Bed::answering(|_| answer("302 Found", "Location: https://elsewhere/\r\n", "")).await;
    assert_eq!(bed.get("/api/v1/pods", "").await.code, 302);
    bed.backend.only();
}

#[tokio::test]
async fn f_06_other_upgrades_are_never_tunnelled() {
    let bed = Bed::answering(|_| raw(AGREED, Then::Echo)).await;
    for path in [EXEC, "/version"] {
        let with = |value: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: {value}\r\n\r\n")
        };
        bed.refused(with("websocket, SPDY/3.1"), 400).await;
        bed.refused(with("websocket\r\nUpgrade: SPDY/3.1"), 400).await;
    }
    bed.refused(
        format!("GET /version HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        400,
    )
    .await;
    bed.refused(
        format!("GET {EXEC} HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\n\r\n"),
        400,
    )
    .await;
    bed.refused(
        format!("PUT {EXEC} HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        400,
    )
    .await;
    let bed = Bed::start().await;
    for value in ["h2c", "foo", "H2C"] {
        let response = bed
            .get(
                "/version",
                &format!("Connection: Upgrade\r\nUpgrade: {value}\r\n"),
            )
            .await;
        assert_eq!(response.code, 200);
    }
    assert!(
        bed.backend
            .seen()
            .iter()
            .all(|seen| !seen.names().contains(&"upgrade".to_owned()))
    );
    let bed = Bed::answering(|_| raw(&AGREED.replace("websocket", "WebSocket"), Then::Echo)).await;
    assert_eq!(
        bed.send(upgrade("").replace("Upgrade: websocket", "Upgrade: WEBSOCKET"))
            .await
            .code,
        101
    );
}

#[tokio::test]
async fn f_07_an_upgrade_has_no_body() {
    let bed = Bed::answering(|_| raw(AGREED, Then::Echo)).await;
    bed.refused(format!("{}hello", upgrade("Content-Length: 5\r\n")), 400)
        .await;
    bed.refused(
        format!("{}0\r\n\r\n", upgrade("Transfer-Encoding: chunked\r\n")),
        400,
    )
    .await;
    assert_eq!(bed.send(upgrade("Content-Length: 0\r\n")).await.code, 101);
}

#[tokio::test]
async fn f_09_whoever_dies_nothing_is_left() {
    let bed = Bed::answering(|_| raw(AGREED, Then::Close)).await;
    let mut client = bed.connect().await;
    client.write(upgrade("")).await;
    assert_eq!(client.response().await.code, 101);
    client.ends().await;
    drop(client);
    eventually("the API server has closed", || bed.proxy.open_streams() == 0).await;
    let bed = Bed::answering(|_| raw(AGREED, Then::Echo)).await;
    let mut client = bed.connect().await;
    client.write(upgrade("")).await;
    assert_eq!(client.response().await.code, 101);
    drop(client);
    eventually("the client is gone", || bed.proxy.open_streams() == 0).await;
}
