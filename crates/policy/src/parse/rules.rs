//! The sections `acls`, `grants` and `tests`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;
use tailwharf_wire::tailcfg::PortRange;

use super::reader::Reader;
use super::{Definitions, selector};
use crate::hujson::{Item, Member, Position, Value};
use crate::model::{Application, Autogroup, Flow, Probe, Rule, Selector, Test, WITH_PORTS};
use crate::posture::{Assertion, Attributes};
use crate::{AttributeValue, PolicyError, Problem};

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
    ("gre", &[47]),
    ("esp", &[50]),
    ("ah", &[51]),
    ("ipv6-icmp", &[58]),
    ("sctp", &[132]),
];

/// Reads the section `acls`.
pub(super) fn read_acls(reader: &mut Reader, defined: &Definitions, item: &Item) -> Vec<Rule> {
    reader
        .objects(item, "\"acls\"")
        .into_iter()
        .filter_map(|item| read_acl(reader, defined, item))
        .collect()
}

fn read_acl(reader: &mut Reader, defined: &Definitions, item: &Item) -> Option<Rule> {
    const WITHIN: &str = "an entry of \"acls\"";
    let fields = reader.fields(
        item,
        WITHIN,
        &["action", "src", "dst", "proto", "srcPosture"],
        &[],
    )?;
    match fields
        .get("action")
        .map(|item| (item, reader.string(item, "\"action\"")))
    {
        Some((_, Some("accept") | None)) => {}
        Some((item, Some(other))) => reader.invalid(item.at, other, "an action; the only one is \"accept\""),
        None => reader.missing(item.at, "action", WITHIN),
    }
    let protocols = fields
        .get("proto")
        .map(|item| read_protocol(reader, item))
        .unwrap_or_default();
    let mut targets = Vec::new();
    match fields.get("dst") {
        Some(dst) => {
            for (at, text) in reader.strings(dst, "\"dst\"") {
                targets.extend(read_target(reader, defined, at, text).map(|target| (at, target)));
            }
        }
        None => reader.missing(item.at, "dst", WITHIN),
    }
    let places: Vec<(Position, Selector)> = targets
        .iter()
        .map(|(at, (selector, _))| (*at, selector.clone()))
        .collect();
    for (at, (_, ports)) in &targets {
        check_ports(reader, *at, &protocols, ports);
    }
    let sources = read_rule_sources(reader, defined, item, fields.get("src"), &places, WITHIN);
    let flow = Flow {
        protocols,
        targets: targets.into_iter().map(|(_, target)| target).collect(),
    };
    let postures = read_rule_postures(reader, defined, fields.get("srcPosture"));
    Some(Rule {
        sources,
        postures,
        flows: vec![flow],
        application: None,
    })
}

/// Reads the section `grants`.
pub(super) fn read_grants(reader: &mut Reader, defined: &Definitions, item: &Item) -> Vec<Rule> {
    reader
        .objects(item, "\"grants\"")
        .into_iter()
        .filter_map(|item| read_grant(reader, defined, item))
        .collect()
}

fn read_grant(reader: &mut Reader, defined: &Definitions, item: &Item) -> Option<Rule> {
    const WITHIN: &str = "an entry of \"grants\"";
    let fields = reader.fields(item, WITHIN, &["src", "dst", "ip", "app", "srcPosture"], &["via"])?;
    let mut destinations = Vec::new();
    match fields.get("dst") {
        Some(dst) => {
            for (at, text) in reader.strings(dst, "\"dst\"") {
                let selector = selector::read_destination(reader, defined, at, text);
                destinations.extend(selector.map(|selector| (at, selector)));
            }
        }
        None => reader.missing(item.at, "dst", WITHIN),
    }
    let sources = read_rule_sources(reader, defined, item, fields.get("src"), &destinations, WITHIN);
    let destinations: Vec<Selector> = destinations.into_iter().map(|(_, selector)| selector).collect();
    if fields.get("ip").is_none() && fields.get("app").is_none() {
        const EITHER: &str =
            "a grant needs \"ip\" (what may be reached), \"app\" (which capabilities are given), or both";
        reader.report(PolicyError::new(item.at, Problem::Rule(EITHER)));
    }
    // One flow for each choice of protocols.
    let mut opened: BTreeMap<Vec<u8>, Vec<PortRange>> = BTreeMap::new();
    for (protocols, ports) in fields
        .get("ip")
        .map(|item| read_openings(reader, item))
        .unwrap_or_default()
    {
        opened.entry(protocols).or_default().extend(ports);
    }
    let flows = opened
        .into_iter()
        .map(|(protocols, ports)| Flow {
            protocols,
            targets: destinations
                .iter()
                .map(|selector| (selector.clone(), ports.clone()))
                .collect(),
        })
        .collect();
    let application = fields.get("app").map(|app| Application {
        destinations,
        capabilities: read_capabilities(reader, app),
    });
    let postures = read_rule_postures(reader, defined, fields.get("srcPosture"));
    Some(Rule {
        sources,
        postures,
        flows,
        application,
    })
}

