//! Funnel: connections from the internet, which gateways of the tailnet pass on through the peer API.
//!
//! A gateway posts to `/v0/ingress` and names the client's address and what the client asked for; after the answer 101 the connection is the client's, whose
//! TLS is for the application to terminate. Who may do so is a capability that the packet filter grants at this node.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::StatusCode;
use tailwharf_wire::tailcfg::CapMap;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

use crate::api::SocketError;
use crate::control::Announced;
use crate::sync::lock;
use crate::tcp::TcpStream;

/// The capability of a peer that is a gateway.
pub(crate) const GATEWAY: &str = "https://tailscale.com/cap/ingress";
/// The capability of a node that may be reached from the internet.
const FUNNEL: &str = "funnel";
/// The capability that names on which ports, as a query of the URL that its name is.
const FUNNEL_PORTS: &str = "https://tailscale.com/cap/funnel-ports?ports=";
/// The path that gateways post to.
const PATH: &str = "/v0/ingress";
const SOURCE: &str = "tailscale-ingress-src";
const TARGET: &str = "tailscale-ingress-target";
/// Connections of one port that wait to be accepted; more are turned down.
const BACKLOG: usize = 128;

/// The ports on which a node may be reached from the internet; none if it may not.
pub(crate) fn ports(cap_map: &CapMap) -> Vec<RangeInclusive<u16>> {
    if !cap_map.contains_key(FUNNEL) {
        return Vec::new();
    }
    let lists = cap_map.keys().filter_map(|cap| cap.strip_prefix(FUNNEL_PORTS));
    lists
        .flat_map(|list| list.split(','))
        .filter_map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some(first..=last)
        })
        .collect()
}

/// A connection from the internet. Dropping it closes it.
#[derive(Debug)]
pub struct FunnelConnection {
    /// The name that the client asked for: this node's own, or one of its [`crate::NodeStatus::cert_domains`].
    pub host: String,
    /// The client's address on the internet.
    pub source: SocketAddr,
    /// Its bytes, most often TLS.
    pub stream: FunnelStream,
}

/// The bytes of a connection from the internet.
#[derive(Debug)]
pub struct FunnelStream {
    /// What came together with the request.
    early: Bytes,
    stream: TcpStream,
}

impl AsyncRead for FunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.has_remaining() {
            let length = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for FunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts connections from the internet to one port. Dropping it turns down what comes later, and with the last one the node tells the control server that it
/// is not to be reached from there.
#[derive(Debug)]
pub struct FunnelListener {
    port: u16,
    queue: AsyncMutex<mpsc::Receiver<FunnelConnection>>,
    funnel: Funnel,
    announced: watch::Sender<Announced>,
}

impl FunnelListener {
    /// The next connection.
    ///
    /// # Errors
    /// [`SocketError::Closed`] after the node was shut down.
    pub async fn accept(&self) -> Result<FunnelConnection, SocketError> {
        self.queue.lock().await.recv().await.ok_or(SocketError::Closed)
    }

    /// The port that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for FunnelListener {
    fn drop(&mut self) {
        lock(&self.funnel.0).remove(&self.port);
        self.funnel.announce(&self.announced);
    }
}

/// The listeners of one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Funnel(Arc<Mutex<HashMap<u16, mpsc::Sender<FunnelConnection>>>>);

impl Funnel {
    pub(crate) fn listen(
        &self,
        port: u16,
        announced: &watch::Sender<Announced>,
    ) -> Result<FunnelListener, SocketError> {
        let (sender, queue) = mpsc::channel(BACKLOG);
        let mut listeners = lock(&self.0);
        if listeners.contains_key(&port) {
            return Err(SocketError::PortInUse(port));
        }
        listeners.insert(port, sender);
        drop(listeners);
        self.announce(announced);
        Ok(FunnelListener {
            port,
            queue: AsyncMutex::new(queue),
            funnel: self.clone(),
            announced: announced.clone(),
        })
    }

    fn announce(&self, announced: &watch::Sender<Announced>) {
        let is_open = !lock(&self.0).is_empty();
        announced.send_if_modified(|announced| {
            let changed = announced.funnel != is_open;
            announced.funnel = is_open;
            changed
        });
    }

    /// Ends what listeners wait for.
    pub(crate) fn close(&self) {
        lock(&self.0).clear();
    }

