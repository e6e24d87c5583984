//! Egress to loopback sockets in place of a tailnet.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use tailwharf_kube_types::IdentityReason;
use tailwharf_node::{DialError, SocketError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::*;
use crate::backend::BackendError;
use crate::limits::{Limits, Room};

/// A device of the pretended tailnet: its address, and where that is on loopback.
#[derive(Clone, Copy)]
struct Device {
    address: IpAddr,
    at: SocketAddr,
}

#[derive(Clone, Default)]
struct Pretended(Arc<Mutex<Map>>);

#[derive(Default)]
struct Map {
    names: HashMap<String, Device>,
    own: Option<IpAddr>,
    away: Vec<IpAddr>,
    denied: bool,
}

impl Pretended {
    fn with<T>(&self, change: impl FnOnce(&mut Map) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    fn name(&self, name: &str, address: &str, at: SocketAddr) {
        let address = address.parse().unwrap();
        self.with(|map| map.names.insert(name.to_owned(), Device { address, at }));
    }

    fn at(&self, address: IpAddr) -> Option<SocketAddr> {
        self.with(|map| {
            map.names
                .values()
                .find(|device| device.address == address)
                .map(|device| device.at)
        })
    }
}

impl Tailnet for Pretended {
    type Stream = TcpStream;
    type Flow = UdpSocket;

    fn resolve(&self, name: &str) -> Vec<IpAddr> {
        self.with(|map| {
            map.names
                .get(name)
                .map(|device| device.address)
                .into_iter()
                .collect()
        })
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.with(|map| map.own == Some(address))
    }

    fn is_away(&self, address: IpAddr) -> bool {
        self.with(|map| map.away.contains(&address))
    }

    async fn connect(&self, to: SocketAddr) -> Result<TcpStream, DialError> {
        if self.with(|map| map.denied) {
            return Err(DialError::Denied(to));
        }
        if self.is_away(to.ip()) {
            return std::future::pending().await;
        }
        let at = self
            .at(to.ip())
            .ok_or_else(|| DialError::UnknownAddress(to.ip()))?;
        TcpStream::connect(at).await.map_err(|_| DialError::Refused(to))
    }

    fn flow(&self, to: SocketAddr) -> Result<UdpSocket, SocketError> {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .connect(self.at(to.ip()).ok_or(SocketError::Closed)?)
            .unwrap();
        socket.set_nonblocking(true).unwrap();
        Ok(UdpSocket::from_std(socket).unwrap())
    }
}

/// A TCP server that says its name to whoever connects.
async fn named(name: &'static str) -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            // A probe may be gone already.
            let _ = stream.write_all(name.as_bytes()).await;
        }
    });
    at
}

struct Bench {
    tailnet: Pretended,
    carrier: Arc<Carrier>,
    outlets: Outlets<Pretended>,
}

fn bench() -> Bench {
    let limits = Limits {
        udp_idle: Duration::from_millis(200),
        ..Limits::default()
    };
    let room = Room::of_identity(&Arc::new(Semaphore::new(limits.connections)), &limits);
    let end = CancellationToken::new();
    let carrier = Carrier::new("ts-db".into(), Arc::default(), Arc::default(), limits, room, end);
    let tailnet = Pretended::default();
    Bench {
        outlets: Outlets::new(tailnet.clone(), carrier.clone()),
        tailnet,
        carrier,
    }
}

/// A free port of this machine; tests run beside each other.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("[::]:0").unwrap();
    socket.local_addr().unwrap().port()
}

const PORT: u16 = 80;

fn port(protocol: Protocol) -> Port {
    Port {
        protocol,
        number: PORT,
    }
}

fn egress(targets: &str, protocol: Protocol, pod_port: u16) -> Egress {
    Egress {
        targets: Target::parse_names(targets).unwrap(),
        ports: vec![EgressPort {
            name: "main".to_owned(),
            protocol,
            port: PORT,
            pod_port,
        }],
        all_ports: false,
        from: None,
    }
}

/// What a pod hears at `pod_port`: a name, or nothing when it is refused.
async fn ask(pod_port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", pod_port)).await?;
    let mut heard = vec![0; 64];
    let length = timeout(Duration::from_secs(10), stream.read(&mut heard)).await??;
    heard.truncate(length);
    Ok(String::from_utf8(heard).unwrap())
}

