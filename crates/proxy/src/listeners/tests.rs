//! The listeners on loopback sockets in place of a tailnet node.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use tailwharf_kube_types::{Backend, IdentityReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::limits::{Limits, Room};
use crate::proxy_protocol::Caller;
use crate::sockets::{Accept, Datagrams, Origin};

/// The addresses on loopback that stand for ports of the tailnet node.
#[derive(Clone, Default)]
struct Loopback(Arc<Mutex<HashMap<Port, SocketAddr>>>);

impl Loopback {
    fn at(&self, port: Port) -> SocketAddr {
        self.0.lock().unwrap()[&port]
    }

    fn take(&self, protocol: Protocol, number: u16, at: SocketAddr) -> Result<(), SocketError> {
        if number == 1 {
            return Err(SocketError::PortInUse(number));
        }
        self.0.lock().unwrap().insert(Port { protocol, number }, at);
        Ok(())
    }
}

impl Sockets for Loopback {
    type Tcp = TcpListener;
    type Udp = UdpSocket;

    fn listen_tcp(&self, port: u16) -> Result<TcpListener, SocketError> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        self.take(Protocol::Tcp, port, listener.local_addr().unwrap())?;
        Ok(TcpListener::from_std(listener).unwrap())
    }

    fn bind_udp(&self, port: u16) -> Result<UdpSocket, SocketError> {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        self.take(Protocol::Udp, port, socket.local_addr().unwrap())?;
        Ok(UdpSocket::from_std(socket).unwrap())
    }

    fn caller(&self, _: SocketAddr) -> Option<Caller> {
        Some(Caller {
            user: "alice@example.com".to_owned(),
            device: "laptop.tail.ts.net".to_owned(),
            tags: Vec::new(),
        })
    }

    fn own(&self, peer: IpAddr) -> Option<IpAddr> {
        Some(peer)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> Option<(TcpStream, SocketAddr)> {
        Self::accept(self).await.ok()
    }
}

impl Datagrams for UdpSocket {
    async fn receive(&self, buffer: &mut [u8]) -> Option<(usize, Origin)> {
        let (length, peer) = self.recv_from(buffer).await.ok()?;
        Some((length, peer.into()))
    }

    fn send(&self, data: &[u8], to: Origin) -> bool {
        self.try_send_to(data, to.peer).is_ok()
    }
}

struct Bench {
    node: Loopback,
    carrier: Arc<Carrier>,
    listeners: Listeners<Loopback>,
}

fn bench(limits: Limits) -> Bench {
    let node = Loopback::default();
    let room = Room::of_identity(&Arc::new(Semaphore::new(limits.connections)), &limits);
    let carrier = Carrier::new(
        "ts-web".into(),
        Arc::default(),
        Arc::default(),
        limits,
        room,
        CancellationToken::new(),
    );
    Bench {
        listeners: Listeners::new(node.clone(), carrier.clone()),
        node,
        carrier,
    }
}

const fn tcp_port(number: u16) -> Port {
    Port {
        protocol: Protocol::Tcp,
        number,
    }
}

fn listener(port: Port, to: SocketAddr) -> Listener {
    Listener {
        name: "main".to_owned(),
        protocol: port.protocol,
        port: port.number,
        backends: vec![Backend {
            address: to.ip().to_string(),
            port: to.port(),
        }],
        proxy_protocol: false,
    }
}

/// A TCP server that answers each line with its name and the line.
async fn named(name: &'static str) -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    stream
                        .write_all(&[name.as_bytes(), &[byte]].concat())
                        .await
                        .unwrap();
                }
            });
        }
    });
    at
}

async fn ask(stream: &mut TcpStream, name: &str) {
    stream.write_u8(b'?').await.unwrap();
    let mut answer = vec![0; name.len() + 1];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), format!("{name}?"));
}

/// Waits until the condition holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(Duration::from_secs(10), wait).await.is_ok(), "{what}");
}

