//! What peers send to addresses that this node routes, where the shell passes it on instead of a kernel.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use rand_core::RngCore as _;

use super::Core;
use crate::event::{AdmitError, AskedId, ConnId, Event, Io, UdpError};
use crate::icmp::Complaint;
use crate::packet::{INNER_MTU, Parsed, fragments, max_udp_payload, proto, write_echo_reply, write_udp};
use crate::transit::{Echo, Pushed, Transit};
use crate::udp::Datagram;

/// Bytes of transport in a fragment: a multiple of eight that fits beside the larger header.
const FRAGMENT: usize = (INNER_MTU - 48) / 8 * 8;
/// Largest payload of a datagram.
const MAX_DATAGRAM: usize = 65_507;

impl Core {
    /// From now on packets for these networks, as far as the packet filter has them routed here, are handed out by [`Self::next_transit`]. Default routes
    /// stand for the internet, not for private networks. Connections to what is not among them any more are reset.
    pub fn set_transit(&mut self, routes: &[IpNet]) {
        self.transit.set_routes(routes);
        self.recheck();
    }

    /// Whether an address is routed here by a route other than a default route.
    #[must_use]
    pub fn is_named_route(&self, address: IpAddr) -> bool {
        self.transit.is_named(address)
    }

    /// The next thing that a peer sent to a routed address.
    pub fn next_transit(&mut self) -> Io<Transit> {
        self.transit.pop().map_or(Io::Pending, Io::Ready)
    }

    /// Takes a connection that a peer asked for. [`Event::Connected`] or [`Event::Closed`] follows; reading and writing need not wait for it.
    ///
    /// # Errors
    /// When the peer asks no longer or may not have it any more, or memory is used up.
    pub fn admit(&mut self, asked: AskedId, now: Instant) -> Result<ConnId, AdmitError> {
        let tuple = self.tcp.asked(asked).ok_or(AdmitError::Gone)?;
        let filter = self.tunnel.netmap.filter();
        let may = self.transit.takes(tuple.local.ip())
            && self
                .tunnel
                .route(tuple.remote.ip())
                .is_some_and(|peer| filter.admits(peer, tuple.remote.ip(), tuple.local));
        if !may {
            self.refuse(asked, now);
            return Err(AdmitError::Gone);
        }
        self.tcp.admit(asked)
    }

    /// Refuses a connection that a peer asked for, as a closed port does.
    pub fn refuse(&mut self, asked: AskedId, now: Instant) {
        self.tcp.refuse(asked, &mut self.tunnel, now);
    }

    /// Sends a datagram from a routed address to a peer, in fragments if it is large.
    ///
    /// # Errors
    /// When it is larger than any, or no peer has that address.
    pub fn send_transit(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), UdpError> {
        let no_route = UdpError::NoRoute { remote: to };
        if payload.len() > MAX_DATAGRAM {
            let (size, limit) = (payload.len(), MAX_DATAGRAM);
            return Err(UdpError::TooLarge { size, limit });
        }
        if from.is_ipv4() != to.is_ipv4() {
            return Err(no_route);
        }
        let peer = self.tunnel.route(to.ip()).cloned().ok_or(no_route)?;
        write_udp(&mut self.scratch, from, to, payload);
        if payload.len() <= max_udp_payload(to.ip()) {
            self.tunnel.send_to(&peer, &self.scratch, now);
        } else if let Ok(parsed) = Parsed::parse(&self.scratch) {
            let id = self.rng.next_u32();
            for fragment in fragments(&self.scratch, &parsed, FRAGMENT, id) {
                self.tunnel.send_to(&peer, &fragment, now);
            }
        }
        Ok(())
    }

    /// Answers an echo request in the name of whom it was for.
    pub fn answer_echo(&mut self, echo: &Echo, now: Instant) {
        if let Ok(parsed) = Parsed::parse(&echo.packet) {
            write_echo_reply(&mut self.scratch, &echo.packet, &parsed);
            self.tunnel.send(&self.scratch, echo.from, now);
        }
    }

    /// Takes a whole packet for a routed address that the filter let pass.
    pub(super) fn handle_transit(&mut self, length: usize, parsed: &Parsed, now: Instant) {
        let packet = self.inbox.opened(length);
        let transit = match parsed.proto {
            proto::TCP => {
                let asked = self.tcp.handle_routed(packet, parsed, &mut self.tunnel, now);
                asked.map(|asked| Transit::Connection {
                    asked,
                    from: parsed.source(),
                    to: parsed.destination(),
                })
            }
            proto::UDP => packet.get(parsed.transport + 8..parsed.end).map(|payload| {
                Transit::Datagram(Datagram {
                    from: parsed.source(),
                    to: parsed.destination(),
                    payload: payload.to_vec(),
                })
            }),
            proto::ICMP | proto::ICMP6 if parsed.is_icmp_echo() => Some(Transit::Echo(Echo {
                from: parsed.src,
                to: parsed.dst,
                packet: packet.get(..parsed.end).unwrap_or_default().into(),
            })),
            proto::ICMP | proto::ICMP6 => {
                if let Some(complaint) = Complaint::read(packet, parsed) {
                    self.handle_complaint(&complaint);
                }
                None
            }
            _ => {
                self.tunnel.counters.undelivered += 1;
                None
            }
        };
        match transit.map(|transit| self.transit.push(transit)) {
            Some(Pushed::Awaited) => self.tunnel.events.push_back(Event::Transit),
            Some(Pushed::Dropped) => self.tunnel.counters.undelivered += 1,
            Some(Pushed::Kept) | None => {}
        }
    }
}
