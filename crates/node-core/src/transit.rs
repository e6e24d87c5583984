//! What peers send to addresses that this node routes, where no kernel passes it on: handed to the shell, which has sockets of the machine for it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};

use crate::event::AskedId;
use crate::filter::Local;
use crate::packet::Parsed;
use crate::udp::Datagram;

/// Datagrams and echo requests that wait; later ones are dropped.
const MAX_QUEUE: usize = 512;
/// Bytes in them.
const MAX_QUEUE_BYTES: usize = 512 * 1024;
/// Bytes of the header of an ICMP echo.
const ECHO_HEADER: usize = 8;

/// Where addresses of IPv4 networks that share numbers lie: behind this prefix come the number of the site and the address (Tailscale calls it 4via6).
pub const VIA: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0xb1a, 0, 0, 0, 0), 64);

/// The IPv4 address that an address of a site stands for.
#[must_use]
pub fn via(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V6(v6) if VIA.contains(&v6) => Some(Ipv4Addr::from_bits(v6.to_bits() as u32)),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Something that a peer sent to an address which this node routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transit {
    /// It asks for a connection: to be answered by [`crate::Core::admit`] or [`crate::Core::refuse`].
    Connection {
        /// What to answer.
        asked: AskedId,
        /// Who asks.
        from: SocketAddr,
        /// Where the connection is to lead.
        to: SocketAddr,
    },
    /// A datagram. Answers are sent by [`crate::Core::send_transit`].
    Datagram(Datagram),
    /// An ICMP echo request, which [`crate::Core::answer_echo`] answers.
    Echo(Echo),
}

/// An ICMP echo request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Who asks.
    pub from: IpAddr,
    /// Who is to answer.
    pub to: IpAddr,
    pub(crate) packet: Box<[u8]>,
}

impl Echo {
    /// What the answer is to repeat.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        let parsed = Parsed::parse(&self.packet);
        let payload = parsed.map(|parsed| parsed.transport + ECHO_HEADER..parsed.end);
        payload
            .ok()
            .and_then(|range| self.packet.get(range))
            .unwrap_or_default()
    }
}

/// What waits for the shell.
#[derive(Debug, Default)]
pub(crate) struct TransitQueue {
    routed: Local,
    queue: VecDeque<Transit>,
    /// Datagrams and echoes in the queue, and the bytes in them.
    packets: usize,
    bytes: usize,
    want: bool,
}

impl TransitQueue {
    pub(crate) fn set_routes(&mut self, routes: &[IpNet]) {
        self.routed = Local::new(routes);
    }

    /// Whether packets for this address are for the shell.
    pub(crate) fn takes(&self, address: IpAddr) -> bool {
        self.routed.contains(address)
    }

    /// Whether a route other than a default route leads to the address.
    pub(crate) fn is_named(&self, address: IpAddr) -> bool {
        self.routed.is_named(address)
    }

    /// Keeps something for the shell. Returns whether there was room for it, and whether the shell waits.
    pub(crate) fn push(&mut self, transit: Transit) -> Pushed {
        let size = size(&transit);
        if let Some(size) = size {
            if self.packets >= MAX_QUEUE || self.bytes + size > MAX_QUEUE_BYTES {
                return Pushed::Dropped;
            }
            self.packets += 1;
            self.bytes += size;
        }
        self.queue.push_back(transit);
        if std::mem::take(&mut self.want) {
            Pushed::Awaited
        } else {
            Pushed::Kept
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Transit> {
        let Some(transit) = self.queue.pop_front() else {
            self.queue = VecDeque::new();
            self.want = true;
            return None;
        };
        if let Some(size) = size(&transit) {
            self.packets -= 1;
            self.bytes -= size;
        }
        Some(transit)
    }
}

/// What came of something for the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Kept,
    /// The shell waits for it.
    Awaited,
    Dropped,
}

/// Bytes of a packet; `None` for a connection, of which there are only so many.
fn size(transit: &Transit) -> Option<usize> {
    match transit {
        Transit::Connection { .. } => None,
        Transit::Datagram(datagram) => Some(datagram.payload.len()),
        Transit::Echo(echo) => Some(echo.packet.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sites_stand_for_those_of_ipv4() {
        let found = |text: &str| via(text.parse().unwrap());
        assert_eq!(
            found("fd7a:115c:a1e0:b1a:0:7:a01:203"),
            Some(Ipv4Addr::new(10, 1, 2, 3))
        );
        assert_eq!(found("fd7a:115c:a1e0:b1b:0:7:a01:203"), None);
        assert_eq!(found("10.1.2.3"), None);
    }

    #[test]
    fn the_queue_is_bounded_and_tells_who_waits() {
        let mut queue = TransitQueue::default();
        let datagram = |size| {
            Transit::Datagram(Datagram {
                from: "100.64.0.2:1".parse().unwrap(),
                to: "10.0.0.1:2".parse().unwrap(),
                payload: vec![0; size],
            })
        };
        assert_eq!(queue.push(datagram(10)), Pushed::Kept);
        assert_eq!(queue.pop(), Some(datagram(10)));
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.push(datagram(10)), Pushed::Awaited);
        let kept = (0..2000)
            .filter(|_| queue.push(datagram(10)) == Pushed::Kept)
            .count();
        assert_eq!(kept, MAX_QUEUE - 1);
        while queue.pop().is_some() {}
        queue.push(datagram(MAX_QUEUE_BYTES - 5));
        assert_eq!(queue.push(datagram(10)), Pushed::Dropped);
        while queue.pop().is_some() {}
        assert_eq!((queue.packets, queue.bytes), (0, 0));
    }
}