#[tokio::test]
async fn changes_of_ports_and_backends_keep_connections() {
    let (a, b) = (named("a").await, named("b").await);
    let mut bench = bench(Limits::default());
    bench
        .listeners
        .apply(&[listener(tcp_port(80), a), listener(tcp_port(81), a)]);
    let at = bench.node.at(tcp_port(80));
    let mut kept = TcpStream::connect(at).await.unwrap();
    ask(&mut kept, "a").await;
    let mut closed = TcpStream::connect(bench.node.at(tcp_port(81))).await.unwrap();
    ask(&mut closed, "a").await;

    bench
        .listeners
        .apply(&[listener(tcp_port(80), b), listener(tcp_port(82), b)]);
    assert_eq!(
        bench.node.at(tcp_port(80)),
        at,
        "the listener was not opened anew"
    );
    let mut new = TcpStream::connect(at).await.unwrap();
    ask(&mut new, "b").await;
    ask(&mut kept, "a").await;
    ask(&mut closed, "a").await;
    let gone = bench.node.at(tcp_port(81));
    let refused = async { while TcpStream::connect(gone).await.is_ok() {} };
    timeout(Duration::from_secs(10), refused)
        .await
        .expect("the port that was taken out still listens");

    bench.carrier.end.cancel();
    assert_eq!(
        kept.read(&mut [0; 8]).await.unwrap_or(0),
        0,
        "the end of the identity ends its connections"
    );
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_counted() {
    let mut bench = bench(Limits {
        connections_per_identity: 2,
        ..Limits::default()
    });
    bench.listeners.apply(&[listener(tcp_port(80), named("a").await)]);
    let at = bench.node.at(tcp_port(80));
    let (mut one, mut two) = (
        TcpStream::connect(at).await.unwrap(),
        TcpStream::connect(at).await.unwrap(),
    );
    ask(&mut one, "a").await;
    ask(&mut two, "a").await;
    let mut three = TcpStream::connect(at).await.unwrap();
    assert_eq!(three.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert_eq!(bench.carrier.metrics.connections_over_limit.get(), 1);
    drop(one);
    eventually("the place is free again", || {
        bench.carrier.metrics.connections_open.get() == 1
    })
    .await;
    let mut four = TcpStream::connect(at).await.unwrap();
    ask(&mut four, "a").await;
}

#[tokio::test]
async fn probes_and_connections_tell_the_health_of_backends() {
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut bench = bench(Limits::default());
    bench.listeners.apply(&[listener(tcp_port(80), dead)]);
    let health = bench.carrier.health();
    let of = |port| health.borrow()[&port].clone();
    assert_eq!(of(tcp_port(80)), Health::Unknown);
    bench.listeners.probe().await;
    let Health::Unreachable(error) = of(tcp_port(80)) else {
        panic!("{:?}", of(tcp_port(80)))
    };
    assert_eq!(error.reason(), IdentityReason::BackendRefused);
    let mut client = TcpStream::connect(bench.node.at(tcp_port(80))).await.unwrap();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert_eq!(bench.carrier.metrics.connections_without_backend.get(), 1);

    bench.listeners.apply(&[listener(tcp_port(80), named("a").await)]);
    assert_eq!(
        of(tcp_port(80)),
        Health::Unknown,
        "nothing is known of the new backend"
    );
    bench.listeners.probe().await;
    assert_eq!(of(tcp_port(80)), Health::Reachable);
    bench.listeners.apply(&[]);
    assert!(health.borrow().is_empty());
}

#[tokio::test]
async fn a_port_that_cannot_be_opened_does_not_hinder_the_others() {
    let a = named("a").await;
    let mut bench = bench(Limits::default());
    bench
        .listeners
        .apply(&[listener(tcp_port(1), a), listener(tcp_port(80), a)]);
    assert_eq!(
        bench.listeners.failed().get(&tcp_port(1)),
        Some(&SocketError::PortInUse(1))
    );
    ask(
        &mut TcpStream::connect(bench.node.at(tcp_port(80))).await.unwrap(),
        "a",
    )
    .await;
}

#[tokio::test]
async fn udp_flows_are_apart_end_when_idle_and_are_bounded() {
    const DNS: Port = Port {
        protocol: Protocol::Udp,
        number: 53,
    };
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let backend = server.local_addr().unwrap();
    // Answers each datagram with the port it came from, and the datagram.
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            let answer = [&from.port().to_be_bytes()[..], &buffer[..length]].concat();
            server.send_to(&answer, from).await.unwrap();
        }
    });
    let limits = Limits {
        connections_per_identity: 2,
        udp_idle: Duration::from_millis(300),
        ..Limits::default()
    };
    let mut bench = bench(limits);
    bench.listeners.apply(&[listener(DNS, backend)]);
    let at = bench.node.at(DNS);
    let exchange = async |client: &UdpSocket, text: &[u8]| {
        client.send_to(text, at).await.unwrap();
        let mut buffer = [0; 2048];
        let length = timeout(Duration::from_secs(5), client.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&buffer[2..length], text);
        u16::from_be_bytes([buffer[0], buffer[1]])
    };
    let (one, two, three) = (
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
    );
    let first = exchange(&one, b"one").await;
    assert_ne!(
        exchange(&two, b"two").await,
        first,
        "each peer has a flow of its own"
    );
    assert_eq!(exchange(&one, &[7; 1200]).await, first, "a flow keeps its socket");
    let metrics = bench.carrier.metrics.clone();
    three.send_to(b"three", at).await.unwrap();
    eventually("a third flow is refused", || metrics.flows_over_limit.get() == 1).await;
    eventually("silent flows end", || metrics.flows_open.get() == 0).await;
    exchange(&three, b"three").await;
    bench.listeners.apply(&[]);
    eventually("flows end with their listener", || metrics.flows_open.get() == 0).await;
}

#[tokio::test]
async fn a_backend_is_told_who_calls_if_it_wants_to_know() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bench = bench(Limits::default());
    let spec = Listener {
        proxy_protocol: true,
        ..listener(tcp_port(80), server.local_addr().unwrap())
    };
    bench.listeners.apply(&[spec]);
    let at = bench.node.at(tcp_port(80));
    let mut client = TcpStream::connect(at).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let (mut backend, _) = server.accept().await.unwrap();
    let caller = bench.node.caller(at);
    let own = SocketAddr::new(at.ip(), 80);
    let header = header(client.local_addr().unwrap(), own, caller.as_ref());
    let mut got = vec![0; header.len() + 5];
    timeout(Duration::from_secs(10), backend.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, [&header[..], b"hello"].concat());
}
