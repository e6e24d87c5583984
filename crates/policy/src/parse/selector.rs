//! Who and where: the selectors of sources, destinations, targets and owners.

use super::reader::Reader;
use super::{Definitions, TAG};
use crate::hujson::{Item, Position};
use crate::ipset::IpRange;
use crate::model::{Autogroup, Selector};
use crate::{PolicyError, Problem, Tag};

/// Autogroups of other control servers: roles and sharing that this server does not have.
const OTHER_AUTOGROUPS: &[&str] = &[
    "autogroup:it-admin",
    "autogroup:network-admin",
    "autogroup:billing-admin",
    "autogroup:auditor",
    "autogroup:shared",
    "autogroup:nonroot",
];

/// The sources of a rule.
pub(super) fn read_sources(
    reader: &mut Reader,
    defined: &Definitions,
    item: &Item,
) -> Vec<(Position, Selector)> {
    let texts = reader.strings(item, "\"src\"");
    texts
        .into_iter()
        .filter_map(|(at, text)| Some((at, read_source(reader, defined, at, text)?)))
        .collect()
}

/// One source.
pub(super) fn read_source(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
) -> Option<Selector> {
    let selector = read(reader, defined, at, text)?;
    match selector {
        Selector::Auto(Autogroup::OwnDevices | Autogroup::Internet) => {
            misplaced(reader, at, text, "as a source")
        }
        selector => Some(selector),
    }
}

/// One destination, without its ports.
pub(super) fn read_destination(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
) -> Option<Selector> {
    match read(reader, defined, at, text)? {
        Selector::Auto(Autogroup::DangerAll) => misplaced(reader, at, text, "as a destination; write \"*\""),
        selector => Some(selector),
    }
}

/// The targets of node attributes.
pub(super) fn read_targets(reader: &mut Reader, defined: &Definitions, item: &Item) -> Vec<Selector> {
    let mut targets = Vec::new();
    for (at, text) in reader.strings(item, "\"target\"") {
        targets.extend(match read(reader, defined, at, text) {
            Some(Selector::Auto(Autogroup::OwnDevices | Autogroup::Internet | Autogroup::DangerAll)) => {
                misplaced(reader, at, text, "as a target of node attributes")
            }
            selector => selector,
        });
    }
    targets
}

/// Somebody who may own tags or approve routes: a user, a group, a tag or a role.
pub(super) fn read_principal(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
    place: &'static str,
) -> Option<Selector> {
    match read(reader, defined, at, text)? {
        selector @ (Selector::User(_)
        | Selector::Group(_)
        | Selector::Tag(_)
        | Selector::Auto(
            Autogroup::Member | Autogroup::Tagged | Autogroup::Admin | Autogroup::Owner,
        )) => Some(selector),
        Selector::Any | Selector::Range(_) | Selector::Auto(_) => misplaced(reader, at, text, place),
    }
}

fn misplaced(reader: &mut Reader, at: Position, text: &str, place: &'static str) -> Option<Selector> {
    reader.report(PolicyError::new(
        at,
        Problem::Misplaced {
            selector: text.to_owned(),
            place,
        },
    ));
    None
}

fn read(reader: &mut Reader, defined: &Definitions, at: Position, text: &str) -> Option<Selector> {
    let result = resolve(defined, text);
    result
        .map_err(|(what, candidates)| reader.report(PolicyError::new(at, what).suggest(text, candidates)))
        .ok()
}

/// A problem, and the names that may have been meant.
type Unresolved<'a> = (Problem, Vec<&'a str>);

fn resolve<'a>(defined: &'a Definitions, text: &str) -> Result<Selector, Unresolved<'a>> {
    if text == "*" {
        return Ok(Selector::Any);
    }
    if let Ok(range) = text.parse::<IpRange>() {
        return Ok(Selector::Range(range));
    }
    match text.split_once(':') {
        Some(("group", _)) => match defined.groups.contains_key(text) {
            true => Ok(Selector::Group(text.to_owned())),
            false => Err((
                Problem::UndefinedGroup(text.to_owned()),
                defined.groups.keys().map(String::as_str).collect(),
            )),
        },
        Some(("tag", _)) => resolve_tag(defined, text),
        Some(("autogroup", _)) => resolve_autogroup(text),
        Some(("svc" | "ipset", _)) => Err((Problem::Unsupported(format!("selector {text:?}")), Vec::new())),
        _ if text.starts_with("user:*@") => {
            Err((Problem::Unsupported(format!("selector {text:?}")), Vec::new()))
        }
        _ if text.contains('@') && !text.contains([' ', ':']) => {
            Ok(Selector::User(text.to_ascii_lowercase()))
        }
        Some(_) => Err((
            Problem::Invalid {
                value: text.to_owned(),
                expected: SELECTOR,
            },
            Vec::new(),
        )),
        None if text.is_empty() || text.contains('/') => Err((
            Problem::Invalid {
                value: text.to_owned(),
                expected: SELECTOR,
            },
            Vec::new(),
        )),
        None => match defined.hosts.get(text) {
            Some(range) => Ok(Selector::Range(*range)),
            None => Err((
                Problem::UndefinedHost(text.to_owned()),
                defined.hosts.keys().map(String::as_str).collect(),
            )),
        },
    }
}

const SELECTOR: &str = "\"*\", a user, a group, a tag, an autogroup, a host, an address, a prefix or a range";

fn resolve_tag<'a>(defined: &'a Definitions, text: &str) -> Result<Selector, Unresolved<'a>> {
    let Ok(tag) = text.parse::<Tag>() else {
        return Err((
            Problem::Invalid {
                value: text.to_owned(),
                expected: TAG,
            },
            Vec::new(),
        ));
    };
    match defined.tags.contains(&tag) {
        true => Ok(Selector::Tag(tag)),
        false => Err((
            Problem::TagWithoutOwner(text.to_owned()),
            defined.tags.iter().map(Tag::as_str).collect(),
        )),
    }
}

fn resolve_autogroup(text: &str) -> Result<Selector, Unresolved<'static>> {
    if let Some(group) = Autogroup::ALL.into_iter().find(|group| group.name() == text) {
        return Ok(Selector::Auto(group));
    }
    if OTHER_AUTOGROUPS.contains(&text) {
        return Err((Problem::Unsupported(format!("selector {text:?}")), Vec::new()));
    }
    Err((
        Problem::UnknownAutogroup(text.to_owned()),
        Autogroup::ALL.map(Autogroup::name).to_vec(),
    ))
}
