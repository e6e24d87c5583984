//! What all nodes of a process share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tailwharf_node_core::netmap::Interner;
use tailwharf_node_core::{BufferPool, MemoryBudget};
use tailwharf_wire::key::MachinePublic;
use tokio::sync::{Semaphore, watch};

use crate::api::{NodeConfig, StartError, StateStore};
use crate::control::ControlServer;
use crate::derp::Latencies;
use crate::direct::Interfaces;
use crate::http_proxy::HttpProxies;
use crate::node::Node;
use crate::offload::OffloadSwitches;
use crate::sync::lock;
use crate::tls::TlsConfigs;
use crate::tun;

/// Limits and trust of a process that hosts nodes.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// PEM bundle of certificate authorities trusted beside those of the system.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// HTTP proxies on the way to control servers and relays.
    pub http_proxies: HttpProxies,
    /// How many connections to control servers and relays may be in the making at the same time.
    pub max_handshakes: usize,
    /// How many bytes the TCP connections of all nodes may hold in their buffers.
    pub max_tcp_buffer_bytes: usize,
    /// How many connections, UDP flows and pings of peers to the networks that nodes route may be under way at the same time.
    pub max_transit: usize,
    /// Whether nodes look for direct paths to their peers; without them all packets go through relays.
    pub direct: bool,
    /// Which work the kernel may take over for whole batches of packets.
    pub offloads: OffloadSwitches,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            extra_ca_pem: None,
            http_proxies: HttpProxies::default(),
            max_handshakes: 64,
            max_tcp_buffer_bytes: 32 << 20,
            max_transit: 16_384,
            direct: true,
            offloads: OffloadSwitches::default(),
        }
    }
}

/// A process cannot host nodes.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The extra CA is not PEM.
    #[error("the extra CA bundle is not PEM")]
    CaPem(#[source] rustls_pki_types::pem::Error),
    /// A certificate of the extra CA cannot be used.
    #[error("a certificate in the extra CA bundle cannot be used")]
    CaCertificate(#[source] rustls::Error),
    /// The certificate verifier could not be built.
    #[error("the certificate verifier cannot be set up")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
}

/// What all nodes of a process share: trusted roots, limits, and one copy of everything that several nodes know.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: TlsConfigs,
    http_proxies: HttpProxies,
    interner: Interner,
    tcp_buffers: Arc<MemoryBudget>,
    buffers: Arc<BufferPool>,
    handshakes: Semaphore,
    transit: Arc<Semaphore>,
    server_keys: Mutex<HashMap<ControlServer, MachinePublic>>,
    latencies: Latencies,
    direct: bool,
    offloads: OffloadSwitches,
    interfaces: Interfaces,
}

impl Host {
    /// Reads the trusted roots and sets the limits.
    ///
    /// # Errors
    /// When the extra CA cannot be used.
    pub fn new(config: &HostConfig) -> Result<Self, HostError> {
        Ok(Self(Arc::new(Inner {
            tls: TlsConfigs::new(config.extra_ca_pem.as_deref())?,
            http_proxies: config.http_proxies.clone(),
            interner: Interner::default(),
            tcp_buffers: MemoryBudget::new(config.max_tcp_buffer_bytes),
            buffers: BufferPool::new(),
            handshakes: Semaphore::new(config.max_handshakes),
            transit: Arc::new(Semaphore::new(config.max_transit)),
            server_keys: Mutex::default(),
            latencies: Latencies::default(),
            direct: config.direct,
            offloads: config.offloads,
            interfaces: Interfaces::default(),
        })))
    }

    /// Starts a node. It joins in the background; its status tells how far it is.
    ///
    /// # Errors
    /// When the control URL cannot be used, or the state cannot be loaded.
    pub async fn start(&self, config: NodeConfig, store: Arc<dyn StateStore>) -> Result<Node, StartError> {
        Node::start(self.clone(), config, store, None).await
    }

    /// Starts a node whose packets are those of the kernel, through a device that belongs to it from now on.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub async fn start_with_tun(
        &self,
        config: NodeConfig,
        store: Arc<dyn StateStore>,
        device: tun::Device,
        settings: tun::TunSettings,
    ) -> Result<Node, StartError> {
        Node::start(self.clone(), config, store, Some((device, settings))).await
    }

    pub(crate) fn tls(&self) -> &TlsConfigs {
        &self.0.tls
    }

    pub(crate) fn http_proxies(&self) -> &HttpProxies {
        &self.0.http_proxies
    }

    pub(crate) fn interner(&self) -> &Interner {
        &self.0.interner
    }

    pub(crate) fn tcp_buffers(&self) -> &Arc<MemoryBudget> {
        &self.0.tcp_buffers
    }

    /// Where packets of all nodes are put together.
    pub(crate) fn buffers(&self) -> &Arc<BufferPool> {
        &self.0.buffers
    }

    pub(crate) fn latencies(&self) -> &Latencies {
        &self.0.latencies
    }

    /// Whether nodes look for direct paths.
    pub(crate) fn direct(&self) -> bool {
        self.0.direct
    }

    /// Which offloads nodes may use.
    pub(crate) fn offloads(&self) -> OffloadSwitches {
        self.0.offloads
    }

    /// The addresses of the machine.
    pub(crate) fn interfaces(&self) -> watch::Receiver<Arc<[IpAddr]>> {
        self.0.interfaces.watch()
    }

    /// The places for what peers send to networks that nodes route.
    pub(crate) fn transit_room(&self) -> &Arc<Semaphore> {
        &self.0.transit
    }

    /// The places for connections in the making.
    pub(crate) fn handshakes(&self) -> &Semaphore {
        &self.0.handshakes
    }

    /// The Noise key of a control server, as some node of the process learned it.
    pub(crate) fn server_key(&self, server: &ControlServer) -> Option<MachinePublic> {
        lock(&self.0.server_keys).get(server).copied()
    }

    pub(crate) fn remember_server_key(&self, server: &ControlServer, key: MachinePublic) {
        lock(&self.0.server_keys).insert(server.clone(), key);
    }

    /// To be asked for again: the server that we know by this key did not answer as itself.
    pub(crate) fn forget_server_key(&self, server: &ControlServer) {
        lock(&self.0.server_keys).remove(server);
    }
}
