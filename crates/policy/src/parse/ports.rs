//! Protocols and ports.

use tailwharf_wire::tailcfg::PortRange;

use super::reader::Reader;
use crate::hujson::{Item, Position, Value};
use crate::model::WITH_PORTS;
use crate::{PolicyError, Problem};

/// Protocols by name. `icmp` is the one of each address family.
const PROTOCOLS: &[(&str, &[u8])] = &[
    ("icmp", &[1, 58]),
    ("igmp", &[2]),
    ("ipv4", &[4]),
    ("ip-in-ip", &[4]),
    ("tcp", &[6]),
    ("egp", &[8]),
    ("igp", &[9]),
    ("udp", &[17]),
    ("dccp", &[33]),
    ("gre", &[47]),
    ("esp", &[50]),
    ("ah", &[51]),
    ("ipv6-icmp", &[58]),
    ("sctp", &[132]),
];

/// What a grant opens: protocols and ports.
pub(super) fn read_openings(reader: &mut Reader, item: &Item) -> Vec<(Vec<u8>, Vec<PortRange>)> {
    const FORM: &str =
        "an opening; write \"*\", ports such as \"443\" or \"80-90\", or both with a protocol: \"tcp:443\"";
    let mut openings = Vec::new();
    for (at, text) in reader.strings(item, "\"ip\"") {
        let (protocols, ports) = match text.split_once(':') {
            Some((name, ports)) => (protocol_by_name(name), ports),
            None => match (protocol_by_name(text), text) {
                // A number alone is a port; a name alone is a protocol.
                (Some(protocols), name) if name.parse::<u16>().is_err() => (Some(protocols), "*"),
                (_, ports) => (Some(Vec::new()), ports),
            },
        };
        match (protocols, parse_ports(ports)) {
            (Some(protocols), Some(ports)) => {
                check_ports(reader, at, &protocols, &ports);
                openings.push((protocols, ports));
            }
            _ => reader.invalid(at, text, FORM),
        }
    }
    openings
}

/// A protocol by name or number.
pub(super) fn read_protocol(reader: &mut Reader, item: &Item) -> Vec<u8> {
    const FORM: &str = "a protocol; write a name such as \"tcp\", or a number from 1 to 255";
    let name = match &item.value {
        Value::Number(number) => number.to_string(),
        _ => match reader.string(item, "\"proto\"") {
            Some(name) => name.to_owned(),
            None => return Vec::new(),
        },
    };
    protocol_by_name(&name).unwrap_or_else(|| {
        reader.invalid(item.at, &name, FORM);
        Vec::new()
    })
}

fn protocol_by_name(name: &str) -> Option<Vec<u8>> {
    match PROTOCOLS.iter().find(|(known, _)| *known == name) {
        Some((_, numbers)) => Some(numbers.to_vec()),
        None => name
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .map(|number| vec![number]),
    }
}

/// Reports ports of protocols that have none.
pub(super) fn check_ports(reader: &mut Reader, at: Position, protocols: &[u8], ports: &[PortRange]) {
    const NO_PORTS: &str = "this protocol has no ports; write \"*\" for the port";
    let all = ports.iter().all(|range| *range == PortRange::ANY);
    if !all && protocols.iter().any(|protocol| !WITH_PORTS.contains(protocol)) {
        reader.report(PolicyError::new(at, Problem::Rule(NO_PORTS)));
    }
}

/// Splits at the last colon. An IPv6 address may stand in brackets.
pub(super) fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, port)) => {
            let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
            (bare.unwrap_or(name), Some(port))
        }
        None => (text, None),
    }
}

/// Ports: `*`, or a list of numbers and ranges.
pub(super) fn parse_ports(text: &str) -> Option<Vec<PortRange>> {
    if text == "*" {
        return Some(vec![PortRange::ANY]);
    }
    let number = |text: &str| -> Option<u16> {
        text.starts_with(|c: char| c.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
    };
    text.split(',')
        .map(str::trim)
        .map(|part| match part.split_once('-') {
            Some((first, last)) => {
                let range = PortRange {
                    first: number(first)?,
                    last: number(last)?,
                };
                (range.first <= range.last).then_some(range)
            }
            None => number(part).map(PortRange::single),
        })
        .collect()
}
