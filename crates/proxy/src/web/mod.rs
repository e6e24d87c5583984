//! The web server of a device: TLS, routing, and forwarding of HTTP to backends.
//!
//! A connection goes through `connection.rs` (TLS, limits, who calls), each of its requests through `forward.rs`: find the route
//! (`router.rs`), say who asks (`caller.rs`), choose a backend and a connection (`upstream.rs`), pass the bodies on (`body.rs`).

mod body;
mod caller;
mod connection;
mod counters;
mod forward;
mod log;
mod pages;
mod router;
mod site;
#[cfg(test)]
mod tests;
mod tls;
mod upstream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use tailwharf_kube_types::Protocol;
use tailwharf_kube_types::identity::web::{HTTP_PORT, HTTPS_PORT, PlainHttp, Web as Spec};
use tailwharf_node::SocketError;
use tokio_util::sync::DropGuard;

use self::caller::Caller;
pub(crate) use self::connection::Callers;
use self::connection::{Door, serve};
pub(crate) use self::counters::WebCounters;
use self::site::{Site, Sites};
pub(crate) use self::tls::Certificates;
use crate::carrier::{Carrier, Port};
use crate::limits::Room;
use crate::sockets::Sockets;
use crate::status::BackendTrouble;

/// Backends probed at once.
const PROBES_AT_ONCE: usize = 8;

/// The web server of one identity on one node.
pub(crate) struct WebServer<S> {
    sockets: S,
    carrier: Arc<Carrier>,
    sites: Arc<Sites>,
    certificates: Arc<Certificates>,
    /// Open ports. Dropping a guard closes one; requests under way are finished.
    open: BTreeMap<u16, DropGuard>,
    /// The port for the internet, while it is open.
    public: Option<DropGuard>,
    failed: BTreeMap<Port, String>,
}

impl<S: Sockets + Callers + Clone> WebServer<S> {
    /// Nothing is served yet.
    #[must_use]
    pub(crate) fn new(sockets: S, carrier: Arc<Carrier>) -> Self {
        Self {
            sockets,
            carrier,
            sites: Sites::empty(),
            certificates: Arc::default(),
            open: BTreeMap::new(),
            public: None,
            failed: BTreeMap::new(),
        }
    }

    /// Serves what the spec asks for from now on. `device` is the device's own full name.
    pub(crate) fn apply(&mut self, spec: &Spec, device: Option<&str>) {
        self.failed.clear();
        self.sites.set(Site::new(spec, device, &self.sites.current()));
        let plain = spec.http != PlainHttp::Closed;
        if !plain {
            self.open.remove(&HTTP_PORT);
        }
        for number in [HTTPS_PORT].into_iter().chain(plain.then_some(HTTP_PORT)) {
            if let Err(why) = self.open(number) {
                self.fail(number, why);
            }
        }
        if !spec.funnel {
            self.public = None;
        } else if let Err(why) = self.open_public() {
            self.fail(HTTPS_PORT, why);
        }
    }

    fn fail(&mut self, number: u16, why: String) {
        let protocol = Protocol::Tcp;
        self.failed.insert(Port { protocol, number }, why);
    }

    fn open(&mut self, number: u16) -> Result<(), String> {
        if self.open.contains_key(&number) {
            return Ok(());
        }
        let secure = number == HTTPS_PORT;
        let door = self.door(secure, self.carrier.room.clone())?;
        let socket = self
            .sockets
            .listen_tcp(number)
            .map_err(|error: SocketError| error.to_string())?;
        let (callers, closed) = (self.sockets.clone(), door.closed.clone());
        let caller =
            move |peer: SocketAddr| Caller::of_tailnet(peer.ip(), secure, callers.who(peer).as_ref());
        tokio::spawn(serve(socket, caller, door));
        self.open.insert(number, closed.drop_guard());
        Ok(())
    }

    /// Serves the same to the internet.
    fn open_public(&mut self) -> Result<(), String> {
        if self.public.is_some() {
            return Ok(());
        }
        let door = self.door(true, self.carrier.room.for_public(&self.carrier.limits))?;
        let socket = self
            .sockets
            .listen_public(HTTPS_PORT)
            .map_err(|error: SocketError| error.to_string())?;
        let closed = door.closed.clone();
        let caller = |peer: SocketAddr| Caller::of_internet(peer.ip());
        tokio::spawn(serve(socket, caller, door));
        self.public = Some(closed.drop_guard());
        Ok(())
    }

    fn door(&self, secure: bool, room: Room) -> Result<Door, String> {
        let tls = secure
            .then(|| tls::server_config(self.certificates.clone()))
            .transpose()
            .map_err(|error| error.to_string())?;
        Ok(Door {
            sites: self.sites.clone(),
            carrier: self.carrier.clone(),
            room,
            tls,
            closed: self.carrier.end.child_token(),
        })
    }

    /// The ports that could not be opened, and why.
    pub(crate) fn failed(&self) -> &BTreeMap<Port, String> {
        &self.failed
    }

    /// Where the certificates are that clients are shown.
    pub(crate) fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// The first backend that cannot be reached, if there is one, and whether all were tried.
    pub(crate) fn trouble(&self) -> (Option<BackendTrouble>, bool) {
        let site = self.sites.current();
        let trouble = site.upstreams.iter().find_map(|upstream| upstream.trouble());
        (trouble, site.upstreams.iter().all(|upstream| upstream.is_known()))
    }

    /// Connects once to each backend of which nothing good is known.
    pub(crate) fn probe(&self) -> impl Future<Output = ()> + Send + use<S> {
        let site = self.sites.current();
        async move {
            let suspects = site.upstreams.iter().filter(|upstream| !upstream.is_reachable());
            futures::stream::iter(suspects)
                .for_each_concurrent(PROBES_AT_ONCE, |upstream| async move {
                    upstream.note(upstream.probe().await);
                })
                .await;
        }
    }
}
