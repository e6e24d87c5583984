//! Networks that people write, parsed once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use tailwharf_kube_types::contract::MAX_ROUTES;
use thiserror::Error;

/// Networks of this prefix stand for IPv4 networks of one of many sites.
const VIA6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0xb1a, 0, 0, 0, 0), 64);
/// Where the number of the site ends and the IPv4 network begins.
const VIA6_SITE_END: u8 = 96;
const DEFAULTS: [IpNet; 2] = [
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
];

/// Why a text is no network that can be routed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RouteProblem {
    /// Not in CIDR notation.
    #[error("the route {route:?} is no network: write it like 10.40.0.0/14")]
    Syntax {
        /// What was given.
        route: String,
    },
    /// Bits are set after the prefix.
    #[error("the route {route} names a host within its network: write {network}")]
    HostBits {
        /// What was given.
        route: IpNet,
        /// The network.
        network: IpNet,
    },
    /// A 4via6 network without a whole site number.
    #[error("the 4via6 route {route} ends within the number of its site: use a prefix of at least 96 bits")]
    ViaPrefix {
        /// What was given.
        route: IpNet,
    },
    /// A 4via6 network of a site that cannot be.
    #[error("the 4via6 route {route} has site {site}: use a number of at most 65535")]
    ViaSite {
        /// What was given.
        route: IpNet,
        /// Its site.
        site: u32,
    },
    /// Only one of the two.
    #[error("0.0.0.0/0 and ::/0 come together: add {missing}, or remove the other and set exitNode: true")]
    HalfExit {
        /// The other one.
        missing: IpNet,
    },
    /// More than a device may have.
    #[error("{count} routes are too many for one Connector: use at most {MAX_ROUTES}")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Reads a list of networks, sorted by the length of their prefix and then by address, or tells all that is wrong with it.
pub(super) fn parse(texts: &[String]) -> Result<Vec<IpNet>, Vec<RouteProblem>> {
    if texts.len() > MAX_ROUTES {
        return Err(vec![RouteProblem::TooMany { count: texts.len() }]);
    }
    let mut routes = Vec::new();
    let mut problems = Vec::new();
    for text in texts {
        match parse_one(text) {
            Ok(route) => routes.push(route),
            Err(problem) => problems.push(problem),
        }
    }
    let missing = DEFAULTS.iter().find(|net| !routes.contains(net));
    if let Some(missing) = missing
        && routes.iter().any(|net| DEFAULTS.contains(net))
    {
        problems.push(RouteProblem::HalfExit { missing: *missing });
    }
    if problems.is_empty() {
        sort(&mut routes);
        Ok(routes)
    } else {
        Err(problems)
    }
}

/// Adds what an exit node routes.
pub(super) fn add_exit(routes: &mut Vec<IpNet>) {
    routes.extend(DEFAULTS);
    sort(routes);
}

fn sort(routes: &mut Vec<IpNet>) {
    routes.sort_by_key(|net| (net.prefix_len(), net.addr()));
    routes.dedup();
}

fn parse_one(text: &str) -> Result<IpNet, RouteProblem> {
    let route: IpNet = text.parse().map_err(|_| RouteProblem::Syntax {
        route: text.chars().take(80).collect(),
    })?;
    let network = route.trunc();
    if network != route {
        return Err(RouteProblem::HostBits { route, network });
    }
    match route {
        IpNet::V6(net) if VIA6.contains(&net.addr()) && net.prefix_len() >= VIA6.prefix_len() => {
            if net.prefix_len() < VIA6_SITE_END {
                return Err(RouteProblem::ViaPrefix { route });
            }
            let segments = net.addr().segments();
            let site = u32::from(segments[4]) << 16 | u32::from(segments[5]);
            if site > u32::from(u16::MAX) {
                return Err(RouteProblem::ViaSite { route, site });
            }
            Ok(route)
        }
        IpNet::V4(_) | IpNet::V6(_) => Ok(route),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<Vec<String>, Vec<String>> {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        let strings = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect();
        parse(&texts)
            .map(strings)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn routes_are_sorted_by_length_and_address() {
        let routes = read(&[
            "10.96.0.0/12",
            "fd00::/8",
            "10.0.0.0/24",
            "10.96.0.0/12",
            "10.16.0.0/12",
        ]);
        assert_eq!(
            routes.unwrap(),
            ["fd00::/8", "10.16.0.0/12", "10.96.0.0/12", "10.0.0.0/24"]
        );
    }

    #[test]
    fn everything_that_is_wrong_is_told() {
        let problems = read(&[
            "10.0.0.1/24",
            "ten",
            "0.0.0.0/0",
            "fd7a:115c:a1e0:b1a::/80",
            "fd7a:115c:a1e0:b1a:1:7:a00::/104",
        ]);
        assert_eq!(
            problems.unwrap_err(),
            [
                "the route 10.0.0.1/24 names a host within its network: write 10.0.0.0/24",
                "the route \"ten\" is no network: write it like 10.40.0.0/14",
                "the 4via6 route fd7a:115c:a1e0:b1a::/80 ends within the number of its site: use a prefix of at least 96 bits",
                "the 4via6 route fd7a:115c:a1e0:b1a:1:7:a00:0/104 has site 65543: use a number of at most 65535",
                "0.0.0.0/0 and ::/0 come together: add ::/0, or remove the other and set exitNode: true",
            ]
        );
    }

    #[test]
    fn a_site_of_4via6_is_a_route() {
        assert_eq!(
            read(&["fd7a:115c:a1e0:b1a:0:7:a00::/104"]).unwrap(),
            ["fd7a:115c:a1e0:b1a:0:7:a00:0/104"]
        );
    }
}
