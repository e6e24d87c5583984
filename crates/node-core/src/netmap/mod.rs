//! What this node knows of its tailnet, as an immutable snapshot that map responses are applied to.
//!
//! Snapshots share what did not change. Peers, user profiles and relay maps are interned by an [`Interner`], so a process that hosts many identities holds
//! each record once; an identity keeps references and an index of a few bytes per peer.

mod intern;
mod peer;
mod peers;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tailwharf_wire::key::{DiscoPublic, NodePublic};
use tailwharf_wire::tailcfg::{DerpMap, DnsConfig, MapResponse, Node, NodeId, UserId, UserProfile};

pub use self::intern::Interner;
pub use self::peer::Peer;
use self::peers::PeerSet;
use crate::filter::{Filter, FilterPart, RuleError};

/// An immutable view of the tailnet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Netmap {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    self_node: Option<Arc<Node>>,
    self_peer: Option<Arc<Peer>>,
    peers: Arc<PeerSet>,
    users: Arc<BTreeMap<UserId, Arc<UserProfile>>>,
    derp_map: Option<Arc<DerpMap>>,
    dns: Option<Arc<DnsConfig>>,
    domain: Arc<str>,
    parts: BTreeMap<String, Arc<FilterPart>>,
    filter: Arc<Filter>,
    locked: bool,
}

/// Ranges whose addresses belong to tailnets alone.
const TAILNET_RANGES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0),
        48,
    )),
];

/// Whether an address belongs to tailnets alone, so that nobody else knows its name or way.
pub(crate) fn is_tailnet_address(address: IpAddr) -> bool {
    TAILNET_RANGES.iter().any(|range| range.contains(&address))
}

/// Name of the filter part that the old form of the whole filter replaces.
const BASE_PART: &str = "base";
/// Key of [`MapResponse::packet_filters`] that stands for all parts.
const ALL_PARTS: &str = "*";

impl Netmap {
    /// This snapshot with the changes of a map response.
    ///
    /// Filter rules that cannot be read are left out, which denies what they would have allowed, and are returned.
    #[must_use]
    pub fn apply(&self, response: &MapResponse, interner: &Interner) -> (Self, Vec<RuleError>) {
        let mut next = Inner::clone(&self.inner);
        if let Some(node) = &response.node {
            next.self_peer = Some(interner.peer(Peer::from_node(node)));
            next.self_node = Some(Arc::new(Node {
                hostinfo: None,
                ..node.clone()
            }));
        }
        if let Some(derp_map) = &response.derp_map {
            next.derp_map = Some(interner.derp_map(derp_map));
        }
        if let Some(dns) = &response.dns_config {
            next.dns = Some(Arc::new(dns.clone()));
        }
        if !response.domain.is_empty() && *response.domain != *next.domain {
            next.domain = response.domain.as_str().into();
        }
        if let Some(lock) = &response.tka_info {
            next.locked = !lock.disabled;
        }
        if !response.user_profiles.is_empty() {
            let users = Arc::make_mut(&mut next.users);
            users.extend(
                response
                    .user_profiles
                    .iter()
                    .map(|user| (user.id, interner.user(user))),
            );
        }
        if let Some(peers) = next.peers.apply(response, interner) {
            next.peers = Arc::new(peers);
        }
        let mut errors = Vec::new();
        next.apply_filters(response, &mut errors);
        (
            Self {
                inner: Arc::new(next),
            },
            errors,
        )
    }

    /// This node itself. Its `hostinfo` is left out. `None` before the first map response.
    #[must_use]
    pub fn self_node(&self) -> Option<&Arc<Node>> {
        self.inner.self_node.as_ref()
    }

