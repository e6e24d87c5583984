//! The sections `acls` and `grants`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value as Json;
use tailwharf_wire::tailcfg::PortRange;

use super::ports::{check_ports, parse_ports, read_openings, read_protocol, split_port};
use super::reader::Reader;
use super::{Definitions, selector};
use crate::hujson::{Item, Member, Position, Value};
use crate::model::{Application, Autogroup, Flow, KUBERNETES, Postures, Recorders, Rule, Selector};
use crate::{PolicyError, Problem, Tag};

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
    reader.may_open(
        item.at,
        1,
        targets.iter().map(|(_, (_, ports))| ports.len()).sum(),
    );
    let sources = read_rule_sources(reader, defined, item, fields.get("src"), &places, WITHIN);
    let flow = Flow {
        protocols,
        targets: targets.into_iter().map(|(_, target)| target).collect(),
    };
    let postures = read_rule_postures(reader, defined, fields.get("srcPosture"));
    Some(Rule {
        line: item.at.line,
        sources,
        postures,
        flows: vec![flow],
        application: None,
        via: BTreeSet::new(),
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
    let fields = reader.fields(
        item,
        WITHIN,
        &["src", "dst", "ip", "app", "via", "srcPosture"],
        &[],
    )?;
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
    let via = fields
        .get("via")
        .map(|item| read_via(reader, defined, item, &destinations))
        .unwrap_or_default();
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
    let ports = opened.values().map(Vec::len).sum();
    if !reader.may_open(item.at, destinations.len(), ports) {
        opened.clear();
    }
    let flows = opened
        .into_iter()
        .map(|(protocols, ports)| {
            let ports: Arc<[PortRange]> = ports.into();
            let targets = destinations
                .iter()
                .map(|selector| (selector.clone(), Arc::clone(&ports)));
            Flow {
                protocols,
                targets: targets.collect(),
            }
        })
        .collect();
    let application = fields.get("app").map(|app| Application {
        destinations,
        capabilities: read_capabilities(reader, app),
        recorders: read_recorders(reader, defined, app),
    });
    let postures = read_rule_postures(reader, defined, fields.get("srcPosture"));
    Some(Rule {
        line: item.at.line,
        sources,
        postures,
        flows,
        application,
        via,
    })
}

/// The tags of the routers of a grant, whose destinations must all lie behind routers.
fn read_via(
    reader: &mut Reader,
    defined: &Definitions,
    item: &Item,
    destinations: &[(Position, Selector)],
) -> BTreeSet<Tag> {
    const ROUTED: &str =
        "\"via\" is for what lies behind routers: addresses, hosts, IP sets and \"autogroup:internet\"";
    for (at, selector) in destinations {
        if !matches!(
            selector,
            Selector::Addresses(_) | Selector::Auto(Autogroup::Internet)
        ) {
            reader.report(PolicyError::new(*at, Problem::Rule(ROUTED)));
        }
    }
    let texts = reader.strings(item, "\"via\"");
    let tags =
        texts.into_iter().filter_map(
            |(at, text)| match selector::read_tag(reader, defined, at, text)? {
                Selector::Tag(tag) => Some(tag),
                _ => None,
            },
        );
    tags.collect()
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
        let person = |selector: &Selector| *selector == Selector::Any || selector.is_people();
        for (at, _) in sources.iter().filter(|(_, selector)| !person(selector)) {
            reader.report(PolicyError::new(*at, Problem::Rule(PEOPLE)));
        }
    }
    sources.into_iter().map(|(_, selector)| selector).collect()
}

/// The postures of a rule: those that it names, or the default.
pub(super) fn read_rule_postures(
    reader: &mut Reader,
    defined: &Definitions,
    item: Option<&Item>,
) -> Postures {
    match item {
        Some(item) => read_posture_names(reader, defined, item),
        None => defined.default_posture.clone(),
    }
}

/// A list of names of postures.
pub(super) fn read_posture_names(reader: &mut Reader, defined: &Definitions, item: &Item) -> Postures {
    let mut postures = Postures::new();
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

/// The tags of recorders in the values of a capability.
fn read_recorders(reader: &mut Reader, defined: &Definitions, app: &Item) -> Vec<Recorders> {
    let Value::Object(members) = &app.value else {
        return Vec::new();
    };
    let mut recorders = Vec::new();
    for member in members.iter().filter(|member| member.name == KUBERNETES) {
        let Value::Array(values) = &member.item.value else {
            continue;
        };
        for (position, value) in values.iter().enumerate() {
            let Value::Object(fields) = &value.value else {
                continue;
            };
            for field in fields.iter().filter(|field| field.name == "recorder") {
                let texts = reader.strings(&field.item, "\"recorder\"");
                let selectors = texts
                    .into_iter()
                    .filter_map(|(at, text)| selector::read_tag(reader, defined, at, text));
                recorders.push(Recorders {
                    capability: member.name.clone(),
                    position,
                    selectors: selectors.collect(),
                });
            }
        }
    }
    recorders
}

/// A destination of an entry of `acls`: a selector, a colon, and ports.
fn read_target(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
) -> Option<(Selector, Arc<[PortRange]>)> {
    const FORM: &str = "a destination with ports; write it like \"tag:web:80,443\" or \"10.0.0.0/8:*\"";
    let (name, ports) = split_port(text);
    let Some(ports) = ports.and_then(parse_ports) else {
        reader.invalid(at, text, FORM);
        return None;
    };
    Some((
        selector::read_destination(reader, defined, at, name)?,
        ports.into(),
    ))
}
