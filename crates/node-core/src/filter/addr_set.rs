//! Sets of addresses as sorted ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A set of IP addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddrSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl AddrSet {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => in_ranges(&self.v4, v4.to_bits()),
            IpAddr::V6(v6) => in_ranges(&self.v6, v6.to_bits()),
        }
    }

    pub(crate) fn from_nets(nets: &[IpNet]) -> Self {
        let mut builder = Builder::default();
        for net in nets {
            builder.add_net(*net);
        }
        builder.build()
    }
}

fn in_ranges<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    after > 0 && address <= ranges[after - 1].1
}

/// Collects ranges of an [`AddrSet`].
#[derive(Debug, Default)]
pub(crate) struct Builder {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Builder {
    /// Adds what a text of a filter rule names: an address, a prefix, a range `a-b`, or `*`. Returns whether it could be read.
    pub(crate) fn add_text(&mut self, text: &str) -> bool {
        if text == "*" {
            self.v4.push((0, u32::MAX));
            self.v6.push((0, u128::MAX));
        } else if let Ok(address) = text.parse::<IpAddr>() {
            self.add_net(address.into());
        } else if let Ok(net) = text.parse::<IpNet>() {
            self.add_net(net);
        } else if let Some((first, last)) = text.split_once('-') {
            if let (Ok(first), Ok(last)) = (first.parse::<Ipv4Addr>(), last.parse::<Ipv4Addr>()) {
                self.v4.push((first.to_bits(), last.to_bits()));
            } else if let (Ok(first), Ok(last)) = (first.parse::<Ipv6Addr>(), last.parse::<Ipv6Addr>()) {
                self.v6.push((first.to_bits(), last.to_bits()));
            } else {
                return false;
            }
        } else {
            return false;
        }
        true
    }

    fn add_net(&mut self, net: IpNet) {
        match net {
            IpNet::V4(net) => self.v4.push((net.network().to_bits(), net.broadcast().to_bits())),
            IpNet::V6(net) => self.v6.push((net.network().to_bits(), net.broadcast().to_bits())),
        }
    }

    pub(crate) fn build(self) -> AddrSet {
        AddrSet {
            v4: merge(self.v4),
            v6: merge(self.v6),
        }
    }
}

/// Sorts ranges and joins those that overlap. Ranges that end before they begin are empty.
fn merge<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.retain(|(first, last)| first <= last);
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(open) if first <= open.1 => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into()
}
