//! HTTP proxies on the way to control servers and relays, as the variables `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` name them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;
use zeroize::Zeroizing;

use crate::stream;

/// The longest answer to a CONNECT.
const MAX_ANSWER: usize = 8 << 10;

/// Which proxies are used for what. The default uses none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpProxies {
    http: Option<HttpProxy>,
    https: Option<HttpProxy>,
    exceptions: Vec<Exception>,
}

/// One proxy.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HttpProxy {
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<Zeroizing<String>>,
}

/// Where no proxy is used.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    Net(IpNet, Option<u16>),
    /// A domain and, with a dot before it in the text, only what is below it.
    Domain {
        name: String,
        below: bool,
        port: Option<u16>,
    },
}

/// The URL of a proxy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} must be the address of an HTTP proxy, such as http://proxy.example:3128")]
pub struct HttpProxyError {
    /// The variable.
    pub variable: &'static str,
}

impl HttpProxies {
    /// Reads the variables of an environment. The names in lower case go before those in upper case.
    ///
    /// # Errors
    /// When one names no HTTP proxy.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HttpProxyError> {
        let text = |name: &str| {
            variable(&name.to_ascii_lowercase())
                .or_else(|| variable(name))
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        };
        let proxy = |name: &'static str| match text(name) {
            None => Ok(None),
            Some(text) => HttpProxy::parse(&text)
                .map(Some)
                .ok_or(HttpProxyError { variable: name }),
        };
        let exceptions = text("NO_PROXY").unwrap_or_default();
        Ok(Self {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            exceptions: exceptions.split(',').filter_map(Exception::parse).collect(),
        })
    }

    /// Connects to a server: through the proxy for it, or to the first of `addresses` that answers, which are only looked up in that case.
    pub(crate) async fn connect(
        &self,
        tls: bool,
        host: &str,
        port: u16,
        addresses: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    ) -> io::Result<TcpStream> {
        match self.proxy_for(tls, host, port) {
            Some(proxy) => proxy.tunnel(host, port).await,
            None => stream::connect_first(addresses.await?).await,
        }
    }

    fn proxy_for(&self, tls: bool, host: &str, port: u16) -> Option<&HttpProxy> {
        let proxy = if tls { &self.https } else { &self.http };
        let host = host.trim_matches(['[', ']']);
        let address: Option<IpAddr> = host.parse().ok();
        let is_here = host.eq_ignore_ascii_case("localhost") || address.is_some_and(|ip| ip.is_loopback());
        let is_excepted = self
            .exceptions
            .iter()
            .any(|exception| exception.covers(host, address, port));
        proxy.as_ref().filter(|_| !is_here && !is_excepted)
    }
}

impl Exception {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self::Everything);
        }
        if let Ok(net) = text.parse() {
            return Some(Self::Net(net, None));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self::Net(ip.into(), None));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Self::Net(address.ip().into(), Some(address.port())));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let name = name.strip_prefix('*').unwrap_or(name);
        let (name, below) = match name.strip_prefix('.') {
            Some(name) => (name, true),
            None => (name, false),
        };
        Some(Self::Domain {
            name: name.to_ascii_lowercase(),
            below,
            port,
        })
    }

    fn covers(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Net(net, only) => {
                address.is_some_and(|ip| net.contains(&ip)) && only.is_none_or(|only| only == port)
            }
            Self::Domain {
                name,
                below,
                port: only,
            } => {
                let host = host.to_ascii_lowercase();
                let is_below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.ends_with('.'));
                (is_below || (!below && host == *name)) && only.is_none_or(|only| only == port)
            }
        }
    }
}

impl HttpProxy {
    fn parse(text: &str) -> Option<Self> {
        let url = match text.contains("://") {
            true => Url::parse(text),
            false => Url::parse(&format!("http://{text}")),
        };
        let url = url.ok().filter(|url| url.scheme() == "http")?;
        let user = percent_decoded(url.username());
        let authorization = (!user.is_empty()).then(|| {
            let password = percent_decoded(url.password().unwrap_or_default());
            Zeroizing::new(format!("Basic {}", BASE64.encode(format!("{user}:{password}"))))
        });
        Some(Self {
            host: url.host_str()?.trim_matches(['[', ']']).to_owned(),
            port: url.port_or_known_default()?,
            authorization,
        })
    }

    /// Asks the proxy for a connection to a server.
    async fn tunnel(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let addresses = stream::resolve(&self.host, self.port).await?;
        let mut stream = stream::connect_first(addresses).await?;
        let target = match host.contains(':') && !host.starts_with('[') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let mut request = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
        if let Some(authorization) = &self.authorization {
            request.push_str(&format!("Proxy-Authorization: {}\r\n", **authorization));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() == MAX_ANSWER {
                return Err(io::Error::other("the HTTP proxy's answer is too long"));
            }
            // Byte by byte: what follows belongs to the server behind.
            answer.push(stream.read_u8().await?);
        }
        let line = crate::http1::first_line(&answer);
        match line.split(' ').nth(1) {
            Some("200") => Ok(stream),
            _ => Err(io::Error::other(format!(
                "the HTTP proxy {} does not connect to {target}: {line}",
                self.host
            ))),
        }
    }
}

impl std::fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpProxy")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

fn percent_decoded(text: &str) -> String {
    let pair = format!("x={}", text.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<HttpProxies, HttpProxyError> {
        HttpProxies::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_name_proxies_and_exceptions() {
        let proxies = proxies(&[
            ("HTTPS_PROXY", "http://user:p%40ss@proxy.example:3128"),
            ("http_proxy", "plain.example:8080"),
            ("HTTP_PROXY", "http://not-this.example"),
            (
                "NO_PROXY",
                "corp.example, .only.below,10.0.0.0/8,192.0.2.1:8443,port.example:99",
            ),
        ])
        .unwrap();
        let used = |tls, host, port| {
            proxies
                .proxy_for(tls, host, port)
                .map(|proxy| (proxy.host.as_str(), proxy.port))
        };
        assert_eq!(used(true, "control.example", 443), Some(("proxy.example", 3128)));
        assert_eq!(used(false, "control.example", 80), Some(("plain.example", 8080)));
        for (host, port) in [
            ("corp.example", 443),
            ("A.Corp.Example", 443),
            ("a.only.below", 443),
            ("10.1.2.3", 443),
            ("192.0.2.1", 8443),
            ("port.example", 99),
            ("localhost", 443),
            ("127.0.0.1", 443),
            ("[::1]", 443),
        ] {
            assert_eq!(used(true, host, port), None, "{host}:{port}");
        }
        for (host, port) in [
            ("notcorp.example", 443),
            ("only.below", 443),
            ("192.0.2.1", 443),
            ("port.example", 98),
        ] {
            assert!(used(true, host, port).is_some(), "{host}:{port}");
        }
        let authorization = proxies.https.as_ref().unwrap().authorization.as_ref().unwrap();
        assert_eq!(**authorization, format!("Basic {}", BASE64.encode("user:p@ss")));
        assert!(!format!("{proxies:?}").contains("p@ss"));
    }

    #[test]
    fn what_is_no_http_proxy_is_refused_by_name() {
        for text in ["socks5://proxy.example", "https://proxy.example", "http://", "::"] {
            let error = proxies(&[("HTTPS_PROXY", text)]).unwrap_err();
            assert_eq!(error.variable, "HTTPS_PROXY", "{text}");
        }
        assert!(proxies(&[("HTTPS_PROXY", " "), ("NO_PROXY", "*")]).is_ok());
    }
}