    /// Own addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.inner
            .self_peer
            .iter()
            .flat_map(|peer| peer.addresses.iter().copied())
    }

    /// Own address of the family of `like`.
    #[must_use]
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses().find(|own| own.is_ipv4() == like.is_ipv4())
    }

    /// All peers, sorted by number. None while [`Self::is_locked`].
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peer_set().iter()
    }

    /// The peer with this number.
    #[must_use]
    pub fn peer(&self, id: NodeId) -> Option<&Arc<Peer>> {
        self.peer_set().by_id(id)
    }

    /// The peer with this node key.
    #[must_use]
    pub fn peer_by_key(&self, key: &NodePublic) -> Option<&Arc<Peer>> {
        self.peer_set().by_key(key)
    }

    /// The peers that claim this disco key. Only one of them can have it.
    pub fn peers_by_disco(&self, key: &DiscoPublic) -> impl Iterator<Item = &Arc<Peer>> {
        self.peer_set().by_disco(*key)
    }

    /// The peer that owns this address.
    #[must_use]
    pub fn peer_by_address(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.peer_set().by_address(address)
    }

    /// The peer to which packets for `address` go: its owner, the one that hosts the service of that address, or with `accept_routes` the one with the
    /// longest subnet route to it. Default routes (exit nodes) are never taken.
    #[must_use]
    pub fn route(&self, address: IpAddr, accept_routes: bool) -> Option<&Arc<Peer>> {
        let peers = self.peer_set();
        peers
            .by_address(address)
            .or_else(|| peers.by_route(address, accept_routes))
    }

    /// Peer by name: its full name, with or without the final dot, or its first label. Case does not matter.
    #[must_use]
    pub fn peer_by_name(&self, name: &str) -> Option<&Arc<Peer>> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let full = self.peers().find(|peer| peer.name.eq_ignore_ascii_case(name));
        full.or_else(|| {
            self.peers()
                .find(|peer| peer.first_label().eq_ignore_ascii_case(name))
        })
    }

    /// A user's profile.
    #[must_use]
    pub fn user(&self, id: UserId) -> Option<&Arc<UserProfile>> {
        self.inner.users.get(&id)
    }

    /// The relays of the tailnet.
    #[must_use]
    pub fn derp_map(&self) -> Option<&Arc<DerpMap>> {
        self.inner.derp_map.as_ref()
    }

    /// How names are resolved.
    #[must_use]
    pub fn dns(&self) -> Option<&Arc<DnsConfig>> {
        self.inner.dns.as_ref()
    }

    /// Name of the tailnet.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.inner.domain
    }

    /// The packet filter.
    #[must_use]
    pub fn filter(&self) -> &Arc<Filter> {
        &self.inner.filter
    }

    /// Whether tailnet lock is on. Signatures cannot be verified here, so a locked netmap shows no peers.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.inner.locked
    }

    pub(crate) fn self_peer(&self) -> Option<&Arc<Peer>> {
        self.inner.self_peer.as_ref()
    }

    /// Whether both have the very same peers, as after a response that did not mention any.
    pub(crate) fn same_peers(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner.peers, &other.inner.peers) && self.inner.locked == other.inner.locked
    }

    fn peer_set(&self) -> &PeerSet {
        static NONE: LazyLock<PeerSet> = LazyLock::new(PeerSet::default);
        if self.inner.locked {
            &NONE
        } else {
            &self.inner.peers
        }
    }
}

impl Inner {
    fn apply_filters(&mut self, response: &MapResponse, errors: &mut Vec<RuleError>) {
        let mut changed = response.node.is_some();
        if !response.packet_filter.is_empty() {
            self.parts.insert(
                BASE_PART.into(),
                Arc::new(FilterPart::compile(&response.packet_filter, errors)),
            );
            changed = true;
        }
        if let Some(parts) = &response.packet_filters {
            changed = true;
            if parts.get(ALL_PARTS).is_some_and(Option::is_none) {
                self.parts.clear();
            }
            for (name, rules) in parts {
                match rules {
                    Some(rules) => {
                        self.parts
                            .insert(name.clone(), Arc::new(FilterPart::compile(rules, errors)));
                    }
                    None => {
                        self.parts.remove(name);
                    }
                }
            }
        }
        if changed {
            let local: &[IpNet] = self.self_node.as_deref().map_or(&[], Node::routes);
            self.filter = Arc::new(Filter::new(local, self.parts.values().cloned().collect()));
        }
    }
}

#[cfg(test)]
mod tests;
