//! The peer API: open to visible peers whatever the packet filter says, and to each request as its sender may.

use std::net::{IpAddr, SocketAddr};

use tailwharf_node::{Node, Prefs, TailnetNode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Tailnet, eventually, v4};

/// The first port that a node's peer API takes.
const PORT: u16 = 41_080;

async fn get(client: &Node, to: IpAddr, path: &str, headers: &str) -> Result<String, String> {
    let mut stream = client
        .dial_tcp(SocketAddr::new(to, PORT))
        .await
        .map_err(|error| error.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .await
        .map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_greeted_and_resolves_names_only_if_it_may() {
    let tailnet = Tailnet::start().await;
    let server = tailnet.join("server", "tag:server").await;
    let client = tailnet.join("client", "tag:client").await;
    let to = IpAddr::V4(v4(&server.status().borrow()));

    let greeting = eventually("the server greets", async || {
        get(&client, to, "/", "Host: peer\r\n").await
    })
    .await;
    assert!(
        greeting.starts_with("HTTP/1.1 200") && greeting.contains("server.tail1234.ts.net"),
        "{greeting}"
    );
    assert!(greeting.contains("client.tail1234.ts.net"), "{greeting}");
    assert!(
        client.dial_tcp(SocketAddr::new(to, PORT + 1)).await.is_err(),
        "no other port is open"
    );

    for (path, headers, status) in [
        ("/", "Host: evil.example\r\n", 403),
        ("/", "Host: peer\r\nOrigin: https://evil.example\r\n", 403),
        ("/etc/passwd", "Host: peer\r\n", 404),
        ("/dns-query?dns=AAEC", "Host: peer\r\n", 404),
    ] {
        let answer = get(&client, to, path, headers).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {answer}"
        );
    }
    server.set_prefs(Prefs {
        hostname: "server".into(),
        resolves_for_peers: true,
        ..Prefs::default()
    });
    let answer = get(&client, to, "/dns-query?dns=AAEC", "Host: peer\r\n")
        .await
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 403"),
        "the policy has no exit node: {answer}"
    );
}
