//! What one identity reaches on the tailnet for pods of the cluster: a socket of this pod for each port, and the targets behind it.

mod all_ports;
mod error;
mod gate;
mod pod;
mod tailnet;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tailwharf_kube_types::contract::ALL_PORTS;
use tailwharf_kube_types::{Egress, EgressPort, Protocol, Refusal, Target};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::all_ports::{AllPortsListener, AllPortsSocket};
pub(crate) use self::error::TargetError;
use self::gate::Gate;
use self::pod::{PodListener, PodSocket};
pub(crate) use self::tailnet::Tailnet;
use self::targets::{ALL, Targets};
use crate::carrier::{Carrier, Health, Port};
use crate::sockets::Dial;
use crate::{tcp, udp};

/// Targets probed at once.
const PROBES_AT_ONCE: usize = 8;
/// How often it is looked whether a target that answered is still on the tailnet.
const LOOK: Duration = Duration::from_secs(5);

struct Open<N> {
    pod_port: u16,
    targets: watch::Sender<Arc<Targets<N>>>,
    /// Closes the socket; its TCP connections go on.
    _close: DropGuard,
}

/// The ways of one identity to its targets.
pub(crate) struct Outlets<N> {
    node: N,
    carrier: Arc<Carrier>,
    gate: Arc<Gate>,
    targets: Vec<Target>,
    open: BTreeMap<Port, Open<N>>,
    failed: BTreeMap<Port, io::Error>,
}

impl<N: Tailnet> Outlets<N> {
    /// No way yet, by this node.
    pub(crate) fn new(node: N, carrier: Arc<Carrier>) -> Self {
        Self {
            node,
            gate: Gate::new(carrier.clone()),
            carrier,
            targets: Vec::new(),
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Closes what is not wanted any more, opens what is new, and gives the others their targets.
    pub(crate) fn apply(&mut self, wanted: Option<&Egress>) {
        let (targets, ports) = wanted.map_or((&[][..], &[][..]), |egress| (&egress.targets, &egress.ports));
        if let Some(egress) = wanted {
            self.gate.allow(egress.from.as_deref());
        }
        let port_of = |port: &EgressPort| Port {
            protocol: port.protocol,
            number: port.port,
        };
        let mut ports: BTreeMap<Port, u16> =
            ports.iter().map(|port| (port_of(port), port.pod_port)).collect();
        if wanted.is_some_and(|egress| egress.all_ports) {
            let all = |protocol| Port {
                protocol,
                number: ALL,
            };
            ports.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| (all(protocol), ALL_PORTS)));
        }
        for (port, _) in self
            .open
            .extract_if(.., |port, open| ports.get(port) != Some(&open.pod_port))
        {
            self.carrier.forget(port);
        }
        if self.targets != targets {
            self.targets = targets.to_vec();
            for (port, open) in &self.open {
                let targets = Targets::new(self.node.clone(), &self.targets, port.number);
                open.targets.send_replace(Arc::new(targets));
                self.carrier.track(*port);
            }
        }
        self.failed.clear();
        for (port, pod_port) in ports {
            if !self.open.contains_key(&port)
                && let Err(error) = self.open(port, pod_port)
            {
                self.failed.insert(port, error);
            }
        }
    }

    /// The ports that could not be opened.
    pub(crate) fn failed(&self) -> &BTreeMap<Port, io::Error> {
        &self.failed
    }

    /// Pods that were refused lately.
    pub(crate) fn refused(&self) -> Vec<Refusal> {
        self.gate.refused()
    }

    fn open(&mut self, port: Port, pod_port: u16) -> io::Result<()> {
        let close = self.carrier.end.child_token();
        let targets = Arc::new(Targets::new(self.node.clone(), &self.targets, port.number));
        let (sender, targets) = watch::channel(targets);
        let carrier = self.carrier.clone();
        match port.protocol {
            Protocol::Tcp => {
                let listener = PodListener::bind(pod_port, self.gate.clone())?;
                let (targets, close) = (targets.clone(), close.clone());
                if port.number == ALL {
                    let listener = AllPortsListener(listener);
                    tokio::spawn(tcp::serve(listener, port, targets, carrier, close));
                } else {
                    tokio::spawn(tcp::serve(listener, port, targets, carrier, close));
                }
            }
            Protocol::Udp => {
                let (targets, close) = (targets.clone(), close.clone());
                if port.number == ALL {
                    let socket = AllPortsSocket::bind(pod_port, self.gate.clone())?;
                    tokio::spawn(udp::serve(socket, port, targets, carrier, close));
                } else {
                    let socket = PodSocket::bind(pod_port, self.gate.clone())?;
                    tokio::spawn(udp::serve(socket, port, targets, carrier, close));
                }
            }
        }
        self.carrier.track(port);
        tokio::spawn(look(targets, port, self.carrier.clone(), close.clone()));
        let open = Open {
            pod_port,
            targets: sender,
            _close: close.drop_guard(),
        };
        self.open.insert(port, open);
        Ok(())
    }

    /// Tries the targets of each port of which nothing good is known, and notes how that went.
    pub(crate) fn probe(&self) -> impl Future<Output = ()> + Send + use<N> {
        let health = self.carrier.health().borrow().clone();
        let suspects: Vec<(Port, Arc<Targets<N>>)> = self
            .open
            .iter()
            .filter(|(port, _)| {
                health
                    .get(*port)
                    .is_some_and(|health| *health != Health::Reachable)
            })
            .map(|(port, open)| (*port, open.targets.borrow().clone()))
            .collect();
        let carrier = self.carrier.clone();
        futures::stream::iter(suspects).for_each_concurrent(PROBES_AT_ONCE, move |(port, targets)| {
            let carrier = carrier.clone();
            async move {
                let outcome = match port.protocol {
                    Protocol::Tcp if port.number != ALL => {
                        targets.dial(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).await.map(drop)
                    }
                    Protocol::Tcp | Protocol::Udp => targets.find().map_err(Into::into),
                };
                carrier.report(
                    port,
                    outcome.map_or_else(Health::Unreachable, |()| Health::Reachable),
                );
            }
        })
    }
}

/// Notes when all targets of a port have left the tailnet, though nobody tries to reach them.
async fn look<N: Tailnet>(
    targets: watch::Receiver<Arc<Targets<N>>>,
    port: Port,
    carrier: Arc<Carrier>,
    closed: CancellationToken,
) {
    loop {
        tokio::select! {
            () = closed.cancelled() => return,
            () = sleep(LOOK) => {}
        }
        let outcome = targets.borrow().find();
        if let Err(error) = outcome {
            carrier.report(port, Health::Unreachable(error.into()));
        }
    }
}
