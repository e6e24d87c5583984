//! O: a web page in the browser of somebody on the tailnet must not speak for them.

use crate::backend::{Then, raw};
use crate::bed::{Bed, NAME};

#[tokio::test]
async fn o_01_pages_of_others_open_no_session() {
    let bed = Bed::answering(|_| {
        raw(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            Then::Echo,
        )
    })
    .await;
    let exec = |origin: &str| {
        format!(
            "GET /api/v1/namespaces/a/pods/p/exec HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Origin: {origin}\r\n\r\n"
        )
    };
    for origin in [
        "https://evil.example",
        "null",
        "https://proxy.tail1234.ts.net.evil.example",
        "",
    ] {
        bed.refused(exec(origin), 403).await;
    }
    for origin in [format!("https://{NAME}"), format!("https://{NAME}:443")] {
        assert_eq!(
            bed.send(exec(&origin)).await.code,
            101,
            "clients in Python send it"
        );
    }
}

#[tokio::test]
async fn o_02_forms_and_preflights_of_others_are_refused() {
    let bed = Bed::start().await;
    let post = format!(
        "POST /api/v1/namespaces/a/pods HTTP/1.1\r\nHost: {NAME}\r\nOrigin: https://evil.example\r\nContent-Type: text/plain\r\n\
         Content-Length: 2\r\n\r\n{{}}"
    );
    bed.refused(post, 403).await;
    let preflight = format!(
        "OPTIONS /api/v1/pods HTTP/1.1\r\nHost: {NAME}\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    );
    bed.refused(preflight, 403).await;
}

#[tokio::test]
async fn o_03_other_names_are_not_ours() {
    let bed = Bed::start().await;
    for host in [
        "evil.example",
        "proxy.tail1234.ts.net.evil.example",
        "localhost",
        "169.254.169.254",
    ] {
        let status = bed
            .refused(format!("GET /version HTTP/1.1\r\nHost: {host}\r\n\r\n"), 421)
            .await;
        assert!(status["message"].as_str().unwrap().contains(NAME), "{status}");
    }
}

#[tokio::test]
async fn o_04_what_a_browser_calls_cross_site_is_refused() {
    let bed = Bed::start().await;
    for site in ["cross-site", "same-site"] {
        bed.refused(
            format!("GET /version HTTP/1.1\r\nHost: {NAME}\r\nSec-Fetch-Site: {site}\r\n\r\n"),
            403,
        )
        .await;
    }
    for site in ["none", "same-origin"] {
        assert_eq!(
            bed.get("/version", &format!("Sec-Fetch-Site: {site}\r\n"))
                .await
                .code,
            200
        );
    }
}
