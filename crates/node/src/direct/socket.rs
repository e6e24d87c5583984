//! The UDP socket of one node: batches in and out, through the kernel's segmentation where that works.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce, UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
    sendmsg, setsockopt,
};
use rand::Rng;
use socket2::{Domain, Protocol, Type};
use tailwharf_node_core::{BUFFER_LEN, Transmit};
use tokio::io::Interest;

use crate::mark;
use crate::offload::{Kind, NamedOffload, Offload, OffloadSwitches};

/// Ports for nodes: below those that Linux gives to outgoing connections, so that nothing takes one while its node is away, and outside of Kubernetes' NodePorts.
const PORTS: std::ops::Range<u16> = 10_000..30_000;
/// How many of them are tried before the system is asked for any.
const ATTEMPTS: usize = 16;
/// What the kernel may keep of packets that come faster than they are read. It gives less if it is set to. More of it would only make packets wait.
const KERNEL_BUFFER: usize = 512 << 10;
/// Messages of one receive call: at first, and most. One message is a datagram, or a batch that the kernel put together.
const MIN_MESSAGES: usize = 4;
const MAX_MESSAGES: usize = 64;
/// How long a sender that may wait does so for room in the kernel.
const ROOM_TIMEOUT_MS: u8 = 5;

thread_local! {
    /// Where datagrams are read to: one for all nodes that a thread serves. Memory is taken as far as datagrams reach.
    static RECEIVER: RefCell<Receiver> = RefCell::new(Receiver::new());
}

/// A UDP socket for IPv4 and, where the system has it, IPv6.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: Watched,
    port: u16,
    has_v6: bool,
    gso: Offload,
    gro: Offload,
}

/// Who waits for datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A task of the runtime.
    Task,
    /// A thread that carries packets and nothing else, which polls the socket by itself.
    Thread,
}

#[derive(Debug)]
enum Watched {
    Task(tokio::net::UdpSocket),
    Thread(UdpSocket),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Watched::Task(socket) => socket.as_fd(),
            Watched::Thread(socket) => socket.as_fd(),
        }
    }
}

