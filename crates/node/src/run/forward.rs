//! Port forwards: local → tailnet (`Forward`) and tailnet → local (`Serve`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::listen::{self, slot};
use super::{Shared, Target};
use crate::api::TailnetNode;

/// A UDP flow without a datagram for this long is forgotten (RFC 4787 asks for at least two minutes).
const UDP_IDLE: Duration = Duration::from_secs(120);

/// Datagrams of one flow that wait for the service.
const UDP_QUEUE: usize = 64;

/// The largest datagram carried; more does not fit through the tailnet anyway.
const MAX_DATAGRAM: usize = 2048;

/// A local TCP port that leads to a port on the tailnet. Text: `[ADDRESS:]PORT=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where it listens; without an address on 127.0.0.1.
    pub listen: SocketAddr,
    /// The name or address on the tailnet.
    pub host: String,
    /// The port there.
    pub port: u16,
}

/// A port of the node that leads to a local service. Text: `PORT[/tcp|/udp]=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serve {
    /// The port on the tailnet.
    pub port: u16,
    /// What is carried.
    pub protocol: Protocol,
    /// The host to connect to.
    pub host: String,
    /// The port there.
    pub target_port: u16,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Byte streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// The text of a forward cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {expected}")]
pub struct ParseForwardError {
    /// The text as given.
    text: String,
    /// What was expected instead.
    expected: &'static str,
}

impl FromStr for Forward {
    type Err = ParseForwardError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseForwardError {
            text: text.to_owned(),
            expected: "expected [ADDRESS:]PORT=HOST:PORT, for example 8080=nginx:80",
        };
        let (local, remote) = text.split_once('=').ok_or_else(refuse)?;
        let listen = match local.parse::<u16>() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => local.parse().map_err(|_| refuse())?,
        };
        let (host, port) = host_and_port(remote).ok_or_else(refuse)?;
        Ok(Self { listen, host, port })
    }
}

impl FromStr for Serve {
    type Err = ParseForwardError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseForwardError {
            text: text.to_owned(),
            expected: "expected PORT[/udp]=HOST:PORT, for example 80=127.0.0.1:8080",
        };
        let (own, target) = text.split_once('=').ok_or_else(refuse)?;
        let (port, protocol) = match own.split_once('/') {
            None => (own, Protocol::Tcp),
            Some((port, "tcp")) => (port, Protocol::Tcp),
            Some((port, "udp")) => (port, Protocol::Udp),
            Some(_) => return Err(refuse()),
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refuse)?;
        let (host, target_port) = host_and_port(target).ok_or_else(refuse)?;
        Ok(Self {
            port,
            protocol,
            host,
            target_port,
        })
    }
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let unbracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match unbracketed {
        Some(v6) => Some((v6.to_owned(), port)),
        None if host.is_empty() || host.contains(':') => None,
        None => Some((host.to_owned(), port)),
    }
}

pub(super) async fn start_forward(
    tasks: &mut JoinSet<()>,
    forward: Forward,
    shared: Shared,
) -> anyhow::Result<()> {
    tracing::info!(
        host = forward.host,
        port = forward.port,
        "forwarding to the tailnet"
    );
    let target = Target::new(&forward.host, forward.port);
    listen::serve_tcp(tasks, forward.listen, "forward", shared, move |client, shared| {
        let target = target.clone();
        async move {
            match shared.dial(&target).await {
                Ok(remote) => shared.carry(remote, client).await?,
                Err(error) => tracing::warn!(%error, "connection not forwarded"),
            }
            Ok(())
        }
    })
    .await
}

pub(super) fn start_serve(tasks: &mut JoinSet<()>, serve: Serve, shared: Shared) -> anyhow::Result<()> {
    tracing::info!(port = serve.port, protocol = ?serve.protocol, host = serve.host, to = serve.target_port, "serving");
    match serve.protocol {
        Protocol::Tcp => {
            let listener = shared.node.listen_tcp(serve.port)?;
            tasks.spawn(serve_tcp(listener, serve, shared));
        }
        Protocol::Udp => {
            let socket = Arc::new(shared.node.bind_udp(serve.port)?);
            tasks.spawn(serve_udp(socket, serve, shared));
        }
    }
    Ok(())
}

