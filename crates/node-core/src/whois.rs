//! Who is behind an address.

use std::net::IpAddr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
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

/// A capability was granted with a value of another form than the one expected.
#[derive(Debug, thiserror::Error)]
#[error("value {position} of the capability {name} has another form than expected")]
pub struct CapabilityError {
    /// The capability.
    pub name: String,
    /// Which of its values, counted from zero.
    pub position: usize,
    /// What the parser said.
    #[source]
    source: serde_json::Error,
}

impl WhoIs {
    /// The values with which the policy grants the caller an app capability at this node. `None`: it does not; empty: it does, without a value.
    ///
    /// # Errors
    /// When a value cannot be read as a `T`. Whoever grants by these values should deny then.
    pub fn capability<T: DeserializeOwned>(&self, name: &str) -> Result<Option<Vec<T>>, CapabilityError> {
        let Some(values) = self.cap_map.get(name) else {
            return Ok(None);
        };
        let read = |(position, value): (usize, &serde_json::Value)| {
            T::deserialize(value).map_err(|source| CapabilityError {
                name: name.to_owned(),
                position,
                source,
            })
        };
        values
            .iter()
            .enumerate()
            .map(read)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Whether the caller's node itself has a capability, such as one of the policy's `nodeAttrs`.
    #[must_use]
    pub fn node_has(&self, name: &str) -> bool {
        self.node.cap_map.contains_key(name)
    }
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

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;
    use tailwharf_wire::tailcfg::Node;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Greet {
        level: u32,
    }

    fn whois(values: Option<Vec<serde_json::Value>>) -> WhoIs {
        let name = "example.com/cap/greet".to_owned();
        let node = Node {
            cap_map: [("funnel".to_owned(), Vec::new())].into(),
            ..Node::default()
        };
        WhoIs {
            node: Arc::new(Peer::from_node(&node)),
            user: Arc::default(),
            cap_map: values.map(|values| (name, values)).into_iter().collect(),
        }
    }

    #[test]
    fn values_of_capabilities_have_types() {
        let greet = |who: &WhoIs| who.capability::<Greet>("example.com/cap/greet");
        let two = whois(Some(vec![json!({"level": 3}), json!({"level": 1, "more": []})]));
        assert_eq!(
            greet(&two).unwrap(),
            Some(vec![Greet { level: 3 }, Greet { level: 1 }])
        );
        assert_eq!(greet(&whois(Some(Vec::new()))).unwrap(), Some(Vec::new()));
        assert_eq!(greet(&whois(None)).unwrap(), None);
        let wrong = greet(&whois(Some(vec![json!({"level": 3}), json!("high")]))).unwrap_err();
        assert_eq!(wrong.position, 1);
        assert!(two.node_has("funnel") && !two.node_has("example.com/cap/greet"));
    }
}
