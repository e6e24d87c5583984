//! One node: the parts put together, behind the trait [`TailnetNode`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tailwharf_node_core::WhoIs;
use tailwharf_node_core::dns::lookup;
use tailwharf_wire::key::{DiscoPrivate, DiscoPublic};
use tailwharf_wire::tailcfg::{CheckRequest, CheckResponse};
use tokio::sync::watch;
use url::Url;

use crate::acme::{self, AcmeAccount, AcmeError, Certificate, Method, Proof, RenewalWindow};
use crate::api::{
    DialError, LogoutError, NodeConfig, NodeStatus, Phase, Prefs, SocketError, StartError, StateStore,
    TailnetNode,
};
use crate::app_connector::Connector;
use crate::control::{self, Announced, CheckError, ControlServer, Introduction, Session, SessionError};
use crate::direct::{self, Reader, Socket};
use crate::dns::Resolver;
use crate::engine::{Engine, Links};
use crate::funnel::{Funnel, FunnelListener};
use crate::host::Host;
use crate::mark;
use crate::peerapi::PeerApi;
use crate::routing;
use crate::service::{ServiceListener, ServiceName};
use crate::state::StateKeeper;
use crate::tcp::{TcpListener, TcpStream};
use crate::transit::{Carrier, TransitCounts};
use crate::tun;
use crate::udp::UdpSocket;

/// A running node. Clones are handles of the same node; when the last one is dropped, the node stops.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Arc<Engine>,
    keeper: Arc<StateKeeper>,
    server: ControlServer,
    announced: watch::Sender<Announced>,
    resolver: Resolver,
    funnel: Funnel,
    transit: Arc<Carrier>,
    disco_key: DiscoPublic,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.engine.close();
        self.funnel.close();
    }
}

impl Node {
    pub(crate) async fn start(
        host: Host,
        config: NodeConfig,
        store: Arc<dyn StateStore>,
        tun: Option<(tun::Device, tun::TunSettings)>,
    ) -> Result<Self, StartError> {
        let server = ControlServer::parse(&config.control_url)?;
        let mut rng = StdRng::from_entropy();
        let keeper = StateKeeper::load(store, &mut rng).await?;
        let state = keeper.read(Clone::clone);
        let disco = DiscoPrivate::generate(&mut rng);
        let disco_key = disco.public();
        let status = NodeStatus {
            device_id: state.stable_id,
            fqdn: state.fqdn,
            addresses: state.addresses,
            ..NodeStatus::starting()
        };
        let tun = tun.map(|(device, settings)| (Arc::new(device), settings));
        let mut routes = config.routes;
        if let Some((_, settings)) = &tun {
            mark::turn_on();
            routes = settings.advertised();
        }
        let reader = if tun.is_some() {
            Reader::Thread
        } else {
            Reader::Task
        };
        let links = Links {
            socket: open_socket(
                &host,
                &keeper,
                config.udp_port.or(state.udp_port),
                reader,
                &mut rng,
            ),
            tun: tun.as_ref().map(|(device, _)| device.clone()),
        };
        let engine = Engine::start(
            host.clone(),
            state.node_key,
            disco,
            links.clone(),
            status,
            seed(&mut rng),
        );
        if let Some(device) = links.tun {
            tun::start(&engine, device, links.socket.clone()).map_err(StartError::Thread)?;
        }
        if let Some(socket) = links.socket {
            let with_loopback = server.is_loopback();
            let addresses = host.interfaces().borrow().clone();
            engine.with_core(|core, _| core.set_explicit_endpoints(config.endpoints));
            direct::tell_addresses(&engine, &socket, &addresses, with_loopback);
            engine.spawn(direct::run(engine.clone(), socket, with_loopback));
        }
        engine.wake_later(config.wake);
        if let Some(map) = &state.derp_map {
            engine
                .relays()
                .set_map(host.interner().derp_map(map), state.home_region);
        }
        let (announced, watched) = watch::channel(Announced {
            prefs: Prefs {
                hostname: config.hostname,
                tags: config.tags,
                routes,
                accept_routes: config.accept_routes,
                exit_node: config.exit_node,
                resolves_for_peers: config.resolves_for_peers,
                app_connector: config.app_connector,
            },
            ..Announced::default()
        });
        let resolver = Resolver::new(engine.clone());
        engine.spawn(routing::follow(engine.clone(), watched.clone(), tun.is_some()));
        let transit = Carrier::new(engine.clone());
        engine.spawn(transit.clone().run());
        if let Some((device, settings)) = tun {
            engine.spawn(tun::follow(engine.clone(), resolver.clone(), device, settings));
        }
        let funnel = Funnel::default();
        let connector = Connector::new(announced.clone());
        engine.spawn(connector.clone().follow(engine.clone()));
        match PeerApi::bind(&engine, resolver.clone(), &announced, funnel.clone(), connector) {
            Ok(api) => engine.spawn(api.run()),
            Err(error) => tracing::warn!(%error, "no peer API"),
        }
        let session = Session {
            engine: engine.clone(),
            server: server.clone(),
            keeper: keeper.clone(),
            introduction: Introduction::new(config.app, disco_key, &mut rng),
            auth_key: config.auth_key,
            ephemeral: config.ephemeral,
            force_reauth: config.force_reauth,
            announced: watched,
            rng: StdRng::from_seed(seed(&mut rng)),
        };
        engine.spawn(session.run());
        Ok(Self(Arc::new(Inner {
            engine,
            keeper,
            server,
            announced,
            resolver,
            funnel,
            transit,
            disco_key,
        })))
    }