    /// Passes a connection to its listener, which the gateway is told by the answer 101.
    ///
    /// # Errors
    /// The status and the words to answer with instead; the connection is given back for it.
    pub(crate) async fn take(
        &self,
        request: &IngressRequest,
        early: Bytes,
        mut stream: TcpStream,
    ) -> Result<(), (TcpStream, StatusCode, &'static str)> {
        let place = {
            let listeners = lock(&self.0);
            listeners
                .get(&request.port)
                .map(|queue| queue.clone().try_reserve_owned())
        };
        let place = match place {
            Some(Ok(place)) => place,
            Some(Err(_)) => {
                return Err((
                    stream,
                    StatusCode::SERVICE_UNAVAILABLE,
                    "too many connections wait",
                ));
            }
            None => {
                return Err((
                    stream,
                    StatusCode::FORBIDDEN,
                    "nothing is open to the internet there",
                ));
            }
        };
        if stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            .await
            .is_ok()
        {
            place.send(FunnelConnection {
                host: request.host.clone(),
                source: request.source,
                stream: FunnelStream { early, stream },
            });
        }
        Ok(())
    }
}

/// What a gateway asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IngressRequest {
    pub(crate) source: SocketAddr,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Whether the head of a request is one of a gateway.
pub(crate) fn is_ingress(head: &http::Request<()>) -> bool {
    head.uri().path() == PATH
}

impl IngressRequest {
    /// Reads the head of a request to [`PATH`].
    ///
    /// # Errors
    /// The status and the words to answer with.
    pub(crate) fn read(head: &http::Request<()>) -> Result<Self, (StatusCode, &'static str)> {
        if head.method() != http::Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "expected POST"));
        }
        let header = |name| head.headers().get(name)?.to_str().ok();
        let source = header(SOURCE).and_then(|text| text.parse().ok());
        let source = source.ok_or((
            StatusCode::BAD_REQUEST,
            "Tailscale-Ingress-Src is no address with a port",
        ))?;
        let target = header(TARGET).and_then(|text| text.rsplit_once(':'));
        let target =
            target.and_then(|(host, port)| Some((host, port.parse().ok().filter(|port| *port != 0)?)));
        let (host, port) = target
            .filter(|(host, _)| !host.is_empty() && host.len() <= 253)
            .ok_or((
                StatusCode::BAD_REQUEST,
                "Tailscale-Ingress-Target is no name with a port",
            ))?;
        Ok(Self {
            source,
            host: host.trim_end_matches('.').to_ascii_lowercase(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, headers: &[(&str, &str)]) -> Result<IngressRequest, StatusCode> {
        let mut head = http::Request::builder().method(method).uri(PATH);
        for (name, value) in headers {
            head = head.header(*name, *value);
        }
        IngressRequest::read(&head.body(()).unwrap()).map_err(|(status, _)| status)
    }

    #[test]
    fn a_gateway_names_client_and_target() {
        let good = [
            ("Tailscale-Ingress-Src", "[2001:db8::7]:4711"),
            ("Tailscale-Ingress-Target", "Web.Tail1234.ts.net:443"),
        ];
        let read = request("POST", &good).unwrap();
        assert_eq!((read.host.as_str(), read.port), ("web.tail1234.ts.net", 443));
        assert_eq!(read.source, "[2001:db8::7]:4711".parse().unwrap());
        assert_eq!(request("GET", &good), Err(StatusCode::METHOD_NOT_ALLOWED));
        for (at, junk) in [
            (0, ""),
            (0, "2001:db8::7"),
            (1, ":443"),
            (1, "web"),
            (1, "web:0"),
            (1, "web:x"),
        ] {
            let mut bad = good;
            bad[at].1 = junk;
            assert_eq!(request("POST", &bad), Err(StatusCode::BAD_REQUEST), "{junk:?}");
        }
        assert_eq!(request("POST", &good[..1]), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn ports_are_those_of_the_capability() {
        let caps = |names: &[&str]| {
            names
                .iter()
                .map(|name| ((*name).to_owned(), Vec::new()))
                .collect::<CapMap>()
        };
        let listed = "https://tailscale.com/cap/funnel-ports?ports=443,8080-8090,x,9-1,";
        assert_eq!(ports(&caps(&["funnel", listed])), [443..=443, 8080..=8090]);
        assert!(ports(&caps(&[listed])).is_empty());
        assert!(ports(&caps(&["funnel"])).is_empty());
    }
}
