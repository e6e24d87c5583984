//! What the system knows of the device: its addresses, its MTU, and which networks are behind it.
//!
//! Each concern is a function of the netmap's and the settings' wishes, told to the kernel through [`netlink`].

mod netlink;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tailwharf_node_core::packet::INNER_MTU;
use tokio::sync::watch;

use self::netlink::{Link, Netlink, NetlinkError};
use super::Device;
use crate::api::NodeStatus;

/// Networks that every tailnet has: the addresses of nodes.
const TAILNET: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0),
        48,
    )),
];

/// Packets that wait in the device for us. More would only make them wait longer: a large packet stands for some fifty.
const QUEUE_OF_LARGE: u32 = 24;
const QUEUE_OF_SINGLE: u32 = 500;
/// Bytes of the largest packet that the kernel gives us: what still leaves as one batch once it is sealed, which makes each segment longer.
const LARGEST: u32 = 49 * INNER_MTU as u32;

/// Sets the device up, and gives it the node's addresses as they become known and change.
pub(crate) async fn follow(device: Arc<Device>, mut status: watch::Receiver<NodeStatus>) {
    let mut interface = match Interface::set_up(&device) {
        Ok(interface) => interface,
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
    loop {
        let addresses = status.borrow_and_update().addresses.clone();
        interface.set_addresses(&addresses);
        if status.changed().await.is_err() {
            return;
        }
    }
}

struct Interface {
    netlink: Netlink,
    link: Link,
    name: String,
    addresses: Vec<IpAddr>,
}

impl Interface {
    fn set_up(device: &Device) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let link = Link::by_name(device.name())?;
        let (is_large, _) = device.takes_large();
        netlink.set_up(
            link,
            INNER_MTU as u32,
            if is_large { QUEUE_OF_LARGE } else { QUEUE_OF_SINGLE },
        )?;
        if is_large && let Err(error) = netlink.set_largest(link, LARGEST) {
            tracing::debug!(%error, "the kernel's large packets keep their length");
        }
        Ok(Self {
            netlink,
            link,
            name: device.name().to_owned(),
            addresses: Vec::new(),
        })
    }

    fn set_addresses(&mut self, addresses: &[IpAddr]) {
        if self.addresses == addresses {
            return;
        }
        let gone = self.addresses.iter().filter(|old| !addresses.contains(old));
        for old in gone.copied().collect::<Vec<_>>() {
            let done = self.netlink.remove_address(self.link, old);
            self.report(done, "an old address stays on the device");
        }
        for new in addresses
            .iter()
            .filter(|new| !self.addresses.contains(new))
            .copied()
            .collect::<Vec<_>>()
        {
            let done = self.netlink.add_address(self.link, new);
            self.report(done, "the device does not get its address");
        }
        self.addresses = addresses.to_vec();
        for net in TAILNET {
            if addresses
                .iter()
                .any(|address| address.is_ipv4() == net.addr().is_ipv4())
            {
                let done = self.netlink.add_route(self.link, net);
                self.report(done, "the device does not get its route");
            }
        }
    }

    fn report(&self, done: Result<(), NetlinkError>, what: &str) {
        if let Err(error) = done {
            let (error, device) = (&error as &dyn std::error::Error, &self.name);
            tracing::warn!(error, device, "{what}");
        }
    }
}
