//! The addresses of the cluster, and networks that people name which mean the same addresses.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

/// The addresses that pods and Services of this cluster have, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Of pods.
    pub pods: BTreeSet<IpNet>,
    /// Of Services.
    pub services: BTreeSet<IpNet>,
}

/// A network that reaches beyond a range of the cluster and covers it, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The network.
    pub route: IpNet,
    /// The range of the cluster that it covers; the first of several.
    pub range: IpNet,
    /// Whether the range is that of pods, else of Services.
    pub pods: bool,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { route, range, pods } = self;
        let whose = if *pods { "pods" } else { "Services" };
        write!(f, "{route} covers {range}, which is of {whose} of this cluster")
    }
}

/// The pods' range of one machine is this many bits longer than that of the cluster, at most, for IPv4 and IPv6.
const MACHINE_BITS: (u8, u8) = (10, 16);

impl Ranges {
    /// Routes that cover addresses of the cluster though they were made for a larger network: behind those addresses are this cluster's pods and
    /// Services, whatever else the network has there. A route within a range is for the cluster itself, and a default route is for everything.
    #[must_use]
    pub fn overlaps(&self, routes: &[IpNet]) -> Vec<Overlap> {
        let covered = |route: &IpNet, ranges: &BTreeSet<IpNet>, slack: u8| {
            let reaches_beyond =
                |range: &&IpNet| route.contains(*range) && route.prefix_len() + slack < range.prefix_len();
            ranges.iter().find(reaches_beyond).copied()
        };
        routes
            .iter()
            .filter(|route| route.prefix_len() > 0)
            .filter_map(|route| {
                // Only the ranges of the machines are known, not that of which they are parts.
                let slack = if route.max_prefix_len() == 32 {
                    MACHINE_BITS.0
                } else {
                    MACHINE_BITS.1
                };
                let pods = covered(route, &self.pods, slack).map(|range| (range, true));
                let services = || covered(route, &self.services, 0).map(|range| (range, false));
                let (range, pods) = pods.or_else(services)?;
                Some(Overlap {
                    route: *route,
                    range,
                    pods,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn overlaps(routes: &[&str]) -> Vec<String> {
        let ranges = Ranges {
            pods: nets(&["10.244.0.0/24", "10.244.1.0/24", "fd00:10:244::/64"])
                .into_iter()
                .collect(),
            services: nets(&["10.96.0.0/12"]).into_iter().collect(),
        };
        let found = ranges.overlaps(&nets(routes));
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn routes_for_the_cluster_itself_are_no_overlap() {
        let own = [
            "10.244.0.0/16",
            "10.244.1.7/32",
            "10.96.0.0/12",
            "10.96.0.0/24",
            "fd00:10:244::/56",
        ];
        assert_eq!(overlaps(&own), [""; 0]);
        assert_eq!(overlaps(&["0.0.0.0/0", "::/0", "192.168.0.0/16"]), [""; 0]);
    }

    #[test]
    fn routes_for_more_than_the_cluster_are() {
        assert_eq!(
            overlaps(&["10.0.0.0/8", "10.64.0.0/10"]),
            [
                "10.0.0.0/8 covers 10.244.0.0/24, which is of pods of this cluster",
                "10.64.0.0/10 covers 10.96.0.0/12, which is of Services of this cluster",
            ]
        );
    }
}
