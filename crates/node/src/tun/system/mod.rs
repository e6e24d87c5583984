//! The machine around the device: addresses, MTU, routes, rules, names, and what it passes on for peers.
//!
//! [`plan`] says what should be; [`System`] makes it so and remembers it, and takes all of it back when it is dropped. What a
//! killed run left behind is removed at the next start: routes go with the device, and everything else is known by its place:
//! four rules, a table of nftables, and a `resolv.conf` that says what was there before.

mod firewall;
mod plan;
mod resolv;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::{fs, io};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tailwharf_node_core::packet::INNER_MTU;
use tokio::net::{TcpListener, UdpSocket};

use self::firewall::Firewall;
use self::plan::{EVERYTHING, Plan, RESOLVER, plan};
use self::resolv::Resolv;
use super::Device;
use crate::dns::Resolver;
use crate::engine::Engine;
use crate::mark;
use crate::netlink::{Act, Action, Family, Link, Netlink, NetlinkError, Rule, Way};
use crate::routing::exit_node;

/// Packets that may wait in the device for us: bursts of small ones. The carrier sees to it that large ones do not fill it.
const QUEUE: u32 = 500;
/// Bytes of the largest packet that the kernel gives us: what still leaves as one batch once it is sealed, which makes each segment longer.
const LARGEST: u32 = 60_000;
/// The table of our routes.
const TABLE: u32 = 52_520;
const MAIN_TABLE: u32 = 254;
const DEFAULT_TABLE: u32 = 253;
/// What this process sends itself is routed as if there were no tunnel; all else looks into our table first.
const RULES: [Rule; 4] = [
    rule(5_310, true, Action::Table(MAIN_TABLE)),
    rule(5_330, true, Action::Table(DEFAULT_TABLE)),
    rule(5_350, true, Action::Unreachable),
    rule(5_370, false, Action::Table(TABLE)),
];
const DNS_PORT: u16 = 53;

const fn rule(priority: u32, marked: bool, action: Action) -> Rule {
    Rule {
        priority,
        mark: if marked { Some(mark::BYPASS) } else { None },
        action,
    }
}

/// How the machine takes part in the tailnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunSettings {
    /// Use the subnets that peers route.
    pub accept_routes: bool,
    /// Resolve names as the tailnet says.
    pub accept_dns: bool,
    /// The peer, by name or address, through which everything goes that is not of the tailnet.
    pub exit_node: Option<String>,
    /// Reach the networks around this machine directly even so.
    pub exit_node_allow_lan: bool,
    /// Subnets that this machine routes for peers.
    pub advertise_routes: Vec<IpNet>,
    /// Be an exit node for peers.
    pub advertise_exit_node: bool,
    /// Give packets that are passed on this machine's address as their source. Without, the subnets must know the way back.
    pub snat_subnet_routes: bool,
}

impl Default for TunSettings {
    /// A device that reaches peers and resolves their names, and nothing more.
    fn default() -> Self {
        Self {
            accept_routes: false,
            accept_dns: true,
            exit_node: None,
            exit_node_allow_lan: false,
            advertise_routes: Vec::new(),
            advertise_exit_node: false,
            snat_subnet_routes: true,
        }
    }
}

impl TunSettings {
    /// All routes that this machine offers to peers.
    #[must_use]
    pub fn advertised(&self) -> Vec<IpNet> {
        let exit = EVERYTHING.into_iter().filter(|_| self.advertise_exit_node);
        self.advertise_routes
            .iter()
            .map(IpNet::trunc)
            .chain(exit)
            .collect()
    }
}