impl Socket {
    /// Binds the port that the node had before, if it is free, or another one.
    pub(crate) fn bind(
        before: Option<u16>,
        reader: Reader,
        switches: OffloadSwitches,
        rng: &mut impl Rng,
    ) -> io::Result<Self> {
        let mut ports: Vec<u16> = before.into_iter().collect();
        ports.extend((0..ATTEMPTS).map(|_| rng.gen_range(PORTS)));
        ports.push(0);
        let mut last = io::ErrorKind::AddrInUse.into();
        for port in ports {
            match Self::bind_port(port, reader, switches) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bind_port(port: u16, reader: Reader, switches: OffloadSwitches) -> io::Result<Self> {
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
            has_v6,
            // Setting the option to zero changes nothing where it is known.
            gso: Offload::probe(Kind::UdpGso, switches.udp_gso, || {
                setsockopt(&socket, UdpGsoSegment, &0).is_ok()
            }),
            gro: Offload::probe(Kind::UdpGro, switches.udp_gro, || {
                setsockopt(&socket, UdpGroSegment, &true).is_ok()
            }),
            socket: match reader {
                Reader::Task => Watched::Task(tokio::net::UdpSocket::from_std(socket)?),
                Reader::Thread => Watched::Thread(socket),
            },
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn offloads(&self) -> [NamedOffload; 2] {
        [self.gso.named(), self.gro.named()]
    }

    /// Whether packets to and from this address can go through the socket.
    pub(crate) fn takes(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() || self.has_v6
    }

    /// Sends datagrams, or loses them, as any network may. What the kernel has no room for now is lost too, unless the caller has the time to wait a little.
    /// Returns `false` if the kernel turned out not to segment.
    pub(crate) fn send(&self, to: SocketAddr, transmit: &Transmit<'_>, may_wait: bool) -> bool {
        let before = self.gso.is_active();
        let address = SockaddrStorage::from(match to {
            SocketAddr::V4(v4) if self.has_v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            to => to,
        });
        if let Err(error) = self.try_send(&address, transmit, may_wait) {
            tracing::trace!(%to, %error, "datagrams could not be sent");
        }
        before == self.gso.is_active()
    }

    fn try_send(&self, to: &SockaddrStorage, transmit: &Transmit<'_>, may_wait: bool) -> nix::Result<()> {
        let is_single = transmit.payload.len() <= transmit.segment;
        if is_single || self.gso.is_active() {
            let segment = transmit.segment as u16;
            let control = [ControlMessage::UdpGsoSegments(&segment)];
            let control = if is_single { &control[..0] } else { &control };
            let payload = [IoSlice::new(transmit.payload)];
            let sent = self.when_there_is_room(may_wait, || {
                sendmsg(
                    self.as_fd().as_raw_fd(),
                    &payload,
                    control,
                    MsgFlags::empty(),
                    Some(to),
                )
            });
            match sent {
                // How the kernel says that a device or the route cannot segment, or checksum, for us.
                Err(error @ (Errno::EIO | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT))
                    if !is_single =>
                {
                    self.gso.fail(&error);
                }
                sent => return sent.map(drop),
            }
        }
        self.send_singly(to, transmit, may_wait)
    }

    fn send_singly(&self, to: &SockaddrStorage, transmit: &Transmit<'_>, may_wait: bool) -> nix::Result<()> {
        let datagrams: Vec<_> = transmit.datagrams().map(|one| [IoSlice::new(one)]).collect();
        let addresses = vec![Some(*to); datagrams.len()];
        let mut done = 0;
        while done < datagrams.len() {
            done += self.when_there_is_room(may_wait, || {
                let mut headers = MultiHeaders::preallocate(datagrams.len() - done, None);
                let sent = sendmmsg(
                    self.as_fd().as_raw_fd(),
                    &mut headers,
                    &datagrams[done..],
                    &addresses[done..],
                    [],
                    MsgFlags::empty(),
                )?;
                Ok(sent.count().max(1))
            })?;
        }
        Ok(())
    }

    fn when_there_is_room<T>(&self, may_wait: bool, send: impl Fn() -> nix::Result<T>) -> nix::Result<T> {
        match send() {
            Err(Errno::EAGAIN) if may_wait => {
                let mut room = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
                poll(&mut room, PollTimeout::from(ROOM_TIMEOUT_MS))?;
                send()
            }
            sent => sent,
        }
    }

    /// Takes what one call brings: datagrams of one sender that lie end to end, each `segment` bytes long but for the last. Says whether there may be more.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there was nothing.
    pub(crate) fn receive(&self, take: impl FnMut(SocketAddr, &mut [u8], usize)) -> io::Result<bool> {
        let fd = self.as_fd().as_raw_fd();
        RECEIVER.with_borrow_mut(|receiver| match &self.socket {
            Watched::Task(socket) => socket.try_io(Interest::READABLE, || receiver.receive(fd, take)),
            Watched::Thread(_) => receiver.receive(fd, take),
        })
    }

    /// Waits until something can be received. For [`Reader::Thread`] that never comes.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match &self.socket {
            Watched::Task(socket) => socket.readable().await,
            Watched::Thread(_) => std::future::pending().await,
        }
    }
}

/// Room for one receive call.
struct Receiver {
    buffer: Vec<u8>,
    /// How many messages the next call takes at most.
    messages: usize,
}

/// What came in one message.
#[derive(Clone, Copy)]
struct Received {
    from: SocketAddr,
    length: usize,
    segment: usize,
}

impl Receiver {
    fn new() -> Self {
        Self {
            buffer: vec![0; MAX_MESSAGES * BUFFER_LEN],
            messages: MIN_MESSAGES,
        }
    }

    fn receive(&mut self, fd: RawFd, mut take: impl FnMut(SocketAddr, &mut [u8], usize)) -> io::Result<bool> {
        let asked = self.messages;
        let received = read_messages(fd, &mut self.buffer, asked)?;
        let is_full = received.len() == asked;
        for (message, place) in received.iter().zip(self.buffer.chunks_mut(BUFFER_LEN)) {
            if message.length > 0 {
                take(message.from, &mut place[..message.length], message.segment);
            }
        }
        // Where the kernel puts datagrams together, few messages are much; where it does not, the calls should count for more.
        let in_batches = received.iter().any(|message| message.length > message.segment);
        self.messages = match is_full {
            true if !in_batches => (asked * 2).min(MAX_MESSAGES),
            false if received.len() * 4 <= asked => (asked / 2).max(MIN_MESSAGES),
            _ => asked,
        };
        Ok(is_full)
    }
}

/// One receive call for at most `count` messages, each into [`BUFFER_LEN`] bytes of `buffer`.
fn read_messages(fd: RawFd, buffer: &mut [u8], count: usize) -> nix::Result<Vec<Received>> {
    let mut headers =
        MultiHeaders::<SockaddrStorage>::preallocate(count, Some(nix::cmsg_space!(std::ffi::c_int)));
    let mut places: Vec<_> = buffer
        .chunks_mut(BUFFER_LEN)
        .take(count)
        .map(|place| [IoSliceMut::new(place)])
        .collect();
    let messages = recvmmsg(fd, &mut headers, places.iter_mut(), MsgFlags::empty(), None)?;
    let received = messages.map(|message| {
        let segment = message
            .cmsgs()
            .into_iter()
            .flatten()
            .find_map(|control| match control {
                ControlMessageOwned::UdpGroSegments(segment) => usize::try_from(segment).ok(),
                _ => None,
            });
        let from = message.address.as_ref().and_then(sender);
        Received {
            from: from.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            length: message.bytes,
            segment: segment.filter(|segment| *segment > 0).unwrap_or(message.bytes),
        }
    });
    Ok(received.collect())
}

/// The address of a sender; that of IPv4 in its plain form.
fn sender(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some(SocketAddr::new(IpAddr::from(v6.ip()).to_canonical(), v6.port()))
    })
}

