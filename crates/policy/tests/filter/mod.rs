//! What packet filters mean, read as nodes read them.

use std::net::IpAddr;

use tailwharf_wire::tailcfg::FilterRule;

/// The protocols of a rule that names none: ICMP, TCP, UDP, ICMPv6.
const DEFAULT_PROTOCOLS: [u8; 4] = [1, 6, 17, 58];

/// Whether a filter lets a packet pass. Ports count only for protocols that have some.
pub(crate) fn allows(
    filter: &[FilterRule],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
) -> bool {
    filter.iter().any(|rule| {
        let protocol_fits = match rule.ip_proto.as_slice() {
            [] => DEFAULT_PROTOCOLS.contains(&protocol),
            protocols => protocols.contains(&i32::from(protocol)),
        };
        let has_ports = matches!(protocol, 6 | 17 | 33 | 132);
        protocol_fits
            && rule.src_ips.iter().any(|text| covers(text, source))
            && rule
                .dst_ports
                .iter()
                .any(|to| covers(&to.ip, destination) && (!has_ports || to.ports.contains(port)))
    })
}

/// Whether an address, prefix, range or `*` covers an address.
pub(crate) fn covers(text: &str, ip: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Some((first, last)) = text.split_once('-') {
        return first.parse::<IpAddr>().unwrap() <= ip && ip <= last.parse::<IpAddr>().unwrap();
    }
    match text.parse::<ipnet::IpNet>() {
        Ok(net) => net.contains(&ip),
        Err(_) => text.parse::<IpAddr>().unwrap() == ip,
    }
}