/// Keeps the machine as the node's tailnet says, for as long as this is polled.
pub(crate) async fn follow(
    engine: Arc<Engine>,
    resolver: Resolver,
    device: Arc<Device>,
    settings: TunSettings,
) {
    let mut netmaps = engine.watch_netmap();
    let mut system = match System::set_up(&device, settings.clone()) {
        Ok(system) => system,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                device = device.name(),
                "the device cannot be set up; the kernel sends nothing to it"
            );
            return;
        }
    };
    let upstream = system.resolv.upstream();
    if !upstream.is_empty() {
        resolver.set_system_resolvers(upstream);
    }
    let mut names = Names {
        engine: engine.clone(),
        resolver,
        served: false,
    };
    loop {
        let netmap = netmaps.borrow_and_update().clone();
        let name = settings.exit_node.as_deref();
        let exit = name.and_then(|name| exit_node(&netmap, name));
        if name.is_some() && exit.is_none() && netmap.self_node().is_some() {
            tracing::warn!(
                "the exit node is not there, or does not offer to be one: nothing leaves this machine until it does"
            );
        }
        engine.with_core(|core, _| core.set_routing(settings.accept_routes, exit));
        let mut wanted = plan(&netmap, &settings, &lan(device.name()));
        // The address first, then who answers on it, then who asks there.
        system.set_addresses(&wanted);
        if wanted.dns.is_some() && !names.serve().await {
            wanted.dns = None;
        }
        system.apply(wanted);
        if netmaps.changed().await.is_err() {
            return;
        }
    }
}

/// Answers programs of this machine.
struct Names {
    engine: Arc<Engine>,
    resolver: Resolver,
    served: bool,
}

impl Names {
    /// Begins to answer, if it has not. Whether it does.
    async fn serve(&mut self) -> bool {
        if self.served {
            return true;
        }
        match dns_sockets().await {
            Ok((udp, tcp)) => {
                let (by_udp, by_tcp) = (self.resolver.clone(), self.resolver.clone());
                self.engine.spawn(async move { by_udp.serve_udp(udp).await });
                self.engine.spawn(async move { by_tcp.serve_tcp(tcp).await });
                self.served = true;
            }
            Err(error) => tracing::warn!(
                %error,
                "names of the tailnet are not resolved: port 53 needs the capability NET_BIND_SERVICE"
            ),
        }
        self.served
    }
}

async fn dns_sockets() -> io::Result<(UdpSocket, TcpListener)> {
    let address = SocketAddr::new(RESOLVER.into(), DNS_PORT);
    Ok((UdpSocket::bind(address).await?, TcpListener::bind(address).await?))
}

/// The networks of the other interfaces.
fn lan(device: &str) -> Vec<IpNet> {
    let Ok(all) = getifaddrs() else {
        return Vec::new();
    };
    all.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && interface.interface_name != device
    })
    .filter_map(|interface| {
        let (address, mask) = (interface.address?, interface.netmask?);
        let v4 = address.as_sockaddr_in().zip(mask.as_sockaddr_in());
        let v6 = address.as_sockaddr_in6().zip(mask.as_sockaddr_in6());
        let (address, mask): (IpAddr, IpAddr) = match (v4, v6) {
            (Some((address, mask)), _) => (address.ip().into(), mask.ip().into()),
            (_, Some((address, mask))) => (address.ip().into(), mask.ip().into()),
            (None, None) => return None,
        };
        IpNet::with_netmask(address, mask).ok()
    })
    .collect()
}

/// What was set, so that it can be changed and taken back.
struct System {
    settings: TunSettings,
    netlink: Netlink,
    link: Link,
    families: Vec<Family>,
    firewall: Firewall,
    resolv: Resolv,
    applied: Plan,
}

