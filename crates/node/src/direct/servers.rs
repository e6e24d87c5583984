//! Which STUN servers a node asks.

use std::net::{IpAddr, SocketAddr};

use tailwharf_wire::tailcfg::{DerpMap, DerpNode, RegionId};

use crate::stream;

/// Beside the home region, so many others are asked: two answers tell whether a NAT maps by destination.
const OTHERS: usize = 2;
/// In place of an address: the relay has none of that family.
const NO_ADDRESS: &str = "none";

/// The addresses of the STUN servers of the home region, then of some others.
pub(super) async fn resolve(map: &DerpMap, home: Option<RegionId>, with_v6: bool) -> Vec<SocketAddr> {
    let first = home.and_then(|home| map.regions.get(&home));
    let others = map
        .regions
        .values()
        .filter(|region| Some(region.region_id) != home && !region.no_measure_no_home);
    let regions = first.into_iter().chain(others.take(OTHERS));
    let mut all = Vec::new();
    for region in regions {
        let server = region
            .nodes
            .iter()
            .find_map(|node| Some((node, node.udp_port()?)));
        if let Some((node, port)) = server {
            all.extend(addresses(node, port).await);
        }
    }
    all.retain(|address: &SocketAddr| with_v6 || address.is_ipv4());
    all
}

/// At most one address of each family.
async fn addresses(node: &DerpNode, port: u16) -> Vec<SocketAddr> {
    let told = |text: &str| text.parse::<IpAddr>().ok();
    if let Some(test) = told(&node.stun_test_ip) {
        return vec![SocketAddr::new(test, port)];
    }
    let (mut v4, mut v6) = (told(&node.ipv4), told(&node.ipv6));
    if v4.is_none() && v6.is_none() {
        let resolved = stream::resolve(&node.host_name, port).await.unwrap_or_default();
        let mut ips = resolved.iter().map(SocketAddr::ip);
        v4 = ips
            .clone()
            .find(IpAddr::is_ipv4)
            .filter(|_| node.ipv4 != NO_ADDRESS);
        v6 = ips.find(IpAddr::is_ipv6).filter(|_| node.ipv6 != NO_ADDRESS);
    }
    v4.into_iter()
        .chain(v6)
        .map(|ip| SocketAddr::new(ip, port))
        .collect()
}

#[cfg(test)]
mod tests {
    use tailwharf_wire::tailcfg::DerpRegion;

    use super::*;

    fn node(host: &str, v4: &str, v6: &str, port: i32) -> DerpNode {
        DerpNode {
            host_name: host.to_owned(),
            ipv4: v4.to_owned(),
            ipv6: v6.to_owned(),
            stun_port: port,
            ..DerpNode::default()
        }
    }

    fn map(nodes: Vec<DerpNode>) -> DerpMap {
        let regions = (1..).zip(nodes).map(|(id, node)| {
            let region = DerpRegion {
                region_id: RegionId(id),
                nodes: vec![node],
                ..DerpRegion::default()
            };
            (RegionId(id), region)
        });
        DerpMap {
            regions: regions.collect(),
            ..DerpMap::default()
        }
    }

    #[tokio::test]
    async fn home_comes_first_and_few_others_follow() {
        let map = map(vec![
            node("a.invalid", "192.0.2.1", "2001:db8::1", 0),
            node("192.0.2.2", "", "", 3479),
            node("c.invalid", "192.0.2.3", "none", -1),
            node("d.invalid", "192.0.2.4", "", 0),
        ]);
        let text = |all: Vec<SocketAddr>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            text(resolve(&map, Some(RegionId(2)), true).await),
            ["192.0.2.2:3479", "192.0.2.1:3478", "[2001:db8::1]:3478"]
        );
        assert_eq!(
            text(resolve(&map, None, false).await),
            ["192.0.2.1:3478", "192.0.2.2:3479"]
        );
    }
}
