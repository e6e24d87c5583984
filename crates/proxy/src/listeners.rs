//! The listeners of one identity: opened, changed and closed while the node runs and connections go on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures::StreamExt;
use tailwharf_kube_types::{Listener, Protocol};
use tailwharf_node::SocketError;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use crate::backend::Backends;
use crate::carrier::{Carrier, Health, Port};
use crate::proxy_protocol::header;
use crate::sockets::{Dial, Sockets};
use crate::{tcp, udp};

/// Backends probed at once.
const PROBES_AT_ONCE: usize = 8;

struct Open {
    spec: Listener,
    backends: watch::Sender<Arc<Backends>>,
    /// Closes the listener; its TCP connections go on.
    _close: DropGuard,
}

/// The listeners of one identity on one node.
pub(crate) struct Listeners<S> {
    sockets: S,
    carrier: Arc<Carrier>,
    open: BTreeMap<Port, Open>,
    failed: BTreeMap<Port, SocketError>,
}

impl<S: Sockets> Listeners<S> {
    /// No listener yet, on the node with these sockets.
    pub(crate) fn new(sockets: S, carrier: Arc<Carrier>) -> Self {
        Self {
            sockets,
            carrier,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Closes what is not wanted any more, opens what is new, and gives the others their backends.
    pub(crate) fn apply(&mut self, wanted: &[Listener]) {
        let wanted: BTreeMap<Port, &Listener> = wanted
            .iter()
            .map(|listener| {
                (
                    Port {
                        protocol: listener.protocol,
                        number: listener.port,
                    },
                    listener,
                )
            })
            .collect();
        for (port, _) in self.open.extract_if(.., |port, _| !wanted.contains_key(port)) {
            self.carrier.forget(port);
        }
        self.failed.clear();
        for (port, listener) in wanted {
            match self.open.get_mut(&port) {
                Some(open) if open.spec == *listener => {}
                Some(open) => {
                    open.spec.clone_from(listener);
                    open.backends.send_replace(backends(&self.sockets, listener));
                    if port.protocol == Protocol::Tcp {
                        self.carrier.track(port);
                    }
                }
                None => {
                    if let Err(error) = self.open(port, listener) {
                        self.failed.insert(port, error);
                    }
                }
            }
        }
    }

    /// The listeners that could not be opened.
    pub(crate) fn failed(&self) -> &BTreeMap<Port, SocketError> {
        &self.failed
    }

    /// Connects once to the backends of each TCP listener of which nothing good is known, and notes how that went.
    pub(crate) fn probe(&self) -> impl Future<Output = ()> + Send + use<S> {
        let health = self.carrier.health().borrow().clone();
        let suspects: Vec<(Port, Arc<Backends>)> = self
            .open
            .iter()
            .filter(|(port, _)| {
                health
                    .get(*port)
                    .is_some_and(|health| *health != Health::Reachable)
            })
            .map(|(port, open)| (*port, open.backends.borrow().clone()))
            .collect();
        let carrier = self.carrier.clone();
        futures::stream::iter(suspects).for_each_concurrent(PROBES_AT_ONCE, move |(port, backends)| {
            let carrier = carrier.clone();
            async move {
                let health = match backends.dial(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).await {
                    Ok(_) => Health::Reachable,
                    Err(error) => Health::Unreachable(error),
                };
                carrier.report(port, health);
            }
        })
    }

    fn open(&mut self, port: Port, listener: &Listener) -> Result<(), SocketError> {
        let close = self.carrier.end.child_token();
        let (sender, backends) = watch::channel(backends(&self.sockets, listener));
        let carrier = self.carrier.clone();
        match port.protocol {
            Protocol::Tcp => {
                let socket = self.sockets.listen_tcp(port.number)?;
                self.carrier.track(port);
                tokio::spawn(tcp::serve(socket, port, backends, carrier, close.clone()));
            }
            Protocol::Udp => {
                let socket = self.sockets.bind_udp(port.number)?;
                tokio::spawn(udp::serve(socket, port, backends, carrier, close.clone()));
            }
        }
        let open = Open {
            spec: listener.clone(),
            backends: sender,
            _close: close.drop_guard(),
        };
        self.open.insert(port, open);
        Ok(())
    }
}

/// The backends of a listener. If they want to know who calls, each connection begins with that.
fn backends<S: Sockets>(node: &S, listener: &Listener) -> Arc<Backends> {
    if !listener.proxy_protocol {
        return Backends::new(&listener.backends);
    }
    let (node, port) = (node.clone(), listener.port);
    let make = move |client: SocketAddr| {
        // Without an own address of its family the client could not have come.
        let own = node.own(client.ip()).unwrap_or_else(|| client.ip());
        header(client, SocketAddr::new(own, port), node.caller(client).as_ref())
    };
    Backends::announcing(&listener.backends, Box::new(make))
}

#[cfg(test)]
mod tests;
