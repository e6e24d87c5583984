//! Who is behind an address.

use std::net::IpAddr;
use std::sync::Arc;

use tailwharf_wire::tailcfg::{CapMap, UserProfile};

use crate::netmap::{Netmap, Peer};

/// Who is behind an address.
#[derive(Clone, Debug, PartialEq)]
pub struct WhoIs {
    /// The node.
    pub node: Arc<Peer>,
    /// Its user; for a tagged node the profile that tagged nodes share.
    pub user: Arc<UserProfile>,
    /// What the caller may do at this node, from the grants of the policy.
    pub cap_map: CapMap,
}

/// Who calls from `remote`, and with which capabilities at our address `local` (by default the one of the same family). `None` if no visible node has the
/// address, or its user is not known.
pub(crate) fn whois(netmap: &Netmap, remote: IpAddr, local: Option<IpAddr>) -> Option<WhoIs> {
    let remote = remote.to_canonical();
    let own = netmap.self_peer().filter(|peer| peer.addresses.contains(&remote));
    let node = Arc::clone(own.or_else(|| netmap.peer_by_address(remote))?);
    let user = Arc::clone(netmap.user(node.user)?);
    let local = local
        .map(|local| local.to_canonical())
        .or_else(|| netmap.address_like(remote));
    let cap_map = local
        .map(|local| netmap.filter().capabilities(remote, &node, local))
        .unwrap_or_default();
    Some(WhoIs { node, user, cap_map })
}
