//! From a control URL to a connection that speaks Noise: where to dial, the server's key, the ts2021 upgrade.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::{Request, header};
use rand::rngs::StdRng;
use rustls_pki_types::ServerName;
use tailwharf_wire::json::{self, JsonError};
use tailwharf_wire::key::{MachinePrivate, MachinePublic};
use tailwharf_wire::noise;
use tailwharf_wire::tailcfg::{CapabilityVersion, OverTlsPublicKeyResponse};
use tokio_util::sync::CancellationToken;
use url::{Host as UrlHost, Url};

use super::noise_stream::NoiseStream;
use crate::api::StartError;
use crate::host::Host;
use crate::http1::{self, HttpError};
use crate::stream::{self, MaybeTls};
use crate::tls::Trust;

/// TLS on port 443 joins the race this long after plain HTTP.
const TLS_HEAD_START: Duration = Duration::from_millis(500);

/// A control server, from its URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ControlServer {
    https: bool,
    host: UrlHost<String>,
    port: Option<u16>,
}

/// One way to dial, started `after` the race began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    port: u16,
    tls: bool,
    after: Duration,
}

/// The control server could not be reached, or is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot connect to {host}:{port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("cannot build the request")]
    Request(#[source] http::Error),
    #[error("{what} failed")]
    Http {
        what: &'static str,
        #[source]
        source: HttpError,
    },
    #[error("/key did not answer as a control server does")]
    Key(#[source] JsonError),
    #[error("/key answered without a key: this control server is too old")]
    NoKey,
    #[error("the Noise handshake failed")]
    Noise(#[source] noise::NoiseError),
    #[error("the connection broke during the Noise handshake")]
    Handshake(#[source] std::io::Error),
    #[error("no way to dial the control server is left")]
    NoCandidate,
}

impl ControlServer {
    /// Checks a control URL.
    pub(crate) fn parse(url: &Url) -> Result<Self, StartError> {
        let refuse = |what| StartError::ControlUrl {
            url: url.to_string(),
            what,
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(StartError::ControlUrl {
                url: "(hidden)".into(),
                what: "it must not hold a user name or password",
            });
        }
        if url.path() != "/" || url.query().is_some() {
            return Err(refuse("it must not have a path"));
        }
        Self::of(url).ok_or_else(|| refuse("expected http or https and a host"))
    }

    /// The server that a URL with a path belongs to.
    pub(crate) fn of(url: &Url) -> Option<Self> {
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Self {
            https,
            host: url.host()?.to_owned(),
            port: url.port(),
        })
    }

    /// `host` or `host:port`, as it stands in a `Host` header.
    pub(crate) fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }

    /// The ways to dial for the Noise connection, in the order of their start.
    fn candidates(&self) -> Vec<Candidate> {
        let plain = |port| Candidate {
            port,
            tls: false,
            after: Duration::ZERO,
        };
        let tls = |port, after| Candidate {
            port,
            tls: true,
            after,
        };
        match (self.https, self.port) {
            (true, Some(port)) => vec![tls(port, Duration::ZERO)],
            (false, Some(port)) if self.is_local() => vec![plain(port)],
            (false, Some(port)) => vec![plain(port), tls(443, TLS_HEAD_START)],
            (_, None) if self.is_local() && !self.https => vec![plain(80)],
            (_, None) => vec![plain(80), tls(443, TLS_HEAD_START)],
        }
    }

    /// Loopback or a private address: nothing between here and there would serve TLS in its place.
    fn is_local(&self) -> bool {
        match &self.host {
            UrlHost::Domain(name) => name == "localhost",
            UrlHost::Ipv4(addr) => addr.is_loopback() || addr.is_private(),
            UrlHost::Ipv6(addr) => addr.is_loopback() || addr.is_unique_local(),
        }
    }

    /// Whether the server is on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        match &self.host {
            UrlHost::Domain(name) => name == "localhost",
            UrlHost::Ipv4(addr) => addr.is_loopback(),
            UrlHost::Ipv6(addr) => addr.is_loopback(),
        }
    }

    /// Sends one request outside of Noise, with the certificate verified.
    pub(crate) async fn call(&self, host: &Host, request: Request<Full<Bytes>>) -> Result<Bytes, DialError> {
        let port = self.port.unwrap_or(if self.https { 443 } else { 80 });
        let (stream, _) = self
            .connect(host, port, self.https.then_some(Trust::Roots))
            .await?;
        http1::call(stream, request)
            .await
            .map_err(|source| DialError::Http {
                what: "the plain request",
                source,
            })
    }

    /// Connects, with TLS if `trust` says what the server has to prove.
    async fn connect(
        &self,
        host: &Host,
        port: u16,
        trust: Option<Trust>,
    ) -> Result<(MaybeTls, IpAddr), DialError> {
        let failed = |source| DialError::Connect {
            host: self.host.to_string(),
            port,
            source,
        };
        let name = match &self.host {
            UrlHost::Domain(name) => {
                ServerName::try_from(name.clone()).map_err(|error| failed(std::io::Error::other(error)))?
            }
            UrlHost::Ipv4(addr) => ServerName::from(IpAddr::V4(*addr)),
            UrlHost::Ipv6(addr) => ServerName::from(IpAddr::V6(*addr)),
        };
        let addresses = async {
            match &self.host {
                UrlHost::Domain(name) => stream::resolve(name, port).await,
                UrlHost::Ipv4(addr) => Ok(vec![(*addr, port).into()]),
                UrlHost::Ipv6(addr) => Ok(vec![(*addr, port).into()]),
            }
        };
        let tcp = host
            .http_proxies()
            .connect(trust.is_some(), &self.host.to_string(), port, addresses)
            .await
            .map_err(failed)?;
        let tls = match trust {
            Some(trust) => Some((host.tls().client(&trust).map_err(DialError::Tls)?, name)),
            None => None,
        };
        let local = tcp.local_addr().map_err(failed)?.ip();
        Ok((
            stream::secure(tcp, tls).await.map_err(failed)?,
            local.to_canonical(),
        ))
    }

    /// Asks the server for its Noise key. Over HTTPS this request, and only this one, verifies the certificate.
    pub(crate) async fn fetch_key(&self, host: &Host) -> Result<MachinePublic, DialError> {
        let request = Request::get(format!("/key?v={}", CapabilityVersion::CURRENT))
            .header(header::HOST, self.authority())
            .body(Full::default())
            .map_err(DialError::Request)?;
        let body = self.call(host, request).await?;
        let answer: OverTlsPublicKeyResponse = json::from_slice(&body).map_err(DialError::Key)?;
        if answer.public_key.is_zero() {
            return Err(DialError::NoKey);
        }
        Ok(answer.public_key)
    }

    /// Opens the Noise connection: all candidates race, the first that finishes the handshake wins.
    pub(crate) async fn open(
        &self,
        host: &Host,
        machine_key: &MachinePrivate,
        server_key: MachinePublic,
        rng: &mut StdRng,
    ) -> Result<(NoiseStream, IpAddr), DialError> {
        let mut race = FuturesUnordered::new();
        // Cancelled when a candidate fails: the others need not wait for their turn any longer.
        let hurry = CancellationToken::new();
        for candidate in self.candidates() {
            let hurry = hurry.clone();
            let version = CapabilityVersion::CURRENT.0 as u16;
            let handshake =
                noise::Initiator::new(machine_key, &server_key, version, rng).map_err(DialError::Noise)?;
            race.push(Box::pin(async move {
                // Either way it is this candidate's turn.
                let _ = tokio::time::timeout(candidate.after, hurry.cancelled()).await;
                self.open_one(candidate, host, handshake).await
            }));
        }
        let mut last = DialError::NoCandidate;
        while let Some(result) = race.next().await {
            match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    last = error;
                    hurry.cancel();
                }
            }
        }
        Err(last)
    }

    async fn open_one(
        &self,
        candidate: Candidate,
        host: &Host,
        (handshake, initiation): (noise::Initiator, [u8; noise::INITIATION_LEN]),
    ) -> Result<(NoiseStream, IpAddr), DialError> {
        // Noise proves who the server is; a certificate would add nothing, and many networks intercept TLS.
        let (stream, local) = self
            .connect(host, candidate.port, candidate.tls.then_some(Trust::Nothing))
            .await?;
        let request = Request::post("/ts2021")
            .header(header::HOST, self.authority())
            .header(header::UPGRADE, "tailscale-control-protocol")
            .header(header::CONNECTION, "upgrade")
            .header("X-Tailscale-Handshake", BASE64.encode(initiation))
            .body(Full::default())
            .map_err(DialError::Request)?;
        let upgraded = http1::upgrade(stream, request)
            .await
            .map_err(|source| DialError::Http {
                what: "the ts2021 upgrade",
                source,
            })?;
        let stream = NoiseStream::finish_handshake(upgraded.stream, upgraded.read, handshake).await?;
        Ok((stream, local))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> ControlServer {
        ControlServer::parse(&Url::parse(url).unwrap()).unwrap()
    }

    #[test]
    fn where_a_url_is_dialled() {
        let dialled = |url| {
            server(url)
                .candidates()
                .into_iter()
                .map(|c| (c.port, c.tls, c.after.as_millis()))
                .collect::<Vec<_>>()
        };
        assert_eq!(dialled("https://control.example:8443"), [(8443, true, 0)]);
        assert_eq!(
            dialled("http://control.example:8080"),
            [(8080, false, 0), (443, true, 500)]
        );
        assert_eq!(dialled("http://10.0.0.5:8080"), [(8080, false, 0)]);
        assert_eq!(dialled("http://[::1]:8080"), [(8080, false, 0)]);
        assert_eq!(dialled("http://localhost:8080"), [(8080, false, 0)]);
        assert_eq!(
            dialled("https://control.example"),
            [(80, false, 0), (443, true, 500)]
        );
        assert_eq!(dialled("http://192.168.1.1"), [(80, false, 0)]);
    }

    #[test]
    fn urls_that_cannot_be_a_control_server_are_refused() {
        for url in [
            "ftp://control.example",
            "http://control.example/path",
            "http://user:secret@control.example",
        ] {
            let error = ControlServer::parse(&Url::parse(url).unwrap()).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn authority_keeps_the_port_and_brackets() {
        assert_eq!(server("http://[fd00::1]:8080").authority(), "[fd00::1]:8080");
        assert_eq!(server("https://control.example").authority(), "control.example");
    }
}
