//! Connections from the internet: a gateway of the tailnet passes them on to a node.

use std::net::{IpAddr, SocketAddr};

use tailwharf_node::{Node, SocketError, TailnetNode, TcpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::common::{DEADLINE, Tailnet, eventually, v4};

/// The first port that a node's peer API takes.
const PORT: u16 = 41_080;
const NAME: &str = "server.tail1234.ts.net";

/// Asks a node's peer API to take a connection of `source` to `target`. Gives the head of the answer.
async fn pass_on(
    gateway: &Node,
    to: IpAddr,
    source: &str,
    target: &str,
) -> Result<(String, TcpStream), String> {
    let mut stream = gateway
        .dial_tcp(SocketAddr::new(to, PORT))
        .await
        .map_err(|error| error.to_string())?;
    let request = format!(
        "POST /v0/ingress HTTP/1.1\r\nHost: peer\r\nTailscale-Ingress-Src: {source}\r\nTailscale-Ingress-Target: {target}\r\nContent-Length: 0\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.map_err(|error| error.to_string())?);
    }
    Ok((String::from_utf8_lossy(&head).into_owned(), stream))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_passes_connections_on_and_nobody_else_does() {
    let tailnet = Tailnet::start().await;
    let server = tailnet.join("server", "tag:server").await;
    let client = tailnet.join("client", "tag:client").await;
    let gateway = tailnet.join("gateway", "tag:gateway").await;
    let to = IpAddr::V4(v4(&server.status().borrow()));
    let listener = server.listen_funnel(443).unwrap();
    assert_eq!(
        server.listen_funnel(443).unwrap_err(),
        SocketError::PortInUse(443)
    );

    let source = "203.0.113.7:4711";
    let target = format!("{NAME}:443");
    let (head, mut outside) = eventually("the gateway reaches the server", async || {
        pass_on(&gateway, to, source, &target).await
    })
    .await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut taken = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    assert_eq!(
        (taken.host.as_str(), taken.source),
        (NAME, source.parse().unwrap())
    );
    outside.write_all(b"hello").await.unwrap();
    let mut buffer = [0; 5];
    taken.stream.read_exact(&mut buffer).await.unwrap();
    taken.stream.write_all(&buffer).await.unwrap();
    outside.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello");
    // It is no connection to the peer API any more, and outlives what that allows.
    drop(outside);
    assert_eq!(
        timeout(DEADLINE, taken.stream.read(&mut buffer))
            .await
            .unwrap()
            .unwrap(),
        0
    );

    let refused = async |from: &Node, source: &str, target: &str| {
        let (head, _) = pass_on(from, to, source, target).await.unwrap();
        head.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    eventually("a client is turned down", async || {
        match pass_on(&client, to, source, &target).await {
            Ok((head, _)) if head.starts_with("HTTP/1.1 403") => Ok(()),
            other => Err(format!("{:?}", other.map(|(head, _)| head))),
        }
    })
    .await;
    assert_eq!(refused(&gateway, source, &format!("{NAME}:8443")).await, "403");
    assert_eq!(
        refused(&gateway, source, "other.tail1234.ts.net:443").await,
        "403"
    );
    assert_eq!(refused(&gateway, "nobody", &target).await, "400");
    drop(listener);
    assert_eq!(refused(&gateway, source, &target).await, "403");
    server.shutdown().await;
    assert_eq!(server.listen_funnel(443).unwrap_err(), SocketError::Closed);
}