impl Bench {
    fn reason(&self) -> Option<IdentityReason> {
        let health = self.carrier.health().borrow().clone();
        match health.values().next() {
            Some(Health::Unreachable(error @ BackendError::Target(_))) => Some(error.reason()),
            _ => None,
        }
    }
}

#[tokio::test]
async fn a_connection_goes_to_whoever_has_the_name_now() {
    let mut bench = bench();
    bench.tailnet.name("db", "100.64.0.7", named("old").await);
    let pod_port = free_port();
    bench.outlets.apply(Some(&egress("db", Protocol::Tcp, pod_port)));
    assert!(bench.outlets.failed().is_empty());
    assert_eq!(ask(pod_port).await.unwrap(), "old");
    bench.tailnet.name("db", "100.64.0.8", named("new").await);
    assert_eq!(ask(pod_port).await.unwrap(), "new");
    assert_eq!(
        bench.carrier.health().borrow()[&port(Protocol::Tcp)],
        Health::Reachable
    );
    bench.outlets.apply(None);
    assert!(bench.carrier.health().borrow().is_empty());
    while ask(pod_port).await.is_ok() {}
}

#[tokio::test]
async fn targets_take_turns_and_stand_in_for_each_other() {
    let mut bench = bench();
    bench.tailnet.name("a", "100.64.0.1", named("a").await);
    bench.tailnet.name("b", "100.64.0.2", named("b").await);
    let pod_port = free_port();
    bench.outlets.apply(Some(&egress("a,b", Protocol::Tcp, pod_port)));
    let mut heard = Vec::new();
    for _ in 0..4 {
        heard.push(ask(pod_port).await.unwrap());
    }
    heard.sort();
    assert_eq!(heard, ["a", "a", "b", "b"]);
    bench.tailnet.with(|map| map.names.remove("a"));
    for _ in 0..3 {
        assert_eq!(ask(pod_port).await.unwrap(), "b");
    }
    bench.outlets.apply(Some(&egress("b", Protocol::Tcp, pod_port)));
    assert_eq!(ask(pod_port).await.unwrap(), "b");
}

#[tokio::test]
async fn what_cannot_be_reached_is_refused_at_once_and_told() {
    let mut bench = bench();
    let pod_port = free_port();
    bench.outlets.apply(Some(&egress("db", Protocol::Tcp, pod_port)));
    bench.outlets.probe().await;
    assert_eq!(bench.reason(), Some(IdentityReason::TargetUnknown));
    assert!(ask(pod_port).await.is_err(), "a reset, not the end of an answer");

    bench.tailnet.name("db", "100.64.0.7", named("db").await);
    bench.tailnet.with(|map| map.own = "100.64.0.7".parse().ok());
    bench.outlets.probe().await;
    assert_eq!(bench.reason(), Some(IdentityReason::TargetIsSelf));

    bench.tailnet.with(|map| {
        map.own = None;
        map.denied = true;
    });
    bench.outlets.probe().await;
    assert_eq!(bench.reason(), Some(IdentityReason::TargetDenied));

    bench.tailnet.with(|map| {
        map.denied = false;
        map.away = vec!["100.64.0.7".parse().unwrap()];
    });
    bench.outlets.probe().await;
    assert_eq!(bench.reason(), Some(IdentityReason::TargetOffline));

    bench.tailnet.with(|map| map.away.clear());
    bench.outlets.probe().await;
    assert_eq!(bench.reason(), None);
    assert_eq!(ask(pod_port).await.unwrap(), "db");
}

#[tokio::test]
async fn a_port_that_is_taken_is_told() {
    let mut bench = bench();
    let taken = std::net::TcpListener::bind("[::]:0").unwrap();
    let pod_port = taken.local_addr().unwrap().port();
    bench.outlets.apply(Some(&egress("db", Protocol::Tcp, pod_port)));
    assert!(bench.outlets.failed().contains_key(&port(Protocol::Tcp)));
    drop(taken);
    bench.outlets.apply(Some(&egress("db", Protocol::Tcp, pod_port)));
    assert!(bench.outlets.failed().is_empty());
}

