//! Machines that translate addresses.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What a router between a node and the world does with its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    /// There is none.
    None,
    /// One port for all; whoever knows it gets in.
    FullCone,
    /// One port for all; those addresses get in that were sent to.
    Restricted,
    /// One port for all; those addresses and ports get in that were sent to.
    PortRestricted,
    /// A port for each destination.
    Symmetric,
    /// A Kubernetes node: keeps ports, but takes what comes unasked for its own, and then gives its pods another port towards that sender.
    OpenNode,
}

/// How long a router remembers a flow without packets.
const LIFETIME: Duration = Duration::from_secs(30);

/// A router.
pub(crate) struct Router {
    nat: Nat,
    inside: SocketAddr,
    outside: IpAddr,
    /// By our port and the other side: whether the flow is one of the node behind, and its last packet.
    flows: HashMap<(u16, SocketAddr), (bool, Instant)>,
    next_port: u16,
}

impl Router {
    pub(crate) fn new(nat: Nat, inside: SocketAddr, outside: IpAddr) -> Self {
        Self {
            nat,
            inside,
            outside,
            flows: HashMap::new(),
            next_port: 1024,
        }
    }

    fn forget_old(&mut self, now: Instant) {
        self.flows
            .retain(|_, (_, used)| now.duration_since(*used) < LIFETIME);
    }

    /// The address from which the world sees a packet of the node.
    pub(crate) fn out(&mut self, to: SocketAddr, now: Instant) -> SocketAddr {
        self.forget_old(now);
        let keep = self.inside.port();
        let port = match self.nat {
            Nat::None | Nat::FullCone | Nat::Restricted | Nat::PortRestricted => keep,
            Nat::Symmetric | Nat::OpenNode => {
                let known = self
                    .flows
                    .iter()
                    .find(|((_, remote), (inner, _))| *remote == to && *inner)
                    .map(|((port, _), _)| *port);
                let free = self.nat == Nat::OpenNode && !self.flows.contains_key(&(keep, to));
                known.unwrap_or_else(|| {
                    if free {
                        keep
                    } else {
                        self.next_port += 1;
                        self.next_port
                    }
                })
            }
        };
        self.flows.insert((port, to), (true, now));
        SocketAddr::new(self.outside, port)
    }

    /// Whether a packet of the world to one of our ports gets to the node.
    pub(crate) fn lets_in(&mut self, from: SocketAddr, to: SocketAddr, now: Instant) -> bool {
        self.forget_old(now);
        if self.nat == Nat::None {
            return to == self.inside;
        }
        let remotes: HashSet<SocketAddr> = self
            .flows
            .iter()
            .filter(|((port, _), (inner, _))| *port == to.port() && *inner)
            .map(|((_, remote), _)| *remote)
            .collect();
        let open = match self.nat {
            Nat::None => true,
            Nat::FullCone => !remotes.is_empty(),
            Nat::Restricted => remotes.iter().any(|remote| remote.ip() == from.ip()),
            Nat::PortRestricted | Nat::Symmetric | Nat::OpenNode => remotes.contains(&from),
        };
        if open || self.nat == Nat::OpenNode {
            self.flows.insert((to.port(), from), (open, now));
        }
        open
    }

    /// The node gets another address outside, and all flows end.
    pub(crate) fn move_to(&mut self, outside: IpAddr, inside: SocketAddr) {
        self.outside = outside;
        self.inside = inside;
        self.flows.clear();
    }

    pub(crate) fn outside(&self) -> IpAddr {
        self.outside
    }

    pub(crate) fn inside(&self) -> SocketAddr {
        self.inside
    }
}
