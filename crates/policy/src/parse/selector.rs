//! Who and where: the selectors of sources, destinations, targets and owners.

use std::sync::Arc;

use super::definitions::is_login;
use super::reader::{QUOTED, Reader};
use super::{Definitions, TAG};
use crate::hujson::{Item, Position};
use crate::ipset::IpRange;
use crate::model::{Autogroup, Selector};
use crate::{PolicyError, Problem, Tag};

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
    match read(reader, defined, at, text)? {
        Selector::Auto(Autogroup::OwnDevices | Autogroup::Internet | Autogroup::NonRoot)
        | Selector::Service(_) => misplaced(reader, at, text, "as a source"),
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
        Selector::Auto(Autogroup::NonRoot | Autogroup::Shared) => {
            misplaced(reader, at, text, "as a destination")
        }
        selector => Some(selector),
    }
}

/// The targets of node attributes.
pub(super) fn read_targets(reader: &mut Reader, defined: &Definitions, item: &Item) -> Vec<Selector> {
    let mut targets = Vec::new();
    for (at, text) in reader.strings(item, "\"target\"") {
        targets.extend(match read(reader, defined, at, text) {
            Some(
                Selector::Service(_)
                | Selector::Auto(
                    Autogroup::OwnDevices
                    | Autogroup::Internet
                    | Autogroup::Shared
                    | Autogroup::NonRoot
                    | Autogroup::DangerAll,
                ),
            ) => misplaced(reader, at, text, "as a target of node attributes"),
            selector => selector,
        });
    }
    targets
}

/// Those who may own tags or approve routes: users, groups, tags and roles.
pub(super) fn read_principals(
    reader: &mut Reader,
    defined: &Definitions,
    item: &Item,
    place: &'static str,
) -> Vec<Selector> {
    let mut principals = Vec::new();
    for (at, text) in reader.strings(item, "a list of users, groups and tags") {
        principals.extend(match read(reader, defined, at, text) {
            Some(selector) if is_principal(&selector) => Some(selector),
            Some(_) => misplaced(reader, at, text, place),
            None => None,
        });
    }
    principals
}

/// Whether a selector names users or tags.
fn is_principal(selector: &Selector) -> bool {
    selector.is_people() || matches!(selector, Selector::Tag(_) | Selector::Auto(Autogroup::Tagged))
}

/// A tag.
pub(super) fn read_tag(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
) -> Option<Selector> {
    match read(reader, defined, at, text)? {
        tag @ Selector::Tag(_) => Some(tag),
        _ => misplaced(reader, at, text, "here; write a tag"),
    }
}

/// A source of an SSH rule.
pub(super) fn read_ssh_source(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
) -> Option<Selector> {
    const PLACE: &str = "as the source of an SSH rule; write users, groups, tags or autogroups of them";
    match read(reader, defined, at, text)? {
        selector if is_principal(&selector) => Some(selector),
        shared @ Selector::Auto(Autogroup::Shared) => Some(shared),
        _ => misplaced(reader, at, text, PLACE),
    }
}

/// A destination of an SSH rule.
pub(super) fn read_ssh_destination(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
) -> Option<Selector> {
    const PLACE: &str = "as the destination of an SSH rule; write a tag, a user or \"autogroup:self\"";
    match read(reader, defined, at, text)? {
        selector if is_principal(&selector) || selector.is_own_devices() => Some(selector),
        _ => misplaced(reader, at, text, PLACE),
    }
}

/// What may be approved to be hosted: a service, or the services with a tag.
pub(super) fn read_hosted(
    reader: &mut Reader,
    defined: &Definitions,
    at: Position,
    text: &str,
) -> Option<Selector> {
    match read(reader, defined, at, text)? {
        selector @ (Selector::Tag(_) | Selector::Service(_)) => Some(selector),
        _ => misplaced(
            reader,
            at,
            text,
            "here; write a service such as \"svc:web\", or a tag",
        ),
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
        return Ok(Selector::Addresses(Arc::new(range.into())));
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
        Some(("ipset", _)) => match defined.ip_sets.get(text) {
            Some(set) => Ok(Selector::Addresses(Arc::clone(set))),
            None => Err((
                Problem::UndefinedIpSet(text.to_owned()),
                defined.ip_sets.keys().map(String::as_str).collect(),
            )),
        },
        Some(("host", name)) => resolve_host(defined, name),
        Some(("svc", name)) if is_label(name) => Ok(Selector::Service(text.to_ascii_lowercase())),
        Some(("user", name)) => match name.strip_prefix("*@") {
            Some(domain) if domain.contains('.') && !domain.contains(['@', '*', ' ', ':']) => {
                Ok(Selector::Domain(domain.to_ascii_lowercase()))
            }
            _ => Err((invalid(text, DOMAIN), Vec::new())),
        },
        None if is_login(text) => Ok(Selector::User(text.to_ascii_lowercase())),
        None if !text.is_empty() && !text.contains(['/', '@']) => resolve_host(defined, text),
        _ => Err((invalid(text, SELECTOR), Vec::new())),
    }
}

const SELECTOR: &str = "\"*\", a user, a group, a tag, an autogroup, a host, an IP set, a service, an address, a prefix or a range";
const DOMAIN: &str = "the users of a domain; write it like \"user:*@example.com\"";

fn invalid(text: &str, expected: &'static str) -> Problem {
    Problem::Invalid {
        value: text.chars().take(QUOTED).collect(),
        expected,
    }
}

/// Whether a text may be the name of a VIP Service: a DNS label.
fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn resolve_host<'a>(defined: &'a Definitions, name: &str) -> Result<Selector, Unresolved<'a>> {
    match defined.hosts.get(name) {
        Some(set) => Ok(Selector::Addresses(Arc::clone(set))),
        None => Err((
            Problem::UndefinedHost(name.to_owned()),
            defined.hosts.keys().map(String::as_str).collect(),
        )),
    }
}

fn resolve_tag<'a>(defined: &'a Definitions, text: &str) -> Result<Selector, Unresolved<'a>> {
    let Ok(tag) = text.parse::<Tag>() else {
        return Err((invalid(text, TAG), Vec::new()));
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
    match Autogroup::ALL.into_iter().find(|group| group.name() == text) {
        Some(group) => Ok(Selector::Auto(group)),
        None => Err((
            Problem::UnknownAutogroup(text.to_owned()),
            Autogroup::ALL.map(Autogroup::name).to_vec(),
        )),
    }
}
