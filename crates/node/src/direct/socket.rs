//! The UDP socket of one node.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rand::Rng;
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};
use tokio::net::UdpSocket;

/// Largest datagram.
const MAX_DATAGRAM: usize = 65_535;
/// Ports for nodes: below those that Linux gives to outgoing connections, so that nothing takes one while its node is away, and outside of Kubernetes' NodePorts.
const PORTS: std::ops::Range<u16> = 10_000..30_000;
/// How many of them are tried before the system is asked for any.
const ATTEMPTS: usize = 16;
/// What the kernel may keep of packets that come faster than they are read. It gives less if it is set to.
const KERNEL_BUFFER: usize = 1 << 20;

thread_local! {
    /// Where datagrams are read to: one buffer for all nodes that a thread serves. Memory is taken as far as datagrams reach.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_DATAGRAM]);
}

/// A UDP socket for IPv4 and, where the system has it, IPv6.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    port: u16,
    has_v6: bool,
}

impl Socket {
    /// Binds the port that the node had before, if it is free, or another one.
    pub(crate) fn bind(before: Option<u16>, rng: &mut impl Rng) -> io::Result<Self> {
        let mut ports: Vec<u16> = before.into_iter().collect();
        ports.extend((0..ATTEMPTS).map(|_| rng.gen_range(PORTS)));
        ports.push(0);
        let mut last = io::ErrorKind::AddrInUse.into();
        for port in ports {
            match Self::bind_port(port) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bind_port(port: u16) -> io::Result<Self> {
        let dual = open(Domain::IPV6, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
        let (socket, has_v6) = match dual {
            Ok(socket) => (socket, true),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(_) => {
                let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
                (open(Domain::IPV4, any)?, false)
            }
        };
        Ok(Self {
            port: socket.local_addr()?.port(),
            socket,
            has_v6,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether packets to and from this address can go through the socket.
    pub(crate) fn takes(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() || self.has_v6
    }

    /// Sends a datagram, or loses it, as any network may.
    pub(crate) fn send(&self, to: SocketAddr, payload: &[u8]) {
        let to = match to {
            SocketAddr::V4(v4) if self.has_v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            to => to,
        };
        // Straight to the kernel: what it does not take now is as good as lost on the way.
        let sent = SockRef::from(&self.socket).send_to(payload, &SockAddr::from(to));
        if let Err(error) = sent {
            tracing::trace!(%to, %error, "a datagram could not be sent");
        }
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Takes up to `most` datagrams.
    pub(crate) fn receive(&self, most: usize, mut take: impl FnMut(SocketAddr, &mut [u8])) {
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..most {
                match self.socket.try_recv_from(buffer) {
                    Ok((length, from)) => {
                        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                        take(from, &mut buffer[..length]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(error) => tracing::trace!(%error, "a datagram could not be received"),
                }
            }
        });
    }
}

fn open(domain: Domain, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    // As much of it as the system allows.
    let _ = socket.set_recv_buffer_size(KERNEL_BUFFER);
    let _ = socket.set_send_buffer_size(KERNEL_BUFFER);
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[tokio::test]
    async fn a_port_is_kept_and_a_taken_one_is_not_waited_for() {
        let mut rng = StdRng::seed_from_u64(1);
        let first = Socket::bind(None, &mut rng).unwrap();
        let port = first.port();
        assert!(PORTS.contains(&port));
        let second = Socket::bind(Some(port), &mut rng).unwrap();
        assert_ne!(second.port(), port);
        drop(first);
        assert_eq!(Socket::bind(Some(port), &mut rng).unwrap().port(), port);
    }

    #[tokio::test]
    async fn datagrams_of_ipv4_come_with_their_plain_address() {
        let mut rng = StdRng::seed_from_u64(2);
        let (here, there) = (
            Socket::bind(None, &mut rng).unwrap(),
            Socket::bind(None, &mut rng).unwrap(),
        );
        here.send(SocketAddr::from((Ipv4Addr::LOCALHOST, there.port())), b"hello");
        there.readable().await.unwrap();
        let mut got = Vec::new();
        there.receive(8, |from, bytes| got.push((from, bytes.to_vec())));
        assert_eq!(
            got,
            [(
                SocketAddr::from((Ipv4Addr::LOCALHOST, here.port())),
                b"hello".to_vec()
            )]
        );
    }
}
