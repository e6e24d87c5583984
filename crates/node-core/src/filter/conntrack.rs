//! Which datagrams answer something that we sent.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::packet::Parsed;

/// How many flows are remembered; the least recently used goes first. The number of official nodes.
const FLOWS: usize = 512;

/// A flow as we send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    protocol: u8,
    local: SocketAddr,
    remote: SocketAddr,
}

/// Recent outbound UDP flows.
#[derive(Debug, Default)]
pub(crate) struct Conntrack {
    /// The last use of each flow.
    flows: HashMap<Flow, u64>,
    /// Uses in order. An entry counts only if it is the flow's last.
    uses: VecDeque<(Flow, u64)>,
    clock: u64,
}

impl Conntrack {
    /// Remembers a datagram that we send.
    pub(crate) fn record(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr) {
        let flow = Flow {
            protocol,
            local,
            remote,
        };
        if self.uses.back().is_some_and(|(last, _)| *last == flow) {
            return;
        }
        self.clock += 1;
        self.flows.insert(flow, self.clock);
        self.uses.push_back((flow, self.clock));
        if self.uses.len() > 2 * FLOWS {
            self.uses
                .retain(|(flow, used)| self.flows.get(flow) == Some(used));
        }
        while self.flows.len() > FLOWS {
            let Some((oldest, used)) = self.uses.pop_front() else {
                break;
            };
            if self.flows.get(&oldest) == Some(&used) {
                self.flows.remove(&oldest);
            }
        }
    }

    /// Whether a packet answers one of ours.
    pub(crate) fn is_answer(&self, packet: &Parsed) -> bool {
        !self.flows.is_empty()
            && self.flows.contains_key(&Flow {
                protocol: packet.proto,
                local: packet.destination(),
                remote: packet.source(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{proto, write_udp};

    fn answer(local: SocketAddr, remote: SocketAddr) -> Parsed {
        let mut packet = Vec::new();
        write_udp(&mut packet, remote, local, b"");
        Parsed::parse(&packet).unwrap()
    }

    #[test]
    fn the_least_recently_used_flow_goes_first() {
        let mut conntrack = Conntrack::default();
        let local: SocketAddr = "100.64.0.1:1".parse().unwrap();
        let remote = |port: u16| SocketAddr::new("100.64.0.2".parse().unwrap(), port);
        for round in 0..5000u32 {
            // One flow is used all the time, one only at first, the others in turn.
            conntrack.record(proto::UDP, local, remote(1));
            conntrack.record(proto::UDP, local, remote(1000 + (round % 600) as u16));
            assert!(conntrack.flows.len() <= FLOWS && conntrack.uses.len() <= 2 * FLOWS + 1);
        }
        assert!(conntrack.is_answer(&answer(local, remote(1))));
        assert!(conntrack.is_answer(&answer(local, remote(1000 + 4999 % 600))));
        assert!(!conntrack.is_answer(&answer(local, remote(1000 + 4400 % 600))));
        assert!(!conntrack.is_answer(&answer(remote(1), local)));
    }
}
