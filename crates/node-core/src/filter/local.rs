//! What is routed to a node.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::addr_set::AddrSet;

/// The addresses that are routed to a node.
///
/// A default route makes a node the exit to the internet, not to what is around it: private, local and tailnet addresses are routed to it only by routes of
/// their own. Official nodes hold it so.
#[derive(Debug, Default)]
pub(crate) struct Local {
    nets: AddrSet,
    internet_v4: bool,
    internet_v6: bool,
}

impl Local {
    pub(crate) fn new(nets: &[IpNet]) -> Self {
        let (defaults, nets): (Vec<IpNet>, Vec<IpNet>) = nets.iter().partition(|net| net.prefix_len() == 0);
        Self {
            nets: AddrSet::from_nets(&nets),
            internet_v4: defaults.iter().any(|net| net.addr().is_ipv4()),
            internet_v6: defaults.iter().any(|net| net.addr().is_ipv6()),
        }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.is_named(address)
            || match address {
                IpAddr::V4(_) => self.internet_v4 && is_internet(address),
                IpAddr::V6(_) => self.internet_v6 && is_internet(address),
            }
    }

    /// Whether a route other than a default route leads to the address.
    pub(crate) fn is_named(&self, address: IpAddr) -> bool {
        self.nets.contains(address)
    }
}

/// Whether an address is none of a private network, of this machine or link, or of a tailnet.
fn is_internet(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            // 100.64.0.0/10 (RFC 6598) is that of tailnets.
            let is_shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 0x40;
            let is_here = v4.octets()[0] == 0 || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast();
            !(v4.is_private() || is_shared || is_here || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            let is_here = v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local();
            !(v6.is_unique_local() || is_here || v6.is_multicast() || embeds_v4(v6))
        }
    }
}

/// Whether sockets take the address for one of IPv4 (RFC 4291, 2.5.5).
fn embeds_v4(address: Ipv6Addr) -> bool {
    address.to_ipv4().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(nets: &[&str]) -> Local {
        let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
        Local::new(&nets)
    }

    #[test]
    fn a_default_route_leads_to_the_internet_alone() {
        let exit = local(&["100.64.0.1/32", "0.0.0.0/0", "::/0", "10.1.0.0/16"]);
        for inside in ["100.64.0.1", "10.1.2.3", "198.51.100.7", "1.1.1.1", "2001:db8::1"] {
            assert!(exit.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "0.0.0.0",
            "127.0.0.1",
            "10.2.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.2",
            "100.127.255.255",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd7a:115c:a1e0::2",
            "ff02::1",
            "::ffff:10.1.0.1",
        ] {
            assert!(!exit.contains(outside.parse().unwrap()), "{outside}");
        }
        assert!(exit.is_named("10.1.2.3".parse().unwrap()) && !exit.is_named("1.1.1.1".parse().unwrap()));
        assert!(!local(&["0.0.0.0/0"]).contains("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn what_has_a_route_of_its_own_is_local_whatever_it_is() {
        let router = local(&["169.254.169.254/32", "127.0.0.0/8", "fd00::/8"]);
        for inside in ["169.254.169.254", "127.0.0.1", "fd00::1"] {
            assert!(router.contains(inside.parse().unwrap()), "{inside}");
        }
        assert!(!router.contains("1.1.1.1".parse().unwrap()));
    }
}