#[tokio::test]
async fn datagrams_have_flows_that_expire() {
    let mut bench = bench();
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    bench
        .tailnet
        .name("db", "100.64.0.7", server.local_addr().unwrap());
    let pod_port = free_port();
    bench.outlets.apply(Some(&egress("db", Protocol::Udp, pod_port)));
    let pod = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buffer = [0; 64];
    let asked = async {
        loop {
            pod.send_to(b"question", ("127.0.0.1", pod_port)).await.unwrap();
            let received = timeout(Duration::from_millis(50), server.recv_from(&mut buffer)).await;
            if let Ok(received) = received {
                return received.unwrap();
            }
        }
    };
    let (length, flow) = timeout(Duration::from_secs(10), asked).await.unwrap();
    assert_eq!(&buffer[..length], b"question");
    server.send_to(b"answer", flow).await.unwrap();
    let answer = timeout(Duration::from_secs(10), pod.recv_from(&mut buffer));
    let (length, from) = answer.await.unwrap().unwrap();
    assert_eq!((&buffer[..length], from.port()), (&b"answer"[..], pod_port));
    assert_eq!(bench.carrier.metrics.flows_open.get(), 1);
    let expired = async {
        while bench.carrier.metrics.flows_open.get() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), expired).await.unwrap();
}

fn from(ranges: &[&str], mut egress: Egress) -> Egress {
    egress.from = Some(ranges.iter().map(|range| range.parse().unwrap()).collect());
    egress
}

#[tokio::test]
async fn only_pods_that_may_come_in_do_and_the_others_are_named() {
    let mut bench = bench();
    bench.tailnet.name("db", "100.64.0.7", named("db").await);
    let pod_port = free_port();
    let egress = egress("db", Protocol::Tcp, pod_port);
    bench
        .outlets
        .apply(Some(&from(&["10.244.0.7/32"], egress.clone())));
    assert!(ask(pod_port).await.is_err(), "a reset, not the end of an answer");
    assert!(ask(pod_port).await.is_err());
    assert_eq!(bench.carrier.metrics.refused_sources.get(), 2);
    let refused: Vec<IpAddr> = bench
        .outlets
        .refused()
        .iter()
        .map(|refusal| refusal.address)
        .collect();
    assert_eq!(refused, [IpAddr::from([127, 0, 0, 1])]);

    bench
        .outlets
        .apply(Some(&from(&["10.244.0.7/32", "127.0.0.0/30"], egress.clone())));
    assert_eq!(ask(pod_port).await.unwrap(), "db");
    assert_eq!(bench.outlets.refused(), []);
    bench.outlets.apply(Some(&from(&[], egress.clone())));
    assert!(ask(pod_port).await.is_err());
    bench.outlets.apply(Some(&egress));
    assert_eq!(ask(pod_port).await.unwrap(), "db");
}

#[tokio::test]
async fn a_connection_ends_with_the_right_to_it() {
    let mut bench = bench();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bench
        .tailnet
        .name("db", "100.64.0.7", server.local_addr().unwrap());
    let pod_port = free_port();
    let egress = egress("db", Protocol::Tcp, pod_port);
    let allowed = from(&["10.244.0.7/32", "127.0.0.1/32"], egress.clone());
    bench.outlets.apply(Some(&allowed));
    let mut pod = TcpStream::connect(("127.0.0.1", pod_port)).await.unwrap();
    let (mut device, _) = server.accept().await.unwrap();
    let mut byte = [0];
    // Others come and go.
    bench
        .outlets
        .apply(Some(&from(&["127.0.0.1/32"], egress.clone())));
    device.write_all(b"x").await.unwrap();
    pod.read_exact(&mut byte).await.unwrap();

    bench
        .outlets
        .apply(Some(&from(&["10.244.0.7/32"], egress.clone())));
    let end = timeout(Duration::from_secs(10), pod.read(&mut byte))
        .await
        .unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn datagrams_of_others_go_nowhere() {
    let mut bench = bench();
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    bench
        .tailnet
        .name("db", "100.64.0.7", server.local_addr().unwrap());
    let pod_port = free_port();
    let egress = egress("db", Protocol::Udp, pod_port);
    bench.outlets.apply(Some(&from(&["10.244.0.7/32"], egress)));
    let pod = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    pod.send_to(b"question", ("127.0.0.1", pod_port)).await.unwrap();
    let counted = async {
        while bench.carrier.metrics.refused_sources.get() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), counted).await.unwrap();
    assert_eq!(bench.carrier.metrics.flows_open.get(), 0);
}