async fn serve_tcp(listener: crate::TcpListener, serve: Serve, shared: Shared) {
    let serve = Arc::new(serve);
    let mut connections = JoinSet::new();
    while let Ok((client, from)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (shared, serve) = (shared.clone(), serve.clone());
        connections.spawn(async move {
            let Some(_slot) = slot(&shared, from) else { return };
            match tokio::net::TcpStream::connect((serve.host.as_str(), serve.target_port)).await {
                Ok(backend) => {
                    // Without it there is more delay, and no harm.
                    let _ = backend.set_nodelay(true);
                    if let Err(error) = shared.carry(client, backend).await {
                        tracing::debug!(%from, %error, "connection broke off");
                    }
                }
                Err(error) => tracing::warn!(%from, host = serve.host, port = serve.target_port, %error, "cannot connect"),
            }
        });
    }
}

/// Each source has a socket of its own towards the service, so that answers find back.
async fn serve_udp(socket: Arc<crate::UdpSocket>, serve: Serve, shared: Shared) {
    let mut flows: HashMap<SocketAddr, tokio::sync::mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut datagram = vec![0; MAX_DATAGRAM];
    while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
        while tasks.try_join_next().is_some() {}
        flows.retain(|_, flow| !flow.is_closed());
        let flow = match flows.entry(from) {
            Entry::Occupied(flow) => flow.into_mut(),
            Entry::Vacant(place) => {
                let Some(slot) = slot(&shared, from) else { continue };
                let (sender, receiver) = tokio::sync::mpsc::channel(UDP_QUEUE);
                let (socket, target) = (socket.clone(), (serve.host.clone(), serve.target_port));
                tasks.spawn(async move {
                    if let Err(error) = udp_flow(&socket, from, &target, receiver, slot).await {
                        tracing::debug!(%from, %error, "UDP flow ended");
                    }
                });
                place.insert(sender)
            }
        };
        // A full queue drops, as a network does.
        let _ = flow.try_send(datagram[..length].to_vec());
    }
}

async fn udp_flow(
    socket: &crate::UdpSocket,
    from: SocketAddr,
    target: &(String, u16),
    mut datagrams: tokio::sync::mpsc::Receiver<Vec<u8>>,
    _slot: OwnedSemaphorePermit,
) -> io::Result<()> {
    let target = tokio::net::lookup_host((target.0.as_str(), target.1))
        .await?
        .next()
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let local: SocketAddr = if target.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let backend = tokio::net::UdpSocket::bind(local).await?;
    backend.connect(target).await?;
    let mut answer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            datagram = datagrams.recv() => match datagram {
                Some(datagram) => { backend.send(&datagram).await?; }
                None => return Ok(()),
            },
            received = backend.recv(&mut answer) => {
                socket.send_to(&answer[..received?], from).map_err(io::Error::other)?;
            }
            () = tokio::time::sleep(UDP_IDLE) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_forwards() {
        let forward: Forward = "8080=nginx:80".parse().unwrap();
        assert_eq!(forward.listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((forward.host.as_str(), forward.port), ("nginx", 80));
        let forward: Forward = "[::1]:8080=[fd7a::1]:80".parse().unwrap();
        assert_eq!(forward.listen, "[::1]:8080".parse().unwrap());
        assert_eq!((forward.host.as_str(), forward.port), ("fd7a::1", 80));
        for wrong in [
            "",
            "8080",
            "8080=",
            "8080=nginx",
            "8080=nginx:0",
            "x=nginx:80",
            "8080=:80",
            "8080=fd7a::1:80",
        ] {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn texts_of_serves() {
        let serve: Serve = "53/udp=127.0.0.1:5353".parse().unwrap();
        assert_eq!(
            (serve.port, serve.protocol, serve.target_port),
            (53, Protocol::Udp, 5353)
        );
        assert_eq!(
            "80=localhost:8080".parse::<Serve>().unwrap().protocol,
            Protocol::Tcp
        );
        assert_eq!(
            "80/tcp=localhost:8080".parse::<Serve>().unwrap().protocol,
            Protocol::Tcp
        );
        for wrong in [
            "",
            "80",
            "0=localhost:80",
            "80/sctp=localhost:80",
            "70000=localhost:80",
            "80=localhost",
        ] {
            assert!(wrong.parse::<Serve>().is_err(), "{wrong}");
        }
    }
}