impl System {
    /// Removes what an earlier run left, and sets the device up with the rules.
    fn set_up(device: &Device, settings: TunSettings) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let link = Link::by_name(device.name())?;
        let (is_large, _) = device.takes_large();
        netlink.set_up(link, INNER_MTU as u32, QUEUE)?;
        if is_large && let Err(error) = netlink.set_largest(link, LARGEST) {
            tracing::debug!(%error, "the kernel's large packets keep their length");
        }
        let mut families = Vec::new();
        for family in Family::ALL {
            remove_rules(&mut netlink, family);
            let mut rules = RULES.iter();
            let added = rules.try_for_each(|rule| netlink.rule(Act::Add, family, rule));
            match (added, family) {
                (Ok(()), _) => families.push(family),
                // A machine may be without IPv6.
                (Err(error), Family::V6) => tracing::info!(%error, "no IPv6 through the device"),
                (Err(error), Family::V4) => {
                    remove_rules(&mut netlink, family);
                    return Err(error);
                }
            }
        }
        Ok(Self {
            firewall: Firewall::new(device.name()),
            resolv: Resolv::new(device.name()),
            settings,
            netlink,
            link,
            families,
            applied: Plan::default(),
        })
    }

    /// Gives the device its addresses.
    fn set_addresses(&mut self, wanted: &Plan) {
        let applied = std::mem::replace(&mut self.applied.addresses, wanted.addresses.clone());
        for (act, net) in changes(&applied, &wanted.addresses) {
            if self.families.contains(&Family::of(&net)) {
                let done = match act {
                    Act::Add => self.netlink.add_address(self.link, net.addr()),
                    Act::Remove => self.netlink.remove_address(self.link, net.addr()),
                };
                told(done, act);
            }
        }
    }

    /// Makes the machine as it should be. What fails is told, and does not keep the rest from being done.
    fn apply(&mut self, wanted: Plan) {
        self.set_addresses(&wanted);
        let applied = std::mem::take(&mut self.applied);
        self.apply_routes(&applied.routes, &wanted.routes, Way::Link(self.link));
        self.apply_routes(&applied.kept, &wanted.kept, Way::Throw);
        if applied.forwards != wanted.forwards {
            self.set_forwarding(wanted.forwards);
        }
        if applied.dns != wanted.dns {
            let done = match &wanted.dns {
                Some(dns) => self.resolv.apply(dns),
                None => {
                    self.resolv.restore();
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::warn!(%error, "programs of this machine do not resolve names of the tailnet");
            }
        }
        self.applied = wanted;
    }

    fn apply_routes(&mut self, applied: &BTreeSet<IpNet>, wanted: &BTreeSet<IpNet>, way: Way) {
        for (act, net) in changes(applied, wanted) {
            if self.families.contains(&Family::of(&net)) {
                let done = self.netlink.route(act, TABLE, &net, way);
                told(done, act);
            }
        }
    }

    fn set_forwarding(&mut self, on: bool) {
        if !on {
            self.firewall.remove();
            return;
        }
        for (family, switch) in [
            (Family::V4, "/proc/sys/net/ipv4/ip_forward"),
            (Family::V6, "/proc/sys/net/ipv6/conf/all/forwarding"),
        ] {
            let is_on = fs::read_to_string(switch).is_ok_and(|text| text.trim() != "0");
            if self.families.contains(&family) && !is_on {
                let name = switch.trim_start_matches("/proc/sys/").replace('/', ".");
                tracing::warn!("this machine passes nothing on for peers: run `sysctl -w {name}=1`");
            }
        }
        if let Err(error) = self.firewall.apply(self.settings.snat_subnet_routes) {
            tracing::warn!(%error, "packets for the subnets are passed on with the addresses of peers, and come back only if the subnets know the way");
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.resolv.restore();
        self.firewall.remove();
        for family in Family::ALL {
            remove_rules(&mut self.netlink, family);
        }
        self.apply(Plan::default());
    }
}

/// Removes our rules, also those of runs before.
fn remove_rules(netlink: &mut Netlink, family: Family) {
    for rule in &RULES {
        // A run that was killed leaves one of each; more come only from hands.
        for _ in 0..16 {
            if netlink.rule(Act::Remove, family, rule).is_err() {
                break;
            }
        }
    }
}

/// What has to be removed and added.
fn changes(applied: &BTreeSet<IpNet>, wanted: &BTreeSet<IpNet>) -> Vec<(Act, IpNet)> {
    let removed = applied.difference(wanted).map(|net| (Act::Remove, *net));
    let added = wanted.difference(applied).map(|net| (Act::Add, *net));
    removed.chain(added).collect()
}

fn told(done: Result<(), NetlinkError>, act: Act) {
    let Err(error) = done else {
        return;
    };
    let error = &error as &dyn std::error::Error;
    match act {
        Act::Add => tracing::warn!(error, "the machine is not as the tailnet says"),
        // A device that is gone has taken everything with it.
        Act::Remove => tracing::debug!(error, "was gone already"),
    }
}
