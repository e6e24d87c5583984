//! Asking other resolvers: over UDP and TCP, on this machine's network or on the tailnet, and over HTTPS (RFC 8484).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header};
use tailwharf_node_core::dns::{Query, SERVICE_V4, SERVICE_V6, is_truncated};
use tailwharf_wire::tailcfg::Resolver;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use url::{Host, Url};

use super::DATAGRAM;
use crate::engine::Engine;
use crate::{fetch, http1};

/// The port of DNS.
const PORT: u16 = 53;

/// A datagram that is not answered is sent again after this time.
const RESEND_AFTER: Duration = Duration::from_millis(1500);

/// How often a datagram is sent.
const ATTEMPTS: u32 = 3;

/// The media type of a DNS message.
const MEDIA_TYPE: &str = "application/dns-message";

/// Where a query can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upstream {
    /// DNS over UDP, and over TCP for long answers.
    Plain(SocketAddr),
    /// DNS over HTTPS, or over HTTP at the peer API of an exit node.
    Http {
        url: Url,
        /// Addresses of the URL's host; empty: it is resolved by the machine.
        addresses: Vec<IpAddr>,
    },
}

impl Upstream {
    /// Reads a resolver of the map. `None` for kinds that are not supported.
    pub(super) fn of(resolver: &Resolver) -> Option<Self> {
        let text = resolver.addr.as_str();
        if let Ok(address) = text.parse() {
            return Some(Self::Plain(SocketAddr::new(address, PORT)));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Plain(address));
        }
        let url = Url::parse(text).ok()?;
        (matches!(url.scheme(), "http" | "https") && url.has_host()).then(|| Self::Http {
            url,
            addresses: resolver.bootstrap_resolution.clone(),
        })
    }

    /// Sends a query and gives the answer to it.
    pub(super) async fn exchange(
        &self,
        engine: &Arc<Engine>,
        message: &[u8],
        query: &Query,
    ) -> io::Result<Vec<u8>> {
        let answer = match self {
            Self::Plain(address) => plain(engine, *address, message, query).await?,
            Self::Http { url, addresses } => http(engine, url, addresses, message).await?,
        };
        if query.is_answered_by(&answer) {
            Ok(answer)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer belongs to another query",
            ))
        }
    }
}

async fn plain(
    engine: &Arc<Engine>,
    address: SocketAddr,
    message: &[u8],
    query: &Query,
) -> io::Result<Vec<u8>> {
    let on_tailnet = is_on_tailnet(engine, address.ip());
    let answer = if on_tailnet {
        let socket = crate::UdpSocket::bind(engine, 0).map_err(io::Error::other)?;
        resend(message, query, &TailnetSocket { socket, address }).await?
    } else {
        let local: SocketAddr = match address {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0; 16], 0).into(),
        };
        let socket = tokio::net::UdpSocket::bind(local).await?;
        socket.connect(address).await?;
        resend(message, query, &socket).await?
    };
    if !is_truncated(&answer) {
        return Ok(answer);
    }
    if on_tailnet {
        let stream = crate::TcpStream::connect(engine, address)
            .await
            .map_err(io::Error::other)?;
        over_stream(stream, message).await
    } else {
        over_stream(tokio::net::TcpStream::connect(address).await?, message).await
    }
}

fn is_on_tailnet(engine: &Engine, address: IpAddr) -> bool {
    engine.with_core(|core, _| core.has_route(address))
}

/// A datagram socket with one other side.
trait Datagrams {
    async fn send(&self, message: &[u8]) -> io::Result<()>;
    async fn receive(&self) -> io::Result<Vec<u8>>;
}

impl Datagrams for tokio::net::UdpSocket {
    async fn send(&self, message: &[u8]) -> io::Result<()> {
        Self::send(self, message).await.map(drop)
    }

    async fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; DATAGRAM];
        let length = self.recv(&mut buffer).await?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

struct TailnetSocket {
    socket: crate::UdpSocket,
    address: SocketAddr,
}

