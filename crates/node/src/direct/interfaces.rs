//! The addresses of the machine, followed as they change, once for all nodes of a process.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How often the addresses are looked at if the kernel does not tell of changes, and if it does.
const POLL: Duration = Duration::from_secs(5);
const RECHECK: Duration = Duration::from_secs(60);
/// A change comes in parts, such as one address gone and another one added. They are waited for so long.
const SETTLE: Duration = Duration::from_millis(50);
/// Interfaces of official clients lead into tailnets, where no direct path may lead.
const TAILNET_INTERFACES: [&str; 2] = ["tailscale", "tailwharf"];

/// The addresses of the machine: those by which others may reach it, and loopback addresses.
#[derive(Debug)]
pub(crate) struct Interfaces {
    now: Arc<watch::Sender<Arc<[IpAddr]>>>,
    followed: AtomicBool,
}

impl Default for Interfaces {
    fn default() -> Self {
        Self {
            now: Arc::new(watch::Sender::new(addresses())),
            followed: AtomicBool::new(false),
        }
    }
}

impl Interfaces {
    /// The addresses now and as they change. They are followed from the first call on, as long as somebody has this.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<[IpAddr]>> {
        if !self.followed.swap(true, Ordering::Relaxed) {
            tokio::spawn(follow(Arc::downgrade(&self.now)));
        }
        self.now.subscribe()
    }
}

async fn follow(all: std::sync::Weak<watch::Sender<Arc<[IpAddr]>>>) {
    let changes = Changes::open();
    if let Err(error) = &changes {
        tracing::debug!(%error, "the kernel does not tell of changed addresses; they are looked at every 5 s");
    }
    while let Some(now) = all.upgrade() {
        let found = addresses();
        now.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
        drop(now);
        match &changes {
            Ok(changes) => {
                if timeout(RECHECK, changes.next()).await.is_ok() {
                    sleep(SETTLE).await;
                }
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

/// Word of the kernel that links or addresses changed: a socket of rtnetlink, which is waited for and read as one of UDP.
struct Changes(UdpSocket);

impl Changes {
    fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        Ok(Self(UdpSocket::from_std(socket.into())?))
    }

    /// Returns after a change. What it was is not looked at.
    async fn next(&self) {
        if self.0.readable().await.is_err() {
            return std::future::pending().await;
        }
        let mut buffer = [0; 4096];
        loop {
            match self.0.try_recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An overflow means that there were changes, too.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

fn addresses() -> Arc<[IpAddr]> {
    let all = match getifaddrs() {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(%error, "the addresses of this machine cannot be listed");
            return Arc::default();
        }
    };
    let mut found: Vec<IpAddr> = all
        .filter(|interface| {
            let flags = interface.flags;
            // A TUN device, ours or that of another tailnet client, leads where no direct path may lead.
            let is_tun = flags.contains(InterfaceFlags::IFF_POINTOPOINT | InterfaceFlags::IFF_NOARP);
            flags.contains(InterfaceFlags::IFF_UP)
                && !is_tun
                && !TAILNET_INTERFACES
                    .iter()
                    .any(|name| interface.interface_name.starts_with(name))
        })
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6).ip()))
        })
        .filter(|ip| !is_link_local(*ip))
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