fn open(domain: Domain, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    // As much of it as the system allows; who may set up networks gets all.
    if setsockopt(&socket, RcvBufForce, &KERNEL_BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(KERNEL_BUFFER);
    }
    if setsockopt(&socket, SndBufForce, &KERNEL_BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(KERNEL_BUFFER);
    }
    mark::apply(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tailwharf_node_core::Path;

    use super::*;

    const ON: OffloadSwitches = OffloadSwitches::ALL;
    const OFF: OffloadSwitches = OffloadSwitches::NONE;

    #[test]
    fn a_port_is_kept_and_a_taken_one_is_not_waited_for() {
        let mut rng = StdRng::seed_from_u64(1);
        let first = Socket::bind(None, Reader::Thread, ON, &mut rng).unwrap();
        let port = first.port();
        assert!(PORTS.contains(&port));
        let second = Socket::bind(Some(port), Reader::Thread, ON, &mut rng).unwrap();
        assert_ne!(second.port(), port);
        drop(first);
        assert_eq!(
            Socket::bind(Some(port), Reader::Thread, ON, &mut rng)
                .unwrap()
                .port(),
            port
        );
    }

    /// Sends a batch of `count` datagrams of 1000 bytes and one of 10 over loopback, and gives what arrived.
    fn carry(sender: &Socket, receiver: &Socket, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut payload: Vec<u8> = (0..count * 1000).map(|at| (at / 1000) as u8).collect();
        payload.extend([0xff; 10]);
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, receiver.port()));
        let transmit = Transmit {
            path: Path::Udp(to),
            payload: &payload,
            segment: 1000,
        };
        assert!(sender.send(to, &transmit, true));
        let mut got = Vec::new();
        while got.len() < count + 1 {
            let mut readable = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
            assert!(
                poll(&mut readable, 5000u16).unwrap() > 0,
                "{} datagrams arrived",
                got.len()
            );
            let _ = receiver.receive(|from, datagrams, segment| {
                got.extend(datagrams.chunks(segment).map(|one| (from, one.to_vec())));
            });
        }
        got
    }

    #[test]
    fn batches_arrive_as_the_datagrams_they_are_with_and_without_offloads() {
        let mut rng = StdRng::seed_from_u64(2);
        for (here, there) in [(ON, ON), (ON, OFF), (OFF, ON), (OFF, OFF)] {
            let here = Socket::bind(None, Reader::Thread, here, &mut rng).unwrap();
            let there = Socket::bind(None, Reader::Thread, there, &mut rng).unwrap();
            for count in [0, 1, 40] {
                let got = carry(&here, &there, count);
                let from = SocketAddr::from((Ipv4Addr::LOCALHOST, here.port()));
                for (number, (source, datagram)) in got[..count].iter().enumerate() {
                    assert_eq!((*source, datagram), (from, &vec![number as u8; 1000]));
                }
                assert_eq!(got[count], (from, vec![0xff; 10]));
            }
        }
    }

    #[test]
    fn a_kernel_that_refuses_segmentation_is_not_asked_again() {
        let mut rng = StdRng::seed_from_u64(3);
        let here = Socket::bind(None, Reader::Thread, ON, &mut rng).unwrap();
        let there = Socket::bind(None, Reader::Thread, ON, &mut rng).unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, there.port()));
        // More segments than the kernel takes in one call: it answers EINVAL.
        let payload = vec![7; 60_000];
        let transmit = Transmit {
            path: Path::Udp(to),
            payload: &payload,
            segment: 100,
        };
        assert!(!here.send(to, &transmit, true));
        assert_eq!(here.offloads()[0].1.name(), "failed");
        assert_eq!(carry(&here, &there, 3).len(), 4);
    }
}
