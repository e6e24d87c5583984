//! Connections to HTTP servers by URL: through a proxy if there is one, with TLS if the URL says so.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustls_pki_types::ServerName;
use url::{Host as UrlHost, Url};

use crate::host::Host;
use crate::stream::{self, MaybeTls};
use crate::tls::Trust;

/// Connects to the server of a URL. Its host is looked up unless it is an address, or `known` has its addresses.
pub(crate) async fn connect(host: &Host, url: &Url, known: &[IpAddr]) -> io::Result<MaybeTls> {
    let unusable = || io::Error::new(io::ErrorKind::InvalidInput, "the URL names no server");
    let name = url.host_str().ok_or_else(unusable)?;
    let port = url.port_or_known_default().ok_or_else(unusable)?;
    let (address, server_name) = match url.host().ok_or_else(unusable)? {
        UrlHost::Domain(name) => {
            let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
            (None, name)
        }
        UrlHost::Ipv4(address) => (Some(address.into()), IpAddr::V4(address).into()),
        UrlHost::Ipv6(address) => (Some(address.into()), IpAddr::V6(address).into()),
    };
    let tls = url.scheme() == "https";
    let addresses = async {
        let known: Vec<IpAddr> = match address {
            Some(address) => vec![address],
            None => known.to_vec(),
        };
        match known.is_empty() {
            true => stream::resolve(name, port).await,
            false => Ok(known.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
        }
    };
    let tcp = host.http_proxies().connect(tls, name, port, addresses).await?;
    let tls = match tls {
        true => {
            let config = host.tls().client(&Trust::Roots).map_err(io::Error::other)?;
            Some((config, server_name))
        }
        false => None,
    };
    stream::secure(tcp, tls).await
}

/// The part of a URL that goes into a request line.
pub(crate) fn target(url: &Url) -> String {
    match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    }
}
