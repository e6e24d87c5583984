//! What the public gateway needs to know: who it is, and where a connection of the internet goes.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tailwharf_policy::{FUNNEL, Tag};

use super::{Minted, NewAuthKey, OpError, Operations, credentials};
use crate::{
    model::{Actor, AuthKey, Node},
    world::World,
};

/// How long the gateway may take to join with its key.
const KEY_LIFE: Duration = Duration::from_secs(600);
/// What the gateway's device is called.
pub const GATEWAY_NAME: &str = "funnel-gateway";

/// Where a connection of the internet goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunnelTarget {
    /// The full name of the node.
    pub name: String,
    /// The peer API of the node, on the tailnet.
    pub peer_api: SocketAddr,
}

/// Why a connection of the internet goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FunnelRefusal {
    /// No node has the name.
    #[error("no device has this name")]
    UnknownName,
    /// The policy does not let the node be reached.
    #[error("the policy gives the device no attribute `funnel`")]
    NotAllowed,
    /// The node does not want to be reached, or not yet.
    #[error("the device has not turned Funnel on")]
    NotOffered,
    /// The node is not there.
    #[error("the device is not connected")]
    Offline,
}

impl Operations {
    /// Where a connection goes that asks for a name.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub fn funnel_target(&self, name: &str) -> Result<FunnelTarget, FunnelRefusal> {
        target(&self.world(), name)
    }

    /// An auth key by which the gateway joins, good for once and for minutes.
    ///
    /// # Errors
    /// `Store`.
    pub async fn funnel_gateway_key(&self) -> Result<Minted<AuthKey>, OpError> {
        self.submit(|world, context| {
            let tag: Tag = Tag::FUNNEL_GATEWAY
                .parse()
                .map_err(|error: crate::model::InvalidTag| OpError::Invalid(error.to_string()))?;
            let new = NewAuthKey {
                creator: Actor::Administrator,
                owner: None,
                description: "the public gateway of this server".to_owned(),
                reusable: false,
                ephemeral: false,
                preauthorized: true,
                tags: BTreeSet::from([tag]),
                lifetime: Some(KEY_LIFE),
            };
            credentials::mint_auth_key(world, context, new)
        })
        .await
    }
}

fn target(world: &World, name: &str) -> Result<FunnelTarget, FunnelRefusal> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let node = name
        .strip_suffix(world.facts().suffix.as_str())
        .and_then(|rest| rest.strip_suffix('.'))
        .and_then(|label| world.node_by_name(label))
        .filter(|node| world.is_member(node.id))
        .ok_or(FunnelRefusal::UnknownName)?;
    if !world.graph().cap_map_for(node.id).contains_key(FUNNEL) {
        return Err(FunnelRefusal::NotAllowed);
    }
    if !node.hostinfo.ingress_enabled {
        return Err(FunnelRefusal::NotOffered);
    }
    if !world.presence(node.id).online {
        return Err(FunnelRefusal::Offline);
    }
    let peer_api = peer_api(node).ok_or(FunnelRefusal::NotOffered)?;
    Ok(FunnelTarget { name, peer_api })
}

