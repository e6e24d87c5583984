//! The peers of one netmap: sorted references, and indexes of a few bytes per peer.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tailwharf_wire::key::{DiscoPublic, NodePublic};
use tailwharf_wire::tailcfg::{MapResponse, NodeId};

use super::{Interner, Peer, is_tailnet_address};

/// An immutable set of peers.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerSet {
    /// Sorted by number.
    peers: Vec<Arc<Peer>>,
    index: Arc<Index>,
}

/// Positions in the peer list, sorted by what is looked up.
#[derive(Debug, Default)]
struct Index {
    /// By node key.
    keys: Box<[u32]>,
    /// By disco key; peers without one are left out.
    discos: Box<[u32]>,
    /// By address; the position in the list times [`ADDRESSES`], plus which address.
    addresses: Box<[u32]>,
    /// Subnet routes, longest prefix first.
    routes: Box<[(IpNet, u32)]>,
}

/// How many addresses of one peer are indexed. Nodes have two.
const ADDRESSES: u32 = 8;

impl PeerSet {
    /// This set after a map response, or `None` if that changes nothing.
    pub(super) fn apply(&self, response: &MapResponse, interner: &Interner) -> Option<Self> {
        let mut peers = self.peers.clone();
        if !response.peers.is_empty() {
            peers = response
                .peers
                .iter()
                .map(|node| interner.peer(Peer::from_node(node)))
                .collect();
            peers.sort_unstable_by_key(|peer| peer.id);
            peers.dedup_by_key(|peer| peer.id);
        }
        if !response.peers_removed.is_empty() {
            let mut removed = response.peers_removed.clone();
            removed.sort_unstable();
            peers.retain(|peer| removed.binary_search(&peer.id).is_err());
        }
        for node in &response.peers_changed {
            let peer = interner.peer(Peer::from_node(node));
            match peers.binary_search_by_key(&peer.id, |peer| peer.id) {
                Ok(at) => peers[at] = peer,
                Err(at) => peers.insert(at, peer),
            }
        }
        for patch in &response.peers_changed_patch {
            if let Ok(at) = peers.binary_search_by_key(&patch.node_id, |peer| peer.id) {
                peers[at] = interner.peer(peers[at].patched(patch));
            }
        }
        for (id, online) in &response.online_change {
            if let Ok(at) = peers.binary_search_by_key(id, |peer| peer.id)
                && peers[at].online != Some(*online)
            {
                peers[at] = interner.peer(Peer {
                    online: Some(*online),
                    ..Peer::clone(&peers[at])
                });
            }
        }
        if same(&peers, &self.peers, Arc::ptr_eq) {
            return None;
        }
        peers.shrink_to_fit();
        let index = if same(&peers, &self.peers, same_index) {
            Arc::clone(&self.index)
        } else {
            Arc::new(Index::build(&peers))
        };
        Some(Self { peers, index })
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Arc<Peer>> {
        self.peers.iter()
    }

    pub(super) fn by_id(&self, id: NodeId) -> Option<&Arc<Peer>> {
        let at = self.peers.binary_search_by_key(&id, |peer| peer.id).ok()?;
        self.peers.get(at)
    }

    pub(super) fn by_key(&self, key: &NodePublic) -> Option<&Arc<Peer>> {
        let keys = &self.index.keys;
        let at = keys
            .binary_search_by(|at| self.peers[*at as usize].key.cmp(key))
            .ok()?;
        self.peers.get(keys[at] as usize)
    }

    pub(super) fn by_disco(&self, key: DiscoPublic) -> impl Iterator<Item = &Arc<Peer>> {
        let discos = &self.index.discos;
        let first = discos.partition_point(|at| self.peers[*at as usize].disco < key);
        discos[first..]
            .iter()
            .filter_map(|at| self.peers.get(*at as usize))
            .take_while(move |peer| peer.disco == key)
    }

    pub(super) fn by_address(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        let addresses = &self.index.addresses;
        let at = addresses
            .binary_search_by(|at| indexed_address(&self.peers, *at).cmp(&address))
            .ok()?;
        self.peers.get((addresses[at] / ADDRESSES) as usize)
    }

    /// The peer with the longest route to an address: that of a service, or if `subnets` are wanted of any other.
    pub(super) fn by_route(&self, address: IpAddr, subnets: bool) -> Option<&Arc<Peer>> {
        let (_, at) = self
            .index
            .routes
            .iter()
            .find(|(net, _)| net.contains(&address) && (subnets || is_service(net)))?;
        self.peers.get(*at as usize)
    }
}

impl Index {
    fn build(peers: &[Arc<Peer>]) -> Self {
        let mut keys: Vec<u32> = (0..peers.len() as u32).collect();
        keys.sort_unstable_by_key(|at| peers[*at as usize].key);
        let mut discos: Vec<u32> = (0..peers.len() as u32)
            .filter(|at| !peers[*at as usize].disco.is_zero())
            .collect();
        discos.sort_unstable_by_key(|at| peers[*at as usize].disco);
        let mut addresses = Vec::with_capacity(peers.len() * 2);
        let mut routes = Vec::new();
        for (at, peer) in peers.iter().enumerate() {
            let at = at as u32;
            let indexed = peer.addresses.len().min(ADDRESSES as usize) as u32;
            addresses.extend((0..indexed).map(|which| at * ADDRESSES + which));
            let subnets = peer
                .allowed_ips
                .iter()
                .filter(|net| net.prefix_len() != 0 && !peer.addresses.contains(&net.addr()));
            routes.extend(subnets.map(|net| (*net, at)));
        }
        addresses.sort_unstable_by_key(|at| indexed_address(peers, *at));
        routes.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        Self {
            keys: keys.into(),
            discos: discos.into(),
            addresses: addresses.into(),
            routes: routes.into(),
        }
    }
}

/// Whether a route is the address of a service, not of a subnet.
fn is_service(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len() && is_tailnet_address(net.addr())
}

fn indexed_address(peers: &[Arc<Peer>], at: u32) -> IpAddr {
    peers[(at / ADDRESSES) as usize].addresses[(at % ADDRESSES) as usize]
}

/// Whether two lists are the same, item by item.
fn same<T>(left: &[T], right: &[T], equal: impl Fn(&T, &T) -> bool) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equal(left, right))
}

/// Whether two records of one position leave the index as it is.
fn same_index(left: &Arc<Peer>, right: &Arc<Peer>) -> bool {
    left.key == right.key
        && left.disco == right.disco
        && left.addresses == right.addresses
        && left.allowed_ips == right.allowed_ips
}
