//! Which networks this node carries for peers, and which it reaches through them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tailwharf_node_core::VIA;
use tailwharf_node_core::netmap::Netmap;
use tailwharf_wire::tailcfg::StableId;
use tokio::sync::watch;

use crate::control::Announced;
use crate::engine::Engine;

/// What the core is told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Routing {
    /// Networks that sockets of this machine stand in for.
    transit: Vec<IpNet>,
    accept_routes: bool,
    exit: Option<StableId>,
}

impl Routing {
    /// With a device the kernel passes packets on, but for those to addresses of sites and to what an app connector found, and the settings of the device say
    /// what goes to peers.
    fn of(announced: &Announced, netmap: &Netmap, has_device: bool) -> Self {
        let prefs = &announced.prefs;
        let mut transit = announced.routes();
        if has_device {
            transit.retain(|net| is_site(net) || !prefs.routes.contains(net));
            return Self {
                transit,
                ..Self::default()
            };
        }
        let name = prefs.exit_node.as_deref();
        Self {
            transit,
            accept_routes: prefs.accept_routes,
            exit: name.and_then(|name| exit_node(netmap, name)),
        }
    }
}

/// Keeps the core's routes as the preferences and the tailnet say, for as long as this is polled.
pub(crate) async fn follow(engine: Arc<Engine>, mut announced: watch::Receiver<Announced>, has_device: bool) {
    let mut netmaps = engine.watch_netmap();
    let mut told = Routing::default();
    loop {
        let offered = announced.borrow_and_update().clone();
        let netmap = netmaps.borrow_and_update().clone();
        engine.update_status(|status| status.routes = approved(&offered, &netmap));
        let routing = Routing::of(&offered, &netmap, has_device);
        if routing != told {
            engine.with_core(|core, _| {
                if routing.transit != told.transit {
                    core.set_transit(&routing.transit);
                }
                if !has_device {
                    core.set_routing(routing.accept_routes, routing.exit.clone());
                }
            });
            told = routing;
        }
        let gone = tokio::select! {
            changed = announced.changed() => changed.is_err(),
            changed = netmaps.changed() => changed.is_err(),
        };
        if gone {
            return;
        }
    }
}

/// The peer that a person calls `name`, if it lets others use it as their exit.
pub(crate) fn exit_node(netmap: &Netmap, name: &str) -> Option<StableId> {
    let peer = match name.parse::<IpAddr>() {
        Ok(address) => netmap.peer_by_address(address),
        Err(_) => netmap.peer_by_name(name),
    }?;
    let offers = peer.allowed_ips.iter().any(|net| net.prefix_len() == 0);
    offers.then(|| peer.stable_id.clone())
}

/// Those of the offered networks that the control server routes to this node.
fn approved(announced: &Announced, netmap: &Netmap) -> Vec<IpNet> {
    let routed = netmap.self_node().map(|own| own.routes()).unwrap_or_default();
    let is_routed = |net: &IpNet| routed.iter().any(|route| route.trunc() == net.trunc());
    let mut routes = announced.routes();
    routes.retain(is_routed);
    routes
}

/// Whether a network is one of addresses of sites.
fn is_site(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if VIA.contains(v6))
}