/// The sources of a rule, which must be people if one of its destinations is `autogroup:self`.
fn read_rule_sources(
    reader: &mut Reader,
    defined: &Definitions,
    rule: &Item,
    item: Option<&Item>,
    destinations: &[(Position, Selector)],
    within: &'static str,
) -> Vec<Selector> {
    let Some(item) = item else {
        reader.missing(rule.at, "src", within);
        return Vec::new();
    };
    let sources = selector::read_sources(reader, defined, item);
    let own = destinations.iter().any(|(_, selector)| selector.is_own_devices());
    if own {
        const PEOPLE: &str =
            "\"autogroup:self\" as a destination needs users, groups or autogroups of users as sources";
        let person = |selector: &Selector| {
            matches!(
                selector,
                Selector::Any
                    | Selector::User(_)
                    | Selector::Group(_)
                    | Selector::Auto(Autogroup::Member | Autogroup::Admin | Autogroup::Owner)
            )
        };
        for (at, _) in sources.iter().filter(|(_, selector)| !person(selector)) {
            reader.report(PolicyError::new(*at, Problem::Rule(PEOPLE)));
        }
    }
    sources.into_iter().map(|(_, selector)| selector).collect()
}

fn read_rule_postures(
    reader: &mut Reader,
    defined: &Definitions,
    item: Option<&Item>,
) -> Vec<Arc<[Assertion]>> {
    match item {
        Some(item) => read_posture_names(reader, defined, item),
        None => defined.default_posture.clone(),
    }
}

/// A list of names of postures.
pub(super) fn read_posture_names(
    reader: &mut Reader,
    defined: &Definitions,
    item: &Item,
) -> Vec<Arc<[Assertion]>> {
    let mut postures = Vec::new();
    for (at, name) in reader.strings(item, "\"srcPosture\"") {
        match defined.postures.get(name) {
            Some(posture) => postures.push(Arc::clone(posture)),
            None => {
                let error = PolicyError::new(at, Problem::UndefinedPosture(name.to_owned()));
                reader.report(error.suggest(name, defined.postures.keys().map(String::as_str)));
            }
        }
    }
    postures
}

/// The capabilities of `app`: names with a list of values each.
pub(super) fn read_capabilities(reader: &mut Reader, item: &Item) -> BTreeMap<String, Vec<Json>> {
    let mut capabilities = BTreeMap::new();
    for Member { at, name, item } in reader.members(item, "\"app\"") {
        let values = reader
            .array(item, "the values of a capability")
            .iter()
            .map(Item::to_json)
            .collect();
        if name.contains('/') {
            capabilities.insert(name.clone(), values);
        } else {
            reader.invalid(
                *at,
                name,
                "the name of a capability, such as \"tailscale.com/cap/kubernetes\"",
            );
        }
    }
    capabilities
}