    /// Answers DNS queries as this node: for the machine it runs on, or for a name server.
    #[must_use]
    pub fn resolver(&self) -> &Resolver {
        &self.0.resolver
    }

    /// Fetches a certificate for `name`, one of [`NodeStatus::cert_domains`], from the server of `account`. This takes seconds
    /// to minutes: fetch it before it is needed, and anew when [`Node::renewal_window`] says so. `replaces` is the id of the one before, if there
    /// is one from the same server: the base64url forms, joined by a dot, of its authority's key identifier and its serial number.
    ///
    /// # Errors
    /// [`AcmeError`] names the step that failed.
    pub async fn certificate(
        &self,
        account: &AcmeAccount,
        name: &str,
        replaces: Option<&str>,
    ) -> Result<Certificate, AcmeError> {
        let allowed = self.engine().watch_status().borrow().cert_domains.clone();
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if !allowed.contains(&name) {
            return Err(AcmeError::Name { name, allowed });
        }
        let host = self.engine().host();
        let set_record = |Proof { place, content }| async {
            control::set_dns(host, &self.0.server, &self.0.keeper, place, content)
                .await
                .map_err(|error| AcmeError::Record(error.into()))
        };
        let certificate = acme::order(host, account, &name, replaces, Method::Dns, set_record).await?;
        self.0.announced.send_if_modified(|announced| {
            announced.certified.insert(name);
            // Control servers ask for this when they want to know.
            false
        });
        Ok(certificate)
    }

    /// Asks the control server whether the owner of a device has confirmed lately that it is they who use it. The fields `version` and `node_key` of the
    /// request are filled in.
    ///
    /// # Errors
    /// [`CheckError`] when nobody could be asked.
    pub async fn check(&self, request: CheckRequest) -> Result<CheckResponse, CheckError> {
        control::check(self.engine().host(), &self.0.server, &self.0.keeper, request).await
    }

    /// When the ACME server with this directory wants the certificate `id` to be renewed, as [`Node::certificate`] names certificates. `None`:
    /// it says nothing about that.
    ///
    /// # Errors
    /// When the server does not answer, or not so that it can be read.
    pub async fn renewal_window(
        &self,
        directory: &Url,
        id: &str,
    ) -> Result<Option<RenewalWindow>, AcmeError> {
        acme::renewal_window(self.engine().host(), directory, id).await
    }

    /// The ACME directory of the authority that the control server at `control` has itself, if it has one.
    ///
    /// # Errors
    /// When the control server does not answer.
    pub async fn authority(&self, control: &Url) -> Result<Option<Url>, AcmeError> {
        let Ok(directory) = control.join("/acme/directory") else {
            return Ok(None);
        };
        let has = acme::is_directory(self.engine().host(), &directory).await?;
        Ok(has.then_some(directory))
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }

    async fn stop(&self) {
        self.engine().close();
        self.0.funnel.close();
        self.engine().ended().await;
        self.engine().update_status(|status| {
            status.phase = Phase::Stopped;
            status.relay_connected = false;
        });
    }
}

/// The node's UDP socket, on the port that is wanted if possible.
fn open_socket(
    host: &Host,
    keeper: &Arc<StateKeeper>,
    before: Option<u16>,
    reader: Reader,
    rng: &mut StdRng,
) -> Option<Arc<Socket>> {
    if !host.direct() {
        return None;
    }
    match Socket::bind(before, reader, host.offloads(), rng) {
        Ok(socket) => {
            let port = Some(socket.port());
            if before.is_some() && before != port {
                tracing::warn!(
                    wanted = before,
                    port,
                    "the UDP port of direct paths is taken; another one is used"
                );
            }
            keeper.update(|state| {
                let changed = state.udp_port != port;
                state.udp_port = port;
                changed
            });
            Some(Arc::new(socket))
        }
        Err(error) => {
            tracing::warn!(%error, "no UDP socket for direct paths; packets go through relays");
            None
        }
    }
}

/// The start of a generator of its own for a part of the node.
fn seed(rng: &mut StdRng) -> [u8; 32] {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed
}

impl TailnetNode for Node {
    fn status(&self) -> watch::Receiver<NodeStatus> {
        self.engine().watch_status()
    }

    fn listen_tcp(&self, port: u16) -> Result<TcpListener, SocketError> {
        TcpListener::bind(self.engine(), port)
    }

    fn listen_service(&self, service: &ServiceName, port: u16) -> Result<ServiceListener, SocketError> {
        ServiceListener::bind(self.engine(), &self.0.announced, service, port)
    }

    fn listen_funnel(&self, port: u16) -> Result<FunnelListener, SocketError> {
        if self.engine().is_closed() {
            return Err(SocketError::Closed);
        }
        self.0.funnel.listen(port, &self.0.announced)
    }

    fn bind_udp(&self, port: u16) -> Result<UdpSocket, SocketError> {
        UdpSocket::bind(self.engine(), port)
    }

    fn dial_tcp(&self, to: SocketAddr) -> BoxFuture<'_, Result<TcpStream, DialError>> {
        TcpStream::connect(self.engine(), to).boxed()
    }

    fn dial_name<'a>(&'a self, name: &'a str, port: u16) -> BoxFuture<'a, Result<TcpStream, DialError>> {
        async move {
            let addr = self
                .resolve(name)
                .first()
                .copied()
                .ok_or_else(|| DialError::UnknownName(name.to_owned()))?;
            self.dial_tcp(SocketAddr::new(addr, port)).await
        }
        .boxed()
    }

    fn resolve(&self, name: &str) -> Vec<IpAddr> {
        lookup(&self.engine().with_core(|core, _| core.netmap().clone()), name)
    }

    fn whois(&self, addr: SocketAddr) -> Option<WhoIs> {
        self.engine().with_core(|core, _| core.whois(addr.ip(), None))
    }

    fn whois_at(&self, addr: SocketAddr, local: IpAddr) -> Option<WhoIs> {
        self.engine()
            .with_core(|core, _| core.whois(addr.ip(), Some(local)))
    }

    fn disco_key(&self) -> DiscoPublic {
        self.0.disco_key
    }

    fn transit(&self) -> TransitCounts {
        self.0.transit.counts()
    }

    fn set_prefs(&self, prefs: Prefs) {
        self.0.announced.send_if_modified(|now| {
            let changed = now.prefs != prefs;
            now.prefs = prefs;
            changed
        });
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async move {
            self.stop().await;
            if let Err(error) = self.0.keeper.save().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the last change of the state is not saved"
                );
            }
        }
        .boxed()
    }

    fn logout(&self) -> BoxFuture<'_, Result<(), LogoutError>> {
        async move {
            // First, so that no session brings the key back.
            self.stop().await;
            match control::logout(self.engine().host(), &self.0.server, &self.0.keeper).await {
                Ok(()) => Ok(()),
                Err(SessionError::Store(error)) => Err(LogoutError::Store(error)),
                Err(error) => Err(LogoutError::Control(error.into())),
            }
        }
        .boxed()
    }
}
