//! Direct paths of one node: its UDP socket, what it tells the core about the network around it, and what becomes known by that.

mod interfaces;
mod servers;
mod socket;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tailwharf_node_core::NetFacts;
use tailwharf_wire::tailcfg::EndpointType;

pub(crate) use self::interfaces::Interfaces;
pub(crate) use self::socket::{Reader, Socket};
use crate::engine::Engine;

/// Where peers may find this node by UDP, and what is known of its network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) endpoints: Vec<(SocketAddr, EndpointType)>,
    pub(crate) facts: NetFacts,
}

/// Carries what comes to the socket, and follows changes of the machine's addresses and of the STUN servers, until the node ends.
pub(crate) async fn run(engine: Arc<Engine>, socket: Arc<Socket>, with_loopback: bool) {
    let mut interfaces = engine.host().interfaces();
    loop {
        tokio::select! {
            received = socket.readable() => match received {
                Ok(()) => engine.receive(&socket),
                Err(error) => {
                    tracing::warn!(%error, "the UDP socket cannot be read; packets go through relays");
                    return;
                }
            },
            changed = interfaces.changed() => {
                if changed.is_err() {
                    return;
                }
                let addresses = interfaces.borrow_and_update().clone();
                tell_addresses(&engine, &socket, &addresses, with_loopback);
            }
            () = engine.stun_plan_changed() => {
                // Names may take long to resolve; packets do not wait for that.
                engine.spawn(find_servers(engine.clone()));
            }
        }
    }
}

/// Tells the core at which addresses of the machine the socket is.
pub(crate) fn tell_addresses(engine: &Engine, socket: &Socket, addresses: &[IpAddr], with_loopback: bool) {
    let local: Vec<_> = addresses
        .iter()
        .filter(|ip| socket.takes(**ip) && (with_loopback || !ip.is_loopback()))
        .map(|ip| SocketAddr::new(*ip, socket.port()))
        .collect();
    engine.with_core(|core, now| core.set_local_endpoints(local, now));
}

async fn find_servers(engine: Arc<Engine>) {
    let Some((map, home)) = engine.relays().stun_plan() else {
        return;
    };
    let has_v6 = engine
        .host()
        .interfaces()
        .borrow()
        .iter()
        .any(|ip| ip.is_ipv6() && !ip.is_loopback());
    let servers = servers::resolve(&map, home, has_v6).await;
    engine.with_core(|core, now| core.set_stun_servers(&servers, now));
}
