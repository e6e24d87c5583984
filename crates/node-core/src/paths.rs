//! Ways to a peer, and which one its packets take.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tailwharf_wire::key::NodePublic;
use tailwharf_wire::tailcfg::RegionId;

use crate::netmap::Peer;

/// A way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Through the relay of a region.
    Derp {
        /// The region.
        region: RegionId,
        /// The peer, by which relays address packets.
        peer: NodePublic,
    },
    /// By UDP to this address.
    Udp(SocketAddr),
}

/// How long a region that a peer's packets came through is preferred to its home region. A peer that moved tells its new home by the netmap within this time;
/// one that answers through another region because its home is out of reach keeps it alive by talking.
const HEARD_LIFETIME: Duration = Duration::from_secs(30);

/// The paths of all peers that talk.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    heard: HashMap<NodePublic, Heard>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    region: RegionId,
    at: Instant,
}

impl Paths {
    /// Notes that an authentic packet of `peer` came this way.
    pub(crate) fn heard(&mut self, peer: &NodePublic, path: Path, now: Instant) {
        if let Path::Derp { region, .. } = path {
            self.heard.insert(*peer, Heard { region, at: now });
        }
    }

    /// The path for packets to `peer`, or `None` if no way to it is known.
    pub(crate) fn choose(&self, peer: &Peer, now: Instant) -> Option<Path> {
        let heard = self
            .heard
            .get(&peer.key)
            .filter(|heard| now.duration_since(heard.at) < HEARD_LIFETIME);
        let region = heard.map_or(peer.home, |heard| heard.region);
        if region.is_none() {
            None
        } else {
            Some(Path::Derp {
                region,
                peer: peer.key,
            })
        }
    }

    /// Forgets what was learned of a peer.
    pub(crate) fn forget(&mut self, peer: &NodePublic) {
        self.heard.remove(peer);
    }
}
