//! The way into a node: a request to its peer API that becomes a stream of the browser's bytes.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest head of an answer.
const HEAD_LIMIT: usize = 4096;

/// Why a node did not take a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngressError {
    #[error("the connection to the device broke off")]
    Io(#[from] io::Error),
    #[error("the device answered: {0}")]
    Refused(String),
    #[error("the device's answer is not HTTP")]
    Unreadable,
}

/// Asks a node to take a connection that `source` opened to `name:port`. Whatever is sent and received afterwards is the browser's.
///
/// # Errors
/// When the node does not take it. The caller bounds the time.
pub(crate) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    source: SocketAddr,
    name: &str,
    port: u16,
) -> Result<(), IngressError> {
    let request = format!(
        "POST /v0/ingress HTTP/1.1\r\nHost: peer\r\nTailscale-Ingress-Src: {source}\r\nTailscale-Ingress-Target: {name}:{port}\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_LIMIT {
            return Err(IngressError::Unreadable);
        }
        // One by one: what follows the head belongs to the browser. The server is never the first to speak in TLS, so there is nothing to save.
        head.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head);
    let status = text.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("101") if status.starts_with("HTTP/1.1 ") => Ok(()),
        Some(_) => Err(IngressError::Refused(status.chars().take(100).collect())),
        None => Err(IngressError::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &str) -> (Result<(), IngressError>, String, String) {
        let (mut gateway, mut node) = tokio::io::duplex(8192);
        node.write_all(answer.as_bytes()).await.unwrap();
        node.shutdown().await.unwrap();
        let source = "192.0.2.7:5000".parse().unwrap();
        let outcome = open(&mut gateway, source, "web.t.example", 443).await;
        let mut rest = String::new();
        gateway.read_to_string(&mut rest).await.unwrap();
        drop(gateway);
        let mut request = String::new();
        node.read_to_string(&mut request).await.unwrap();
        (outcome, request, rest)
    }

    #[tokio::test]
    async fn what_follows_the_head_is_left_for_the_browser() {
        let (outcome, request, rest) = answered("HTTP/1.1 101 Switching Protocols\r\n\r\nhello").await;
        outcome.unwrap();
        assert_eq!(rest, "hello");
        assert!(request.starts_with("POST /v0/ingress HTTP/1.1\r\n"), "{request}");
        for line in [
            "Tailscale-Ingress-Src: 192.0.2.7:5000",
            "Tailscale-Ingress-Target: web.t.example:443",
        ] {
            assert!(request.contains(line), "{request}");
        }
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_told_apart() {
        let (outcome, ..) = answered("HTTP/1.1 403 Forbidden\r\n\r\n").await;
        assert!(matches!(outcome, Err(IngressError::Refused(text)) if text.contains("403")));
        let (outcome, ..) = answered("SSH-2.0-x\r\n\r\n").await;
        assert!(matches!(outcome, Err(IngressError::Unreadable)));
        let (outcome, ..) = answered(&"x".repeat(5000)).await;
        assert!(matches!(outcome, Err(IngressError::Unreadable)));
        let (outcome, ..) = answered("HTTP/1.1 101").await;
        assert!(matches!(outcome, Err(IngressError::Io(_))));
    }
}