fn peer_api(node: &Node) -> Option<SocketAddr> {
    let services = &node.hostinfo.services;
    let port = |proto: &str| {
        services
            .iter()
            .find(|service| service.proto == proto)
            .map(|service| service.port)
    };
    port("peerapi4")
        .map(|port| SocketAddr::from((node.ipv4, port)))
        .or_else(|| port("peerapi6").map(|port| SocketAddr::from((node.ipv6, port))))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tailwharf_wire::tailcfg::{NodeId, Service};

    use super::*;
    use crate::{
        lab::{Lab, active},
        model::NodeOwner,
        world::{Change, Presence},
    };

    const POLICY: &str = r#"{"tagOwners": {"tag:web": []}, "acls": [], "nodeAttrs": [{"target": ["tag:web"], "attr": ["funnel"]}]}"#;
    const WEB: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const GATEWAY: NodeId = NodeId(3);

    fn lab() -> Lab {
        let mut lab = Lab::new();
        lab.apply(&[Change::PutPolicy(Arc::new(active(2, POLICY)))]);
        for (seed, tag, name) in [
            (1, "tag:web", "web"),
            (2, "tag:other", "other"),
            (3, Tag::FUNNEL_GATEWAY, GATEWAY_NAME),
        ] {
            let key = lab.auth_key(None, &[tag], |_| {});
            lab.join(seed, &key, name);
        }
        lab
    }

    fn turn_on(lab: &mut Lab, id: NodeId) {
        let mut node = lab.world.node(id).unwrap().as_ref().clone();
        node.hostinfo.ingress_enabled = true;
        node.hostinfo.services = vec![Service {
            proto: "peerapi4".to_owned(),
            port: 41_080,
            ..Service::default()
        }];
        let online = Presence {
            online: true,
            ..Presence::default()
        };
        lab.apply(&[Change::PutNode(Arc::new(node)), Change::SetPresence(id, online)]);
    }

    #[test]
    fn only_nodes_that_may_and_want_are_reached() {
        let mut lab = lab();
        assert_eq!(
            target(&lab.world, "web.tail1234.ts.net"),
            Err(FunnelRefusal::NotOffered)
        );
        turn_on(&mut lab, WEB);
        turn_on(&mut lab, OTHER);
        let web = lab.world.node(WEB).unwrap().ipv4;
        for name in ["web.tail1234.ts.net", "WEB.tail1234.ts.net."] {
            let found = target(&lab.world, name).unwrap();
            assert_eq!(found.peer_api, SocketAddr::from((web, 41_080)));
        }
        for name in [
            "web",
            "nobody.tail1234.ts.net",
            "web.example.com",
            "xtail1234.ts.net",
            "",
        ] {
            assert_eq!(
                target(&lab.world, name),
                Err(FunnelRefusal::UnknownName),
                "{name}"
            );
        }
        assert_eq!(
            target(&lab.world, "other.tail1234.ts.net"),
            Err(FunnelRefusal::NotAllowed)
        );
        lab.apply(&[Change::SetPresence(WEB, Presence::default())]);
        assert_eq!(
            target(&lab.world, "web.tail1234.ts.net"),
            Err(FunnelRefusal::Offline)
        );
    }

    #[test]
    fn the_gateway_sees_those_nodes_and_nobody_else_sees_it() {
        let lab = lab();
        let graph = lab.world.graph();
        assert_eq!(graph.peers_of(GATEWAY), [WEB]);
        assert_eq!(graph.peers_of(WEB), [GATEWAY]);
        assert!(graph.rules_for(GATEWAY).is_empty(), "nobody reaches it");
        let gateway = lab.world.node(GATEWAY).unwrap();
        let rules = graph.rules_for(WEB);
        assert_eq!(rules.len(), 1);
        assert!(rules[0].src_ips.contains(&gateway.ipv4.to_string()));
        assert!(
            rules[0].cap_grant[0]
                .cap_map
                .contains_key("https://tailscale.com/cap/ingress")
        );
        assert!(rules[0].dst_ports.is_empty());
    }

    #[test]
    fn where_all_is_allowed_the_gateway_is_still_nobody() {
        let mut lab = lab();
        let open =
            r#"{"tagOwners": {"tag:web": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
        lab.apply(&[Change::PutPolicy(Arc::new(active(3, open)))]);
        assert_eq!(lab.world.graph().peers_of(GATEWAY), []);
        assert_eq!(lab.world.graph().peers_of(WEB), [OTHER]);
    }

    #[test]
    fn nobody_can_be_given_the_tag_of_the_gateway() {
        let lab = lab();
        let tag: Tag = Tag::FUNNEL_GATEWAY.parse().unwrap();
        assert!(!lab.world.may_assign_tag(&Actor::Administrator, &tag));
        let text = r#"{"tagOwners": {"tag:funnel-gateway": ["autogroup:admin"]}}"#;
        let errors = tailwharf_policy::Policy::parse(text).unwrap_err();
        assert!(errors[0].to_string().contains("Funnel gateway"), "{errors:?}");
        let node = lab.world.node(GATEWAY).unwrap();
        assert!(matches!(&node.owner, NodeOwner::Tags(_)) && node.is_funnel_gateway());
    }
}