impl Datagrams for TailnetSocket {
    async fn send(&self, message: &[u8]) -> io::Result<()> {
        self.socket
            .send_to(message, self.address)
            .map_err(io::Error::other)
    }

    async fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            let datagram = self.socket.recv().await.map_err(io::Error::other)?;
            if datagram.from == self.address {
                return Ok(datagram.payload.to_vec());
            }
        }
    }
}

/// Sends until an answer to the query comes.
async fn resend(message: &[u8], query: &Query, socket: &impl Datagrams) -> io::Result<Vec<u8>> {
    for _ in 0..ATTEMPTS {
        socket.send(message).await?;
        let answered = async {
            loop {
                let answer = socket.receive().await?;
                // What does not belong to the query may have been sent by anybody.
                if query.is_answered_by(&answer) {
                    return io::Result::Ok(answer);
                }
            }
        };
        if let Ok(answered) = timeout(RESEND_AFTER, answered).await {
            return answered;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn over_stream(mut stream: impl AsyncRead + AsyncWrite + Unpin, message: &[u8]) -> io::Result<Vec<u8>> {
    super::server::write_message(&mut stream, message).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    stream.shutdown().await?;
    Ok(answer)
}

async fn http(engine: &Arc<Engine>, url: &Url, addresses: &[IpAddr], message: &[u8]) -> io::Result<Vec<u8>> {
    let request = Request::post(fetch::target(url))
        .header(header::HOST, url.authority())
        .header(header::CONTENT_TYPE, MEDIA_TYPE)
        .header(header::ACCEPT, MEDIA_TYPE)
        .body(Full::new(Bytes::copy_from_slice(message)))
        .map_err(io::Error::other)?;
    let answer = if url.scheme() == "http" {
        // Without TLS only inside of the tailnet, which encrypts by itself: the peer API of an exit node.
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        if !is_on_tailnet(engine, address) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let port = url.port_or_known_default().unwrap_or(80);
        let stream = crate::TcpStream::connect(engine, SocketAddr::new(address, port))
            .await
            .map_err(io::Error::other)?;
        http1::call(stream, request).await
    } else {
        let stream = fetch::connect(engine.host(), url, addresses).await?;
        http1::call(stream, request).await
    };
    answer.map(Vec::from).map_err(io::Error::other)
}

/// The name servers of `/etc/resolv.conf`, but for those that are this node's own.
pub(super) fn system_resolvers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    name_servers(&text)
}

/// The name servers of a `resolv.conf`, but for those that are this node's own.
pub(crate) fn name_servers(text: &str) -> Vec<SocketAddr> {
    let own = [IpAddr::V4(SERVICE_V4), IpAddr::V6(SERVICE_V6)];
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
        .filter(|address| !own.contains(address))
        .map(|address| SocketAddr::new(address, PORT))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_resolvers() {
        let of = |addr: &str| {
            Upstream::of(&Resolver {
                addr: addr.into(),
                ..Resolver::default()
            })
        };
        let plain = |text: &str| Some(Upstream::Plain(text.parse().unwrap()));
        assert_eq!(of("1.1.1.1"), plain("1.1.1.1:53"));
        assert_eq!(of("10.0.0.1:5353"), plain("10.0.0.1:5353"));
        assert_eq!(of("fd00::1"), plain("[fd00::1]:53"));
        assert!(matches!(
            of("https://dns.example/dns-query"),
            Some(Upstream::Http { .. })
        ));
        for unknown in ["", "tls://1.1.1.1", "dns.example", "https://"] {
            assert_eq!(of(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn the_machines_name_servers() {
        let text = "# comment\nsearch a.b\nnameserver 10.96.0.10\nnameserver  fd00::10\n\
            nameserver 100.100.100.100\nnameserver fe80::1%eth0\noptions ndots:5\n";
        assert_eq!(
            name_servers(text),
            ["10.96.0.10:53".parse().unwrap(), "[fd00::10]:53".parse().unwrap()]
        );
    }
}
