//! New connections to the API server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tailwharf_tls::ClientTls;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::UpstreamError;
use super::credentials::{CredentialError, Tls, Trust};

/// Time for a connection and its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A secured connection to the API server.
pub(super) type Secured = ClientTls<TcpStream>;

/// Opens connections. The name is resolved each time, so an API server may move.
#[derive(Debug)]
pub(super) struct Dialer {
    host: String,
    port: u16,
    name: ServerName<'static>,
    trust: Trust,
}

impl Dialer {
    pub(super) fn new(host: String, port: u16, trust: Trust) -> Result<Self, CredentialError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare.clone()).map_err(|_| CredentialError::Host(host))?;
        Ok(Self {
            host: bare,
            port,
            name,
            trust,
        })
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// A connection secured as `choose` says. If that fails, the authorities are read again: they may have been replaced just now.
    pub(super) async fn connect(
        &self,
        choose: impl Fn(Tls) -> Arc<ClientConfig>,
    ) -> Result<Secured, UpstreamError> {
        let first = self.attempt(choose(self.trust.tls())).await;
        let connected = match first {
            Err(error) if error.kind() == io::ErrorKind::InvalidData && self.trust.refresh() => {
                self.attempt(choose(self.trust.tls())).await
            }
            first => first,
        };
        connected.map_err(|source| UpstreamError::Connect {
            address: format!("{}:{}", self.host, self.port),
            source,
        })
    }

    async fn attempt(&self, config: Arc<ClientConfig>) -> io::Result<Secured> {
        let connecting = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
            tcp.set_nodelay(true)?;
            tailwharf_tls::connect(tcp, config, self.name.clone()).await
        };
        timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
            let why = format!("it takes more than {} s", CONNECT_TIMEOUT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        })
    }
}
