//! The proxy on a device of the tailnet: HTTPS on port 443 with the device's certificate, or, where the tailnet has no certificates, HTTP
//! on port 80, which the tailnet encrypts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use rustls::server::ResolvesServerCert;
use tailwharf_node::{CheckError, Node, NodeStatus, Phase, TailnetNode, TcpListener, TcpStream, WhoIs};
use tailwharf_wire::tailcfg::{CheckRequest, CheckResponse};
use tokio_util::sync::CancellationToken;

use crate::certificates::{self, CertificateSource, Shown};
use crate::server::{Listener, Proxy, Settings, StartError, Stream, Tailnet};

const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;

struct Device(Node);

impl Device {
    fn any_name(&self, matches: impl Fn(&str) -> bool) -> bool {
        let status = self.0.status();
        let status = status.borrow();
        let fqdn = status.fqdn.as_deref().unwrap_or_default();
        let short = fqdn.split('.').next().unwrap_or_default();
        let named = !fqdn.is_empty() && (matches(fqdn) || matches(short));
        named
            || status
                .addresses
                .iter()
                .any(|address| matches(&address.to_string()))
    }
}

impl Tailnet for Device {
    fn whois(&self, remote: SocketAddr, local: IpAddr) -> Option<WhoIs> {
        self.0.whois_at(remote, local)
    }

    fn is_called(&self, host: &str) -> bool {
        let host = bare(host);
        self.any_name(|name| name.eq_ignore_ascii_case(host))
    }

    fn name(&self) -> String {
        let status = self.0.status();
        let fqdn = status.borrow().fqdn.clone();
        fqdn.unwrap_or_default()
    }

    fn check(&self, request: CheckRequest) -> BoxFuture<'static, Result<CheckResponse, CheckError>> {
        let node = self.0.clone();
        Box::pin(async move { node.check(request).await })
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, std::io::Result<Box<dyn Stream>>> {
        let node = self.0.clone();
        Box::pin(async move {
            let stream = node.dial_tcp(to).await.map_err(std::io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// A host without port, brackets and final dot.
fn bare(host: &str) -> &str {
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) | None => host,
        },
    };
    host.strip_suffix('.').unwrap_or(host)
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> Option<(TcpStream, SocketAddr, IpAddr)> {
        let (stream, remote) = Self::accept(self).await.ok()?;
        let local = stream.local_addr().ip();
        Some((stream, remote, local))
    }
}

/// A proxy whose callers are peers of a node.
///
/// # Errors
/// When a file cannot be used.
pub fn on_device(settings: Settings, node: &Node) -> Result<Proxy, StartError> {
    Proxy::new(settings, Arc::new(Device(node.clone())))
}

/// Serves a proxy at the ports of its node until `end`. `keep` begins to keep a certificate for the node's name, from the ACME server with the directory
/// if one is given.
///
/// # Errors
/// When a port cannot be used.
pub async fn serve(
    proxy: Proxy,
    certificate: CertificateSource,
    node: Node,
    keep: impl Fn(Option<String>) -> Arc<dyn ResolvesServerCert>,
    end: CancellationToken,
) -> Result<(), StartError> {
    let mut kept = None;
    let serving = async {
        match &certificate {
            CertificateSource::Files { chain, key } => {
                let shown = Arc::new(Shown::default());
                let following = certificates::follow_files(&shown, chain, key);
                first(following, listen(&proxy, &node, HTTPS_PORT, Some(shown.clone()))).await
            }
            CertificateSource::Device { directory } => loop {
                let name = wait(&node, |status| {
                    status.fqdn.clone().filter(|_| status.phase == Phase::Online)
                })
                .await;
                let certified = |status: &NodeStatus| status.cert_domains.contains(&name);
                if !certified(&node.status().borrow()) {
                    tracing::info!(
                        name,
                        "the tailnet gives no certificates: HTTP on port {HTTP_PORT}"
                    );
                    let changed = wait(&node, |status| certified(status).then_some(()));
                    first(changed, listen(&proxy, &node, HTTP_PORT, None)).await?;
                    continue;
                }
                tracing::info!(name, "HTTPS on port {HTTPS_PORT}");
                let shown = kept.get_or_insert_with(|| keep(directory.clone())).clone();
                let renamed = wait(&node, |status| {
                    (status.fqdn.as_deref() != Some(&name)).then_some(())
                });
                Box::pin(first(renamed, listen(&proxy, &node, HTTPS_PORT, Some(shown)))).await?;
            },
        }
    };
    tokio::select! {
        served = serving => served,
        () = proxy.maintain(end) => Ok(()),
    }
}

/// Runs both until the first one ends.
async fn first(
    side: impl Future<Output = ()>,
    main: impl Future<Output = Result<(), StartError>>,
) -> Result<(), StartError> {
    tokio::select! {
        () = side => Ok(()),
        ended = main => ended,
    }
}

async fn listen(
    proxy: &Proxy,
    node: &Node,
    port: u16,
    shown: Option<Arc<dyn ResolvesServerCert>>,
) -> Result<(), StartError> {
    proxy.serve(node.listen_tcp(port)?, shown).await
}

/// Waits until the status of a node tells something.
async fn wait<T>(node: &Node, tells: impl Fn(&NodeStatus) -> Option<T>) -> T {
    let mut status = node.status();
    loop {
        if let Some(told) = tells(&status.borrow_and_update()) {
            return told;
        }
        if status.changed().await.is_err() {
            // The node has ended, and so does whoever waits here.
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_port_and_dot() {
        for (host, expected) in [
            ("proxy", "proxy"),
            ("proxy:443", "proxy"),
            ("proxy.tail1234.ts.net.", "proxy.tail1234.ts.net"),
            ("[fd7a::1]:443", "fd7a::1"),
            ("100.64.0.1:80", "100.64.0.1"),
            ("a:b@c:80", "a:b@c:80"),
        ] {
            assert_eq!(bare(host), expected);
        }
    }
}
