//! Addresses of nodes.
//!
//! IPv4 addresses are given in turn, from the one after the last one given, so that an address comes back as late as the prefix allows. The IPv6
//! address has the IPv4 address in its low bits where that is free, which makes the pair easy to read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where official clients answer DNS themselves; no node may have these.
const SERVICE_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 0, 0), 24);
const SERVICE_V4_DNS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 0), 24);
/// Taken by ChromeOS for its own containers.
const CHROME_OS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53);

/// The prefixes from which nodes get their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prefixes {
    /// At least a /30.
    #[schemars(with = "String")]
    pub v4: Ipv4Net,
    /// At least a /96.
    #[schemars(with = "String")]
    pub v6: Ipv6Net,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
            v6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48),
        }
    }
}

impl Prefixes {
    /// Both prefixes, IPv4 first.
    pub fn both(&self) -> [IpNet; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Whether a node may be given this address.
    pub fn may_have(&self, addr: Ipv4Addr) -> bool {
        let inner = u32::from(self.v4.network()) + 1..u32::from(self.v4.broadcast());
        inner.contains(&u32::from(addr)) && !is_reserved_v4(addr)
    }

    /// The IPv4 address after `last` (or the first one) that is not taken; the first again behind the last one. The prefix when all are taken.
    ///
    /// # Errors
    /// The prefix that has no free address.
    pub fn next_v4(&self, last: Option<Ipv4Addr>, taken: impl Fn(IpAddr) -> bool) -> Result<Ipv4Addr, IpNet> {
        let (low, high) = (
            u32::from(self.v4.network()) + 1,
            u32::from(self.v4.broadcast()) - 1,
        );
        let after = last
            .map(u32::from)
            .filter(|last| (low..high).contains(last))
            .map_or(low, |last| last + 1);
        (after..=high)
            .chain(low..after)
            .map(Ipv4Addr::from)
            .find(|addr| !is_reserved_v4(*addr) && !taken(IpAddr::V4(*addr)))
            .ok_or(IpNet::V4(self.v4))
    }

    /// The IPv6 address for a node with the address `v4`: with its bits in the low bits, else the next free one.
    ///
    /// # Errors
    /// The prefix that has no free address.
    pub fn v6_for(&self, v4: Ipv4Addr, taken: impl Fn(IpAddr) -> bool) -> Result<Ipv6Addr, IpNet> {
        let base = u128::from(self.v6.network());
        let preferred = u32::from(v4);
        // A /96 at least: 2^32 candidates, of which only as many are looked at as nodes exist.
        (preferred..=u32::MAX)
            .chain(1..preferred)
            .map(|low| Ipv6Addr::from(base | u128::from(low)))
            .find(|addr| *addr != SERVICE_V6 && !taken(IpAddr::V6(*addr)))
            .ok_or(IpNet::V6(self.v6))
    }
}

fn is_reserved_v4(addr: Ipv4Addr) -> bool {
    [SERVICE_V4, SERVICE_V4_DNS, CHROME_OS_V4]
        .iter()
        .any(|net| net.contains(&addr))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn small() -> Prefixes {
        Prefixes {
            v4: "100.64.0.0/28".parse().unwrap(),
            v6: "fd7a:115c:a1e0::/96".parse().unwrap(),
        }
    }

    #[test]
    fn the_v6_address_shows_the_v4_address() {
        let prefixes = Prefixes::default();
        let v4 = prefixes.next_v4(None, |_| false).unwrap();
        assert_eq!(v4, Ipv4Addr::new(100, 64, 0, 1));
        assert_eq!(
            prefixes.v6_for(v4, |_| false).unwrap().to_string(),
            "fd7a:115c:a1e0::6440:1"
        );
    }

    #[test]
    fn an_address_given_back_is_not_given_again_at_once() {
        let prefixes = small();
        let first = prefixes.next_v4(None, |_| false).unwrap();
        let second = prefixes.next_v4(Some(first), |_| false).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn a_full_prefix_is_named() {
        assert_eq!(
            small().next_v4(None, |_| true),
            Err("100.64.0.0/28".parse().unwrap())
        );
    }

    #[test]
    fn reserved_addresses_are_left_out() {
        let prefixes = Prefixes::default();
        let after = |last: [u8; 4]| prefixes.next_v4(Some(last.into()), |_| false).unwrap();
        assert_eq!(after([100, 100, 99, 255]), Ipv4Addr::new(100, 100, 101, 0));
        assert_eq!(after([100, 115, 91, 255]), Ipv4Addr::new(100, 115, 94, 0));
        assert_eq!(after([100, 127, 255, 254]), Ipv4Addr::new(100, 64, 0, 1));
    }

    proptest! {
        /// Any history of taking and giving back: addresses are inside, never double, and all of them are usable.
        #[test]
        fn addresses_are_unique_and_inside(history in proptest::collection::vec(any::<Option<u8>>(), 1..200)) {
            let prefixes = small();
            let (mut taken, mut last) = (BTreeSet::new(), None);
            for step in history {
                match step {
                    None => match prefixes.next_v4(last, |addr| taken.contains(&addr)) {
                        Ok(v4) => {
                            prop_assert!(prefixes.v4.contains(&v4));
                            prop_assert!(taken.insert(IpAddr::V4(v4)));
                            let v6 = prefixes.v6_for(v4, |addr| taken.contains(&addr)).unwrap();
                            prop_assert!(prefixes.v6.contains(&v6));
                            last = Some(v4);
                        }
                        Err(_) => prop_assert_eq!(taken.len(), 14),
                    },
                    Some(which) => {
                        let given = taken.iter().nth(usize::from(which) % taken.len().max(1)).copied();
                        given.map(|addr| taken.remove(&addr));
                    }
                }
            }
        }
    }
}
