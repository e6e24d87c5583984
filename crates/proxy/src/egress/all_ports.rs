//! The sockets of a pod that has all ports for one identity: the first container of the pod leads them here (see [`tailwharf_node::all_ports`]), and the
//! address at which something arrives tells the port that it came to.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Type};
use tailwharf_node::all_ports::{address_of, port_at};
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tracing::warn;

use super::gate::Gate;
use super::pod::{PAUSE, PodListener, bind};
use crate::sockets::{Accept, Datagrams, Origin};

/// Takes connections to all ports.
pub(super) struct AllPortsListener(pub(super) PodListener);

impl Accept for AllPortsListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let (stream, peer) = self.0.accept().await?;
            if Self::asked(&stream).is_some() {
                return Some((stream, peer));
            }
            // It came past what leads ports here, from within the pod.
            Self::refuse(stream);
        }
    }

    fn asked(stream: &TcpStream) -> Option<u16> {
        port_at(stream.local_addr().ok()?.ip())
    }

    fn revoked(&self, peer: SocketAddr) -> impl Future<Output = ()> + Send + 'static {
        self.0.revoked(peer)
    }

    fn refuse(stream: TcpStream) {
        PodListener::refuse(stream);
    }
}

/// Takes datagrams to all ports.
pub(super) struct AllPortsSocket {
    socket: UdpSocket,
    has_v6: bool,
    gate: Arc<Gate>,
}

impl AllPortsSocket {
    /// Receives on `port` of all addresses of the pod.
    ///
    /// # Errors
    /// When the port is taken, or the system does not tell addresses of datagrams.
    pub(super) fn bind(port: u16, gate: Arc<Gate>) -> io::Result<Self> {
        let socket = bind(port, Type::DGRAM, Protocol::UDP)?;
        let has_v6 = socket.domain()? == Domain::IPV6;
        if has_v6 {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        // Answers come from addresses that only a route gives to this machine.
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            has_v6,
            gate,
        })
    }

    /// The next datagram, if it came to an address that tells its port.
    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Option<Origin>)> {
        let mut control = cmsg_space!(libc::in6_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        let peer = message.address.as_ref().and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|&v4| SocketAddr::V4(v4.into()));
            v4.or_else(|| address.as_sockaddr_in6().map(|&v6| SocketAddr::V6(v6.into())))
        });
        let at = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
            }
            _ => None,
        });
        let port = at.and_then(port_at);
        let origin = peer.zip(port).map(|(peer, port)| Origin {
            peer,
            port: Some(port),
        });
        Ok((message.bytes, origin))
    }

    fn try_send(&self, data: &[u8], to: Origin) -> io::Result<()> {
        let Some(port) = to.port else { return Ok(()) };
        let (parts, fd) = ([IoSlice::new(data)], self.socket.as_raw_fd());
        let peer = SockaddrStorage::from(to.peer);
        let (flags, from) = (MsgFlags::MSG_DONTWAIT, address_of(port, to.peer.ip()));
        if self.has_v6 {
            let from = match from {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.octets(),
                },
                ipi6_ifindex: 0,
            };
            sendmsg(
                fd,
                &parts,
                &[ControlMessage::Ipv6PacketInfo(&info)],
                flags,
                Some(&peer),
            )?;
        } else if let IpAddr::V4(from) = from {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(from.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            sendmsg(
                fd,
                &parts,
                &[ControlMessage::Ipv4PacketInfo(&info)],
                flags,
                Some(&peer),
            )?;
        }
        Ok(())
    }
}

impl Datagrams for AllPortsSocket {
    async fn receive(&self, buffer: &mut [u8]) -> Option<(usize, Origin)> {
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, || self.try_receive(buffer));
            match received.await {
                Ok((length, Some(from))) if self.gate.admits(from.peer) => return Some((length, from)),
                Ok(_) => {}
                // That an earlier datagram found no socket at its peer.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    warn!(%error, "a datagram of a pod could not be received");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn send(&self, data: &[u8], to: Origin) -> bool {
        let sent = self.socket.try_io(Interest::WRITABLE, || self.try_send(data, to));
        sent.is_ok()
    }
}
