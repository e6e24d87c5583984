//! A node with a TUN device: packets of the kernel go to peers, and those of peers to the kernel.

use std::time::Instant;

use super::Core;
use crate::filter::is_scoped;
use crate::offload::{Split, TunPacket, VnetHeader};
use crate::packet::{Fragment, Parsed, proto};

impl Core {
    /// From now on packets for this node and what it routes go to a TUN device, but for those on ports that verbs of this core have taken. The device takes
    /// runs of TCP segments, or of datagrams, as one packet if it says so here.
    pub fn attach_tun(&mut self, large_tcp: bool, large_udp: bool) {
        self.has_tun = true;
        self.inbox.set_offloads(large_tcp, large_udp);
    }

    /// Takes a packet that the kernel gave to the device, maybe one that stands for several. Its bytes are used as working space. With `slow_down` the first
    /// of the packets is lost, by which TCP learns that it sends more than can be carried.
    pub fn handle_tun(&mut self, header: &VnetHeader, packet: &mut [u8], slow_down: bool, now: Instant) {
        let Ok(parsed) = Parsed::parse(packet) else {
            self.tunnel.counters.bogus += 1;
            return;
        };
        if is_scoped(parsed.dst) {
            self.tunnel.counters.no_route += 1;
            return;
        }
        let Some(peer) = self.tunnel.route(parsed.dst).cloned() else {
            self.tunnel.counters.no_route += 1;
            return;
        };
        if matches!(parsed.proto, proto::UDP | proto::SCTP) && parsed.fragment != Fragment::Later {
            self.conntrack
                .record(parsed.proto, parsed.source(), parsed.destination());
        }
        let Ok(mut split) = Split::new(&mut packet[..], header) else {
            self.tunnel.counters.bogus += 1;
            return;
        };
        if slow_down {
            split.next_packet();
        }
        if let Some(mut sender) = self.tunnel.sender(&peer, now) {
            while let Some(packet) = split.next_packet() {
                sender.send(packet);
            }
        }
    }

    /// The next packet for the TUN device. Call it until it returns `None`, once [`Self::poll_transmit`] has.
    pub fn poll_tun(&mut self) -> Option<TunPacket<'_>> {
        self.inbox.pop()
    }
}