/// What a grant opens: protocols and ports.
fn read_openings(reader: &mut Reader, item: &Item) -> Vec<(Vec<u8>, Vec<PortRange>)> {
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

fn read_protocol(reader: &mut Reader, item: &Item) -> Vec<u8> {
    let name = match &item.value {
        Value::Number(number) => number.to_string(),
        _ => match reader.string(item, "\"proto\"") {
            Some(name) => name.to_owned(),
            None => return Vec::new(),
        },
    };
    protocol_by_name(&name).unwrap_or_else(|| {
        reader.invalid(
            item.at,
            &name,
            "a protocol; write a name such as \"tcp\", or a number from 1 to 255",
        );
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
fn check_ports(reader: &mut Reader, at: Position, protocols: &[u8], ports: &[PortRange]) {
    const NO_PORTS: &str = "this protocol has no ports; write \"*\" for the port";
    let all = ports.iter().all(|range| *range == PortRange::ANY);
    if !all && protocols.iter().any(|protocol| !WITH_PORTS.contains(protocol)) {
        reader.report(PolicyError::new(at, Problem::Rule(NO_PORTS)));
    }
}

/// A destination of an entry of `acls`: a selector, a colon, and ports.
fn read_target(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
) -> Option<(Selector, Vec<PortRange>)> {
    const FORM: &str = "a destination with ports; write it like \"tag:web:80,443\" or \"10.0.0.0/8:*\"";
    let (name, ports) = split_port(text);
    let Some(ports) = ports.and_then(parse_ports) else {
        reader.invalid(at, text, FORM);
        return None;
    };
    Some((selector::read_destination(reader, defined, at, name)?, ports))
}

/// Splits at the last colon. An IPv6 address may stand in brackets.
fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, port)) => {
            let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
            (bare.unwrap_or(name), Some(port))
        }
        None => (text, None),
    }
}

/// Ports: `*`, or a list of numbers and ranges.
fn parse_ports(text: &str) -> Option<Vec<PortRange>> {
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

/// Reads the section `tests`.
pub(super) fn read_tests(reader: &mut Reader, defined: &Definitions, item: &Item) -> Vec<Test> {
    reader
        .objects(item, "\"tests\"")
        .into_iter()
        .filter_map(|item| read_test(reader, defined, item))
        .collect()
}

fn read_test(reader: &mut Reader, defined: &Definitions, item: &Item) -> Option<Test> {
    const WITHIN: &str = "an entry of \"tests\"";
    const SOURCE: &str = "as the source of a test; write a user, a group, a tag, a host or an address";
    let fields = reader.fields(
        item,
        WITHIN,
        &["src", "proto", "accept", "deny", "srcPostureAttrs"],
        &[],
    )?;
    let Some(src) = fields.get("src") else {
        reader.missing(item.at, "src", WITHIN);
        return None;
    };
    let text = reader.string(src, "\"src\"")?;
    let source = selector::read_source(reader, defined, src.at, text)?;
    if matches!(source, Selector::Any | Selector::Auto(_)) {
        let what = Problem::Misplaced {
            selector: text.to_owned(),
            place: SOURCE,
        };
        reader.report(PolicyError::new(src.at, what));
    }
    let protocol = fields
        .get("proto")
        .and_then(|item| read_protocol(reader, item).first().copied());
    let attributes = fields
        .get("srcPostureAttrs")
        .map(|item| read_attributes(reader, item))
        .unwrap_or_default();
    let mut probes = |name: &'static str| match fields.get(name) {
        Some(item) => {
            let texts = reader.strings(item, "the destinations of a test");
            texts
                .into_iter()
                .filter_map(|(at, text)| read_probe(reader, defined, at, text))
                .collect()
        }
        None => Vec::new(),
    };
    let (accept, deny) = (probes("accept"), probes("deny"));
    Some(Test {
        source,
        attributes,
        protocol,
        accept,
        deny,
    })
}

/// A destination of a test: one thing, one port.
fn read_probe(reader: &mut Reader, defined: &Definitions, at: Position, text: &str) -> Option<Probe> {
    const FORM: &str = "a destination with one port, such as \"tag:web:443\"";
    let (name, port) = split_port(text);
    let Some(port) = port.and_then(|port| port.parse().ok()) else {
        reader.invalid(at, text, FORM);
        return None;
    };
    match selector::read_destination(reader, defined, at, name)? {
        Selector::Any | Selector::Auto(_) => {
            reader.invalid(at, text, FORM);
            None
        }
        target => Some(Probe {
            at,
            text: text.to_owned(),
            target,
            port,
        }),
    }
}

fn read_attributes(reader: &mut Reader, item: &Item) -> Attributes {
    let mut attributes = Attributes::new();
    for Member { name, item, .. } in reader.members(item, "\"srcPostureAttrs\"") {
        let value = match &item.value {
            Value::Bool(value) => AttributeValue::Bool(*value),
            Value::Number(number) => AttributeValue::Number(number.as_f64().unwrap_or(f64::NAN)),
            Value::String(text) => AttributeValue::Text(text.clone()),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                reader.invalid(item.at, name, "an attribute with a text, a number, true or false");
                continue;
            }
        };
        attributes.insert(name.clone(), value);
    }
    attributes
}
