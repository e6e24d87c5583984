//! The sections that give names: `groups`, `hosts`, `ipsets` and `tagOwners`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::reader::Reader;
use super::selector;
use super::{Definitions, TAG};
use crate::hujson::{Item, Member, Position};
use crate::ipset::{IpRange, IpSet};
use crate::limits;
use crate::model::Selector;
use crate::{PolicyError, Problem, Tag};

/// What a group is written as: users, and names of other groups.
type Written<'a> = BTreeMap<&'a str, Vec<(Position, &'a str)>>;

/// Reads the section `groups` and resolves groups in groups.
pub(super) fn read_groups(reader: &mut Reader, item: &Item) -> BTreeMap<String, BTreeSet<String>> {
    const MEMBER: &str = "the login name of a user, such as \"alice@example.com\", or a group";
    let mut written = Written::new();
    for Member { at, name, item } in reader.definitions(item, "\"groups\"") {
        if name.strip_prefix("group:").is_none_or(str::is_empty) {
            reader.invalid(*at, name, "the name of a group; it begins with \"group:\"");
            continue;
        }
        let mut members = Vec::new();
        for (at, member) in reader.strings(item, "a group") {
            if member.starts_with("group:") || is_login(member) {
                members.push((at, member));
            } else {
                reader.invalid(at, member, MEMBER);
            }
        }
        written.insert(name, members);
    }
    let mut groups = Groups {
        reader,
        written: &written,
        resolved: BTreeMap::new(),
        members: 0,
    };
    for (name, members) in &written {
        if let Some((at, _)) = members.first() {
            groups.resolve(name, *at, &mut Vec::new());
        }
    }
    let mut resolved = groups.resolved;
    written
        .keys()
        .map(|name| ((*name).to_owned(), resolved.remove(name).unwrap_or_default()))
        .collect()
}

/// Whether a text may be the login of one user.
pub(super) fn is_login(text: &str) -> bool {
    text.split_once('@')
        .is_some_and(|(name, domain)| !name.is_empty() && !domain.is_empty())
        && !text.contains([' ', ':', '*', ','])
}

/// Groups while groups in groups are resolved.
struct Groups<'a, 'r> {
    reader: &'r mut Reader,
    written: &'a Written<'a>,
    resolved: BTreeMap<&'a str, BTreeSet<String>>,
    members: usize,
}

impl<'a> Groups<'a, '_> {
    /// The users of a group. `path` is the groups that led here.
    fn resolve(&mut self, name: &'a str, at: Position, path: &mut Vec<&'a str>) -> BTreeSet<String> {
        if let Some(members) = self.resolved.get(name) {
            return members.clone();
        }
        let Some((name, written)) = self.written.get_key_value(name) else {
            let error = PolicyError::new(at, Problem::UndefinedGroup(name.to_owned()));
            self.reader
                .report(error.suggest(name, self.written.keys().copied()));
            return BTreeSet::new();
        };
        if !may_descend(self.reader, at, name, path) || self.members > limits::GROUP_MEMBERS {
            return BTreeSet::new();
        }
        path.push(name);
        let mut members = BTreeSet::new();
        for (at, member) in written {
            if member.starts_with("group:") {
                members.extend(self.resolve(member, *at, path));
            } else {
                members.insert(member.to_ascii_lowercase());
            }
        }
        path.pop();
        self.members += members.len();
        if self.members > limits::GROUP_MEMBERS {
            self.reader
                .too_many(at, "members of groups", limits::GROUP_MEMBERS);
        }
        self.resolved.insert(name, members.clone());
        members
    }
}

/// Whether a definition may be followed that stands inside those of `path`; reports it if not.
fn may_descend(reader: &mut Reader, at: Position, name: &str, path: &[&str]) -> bool {
    if path.contains(&name) {
        let start = path.iter().position(|part| *part == name).unwrap_or_default();
        let mut circle: Vec<&str> = path[start..].to_vec();
        circle.push(name);
        reader.report(PolicyError::new(at, Problem::Circle(circle.join(" → "))));
        return false;
    }
    if path.len() >= limits::NESTING {
        reader.too_many(at, "levels of names in names", limits::NESTING);
        return false;
    }
    true
}

/// Reads the section `hosts`.
pub(super) fn read_hosts(reader: &mut Reader, item: &Item) -> BTreeMap<String, Arc<IpSet>> {
    let mut hosts = BTreeMap::new();
    for Member { at, name, item } in reader.definitions(item, "\"hosts\"") {
        let is_name =
            !name.is_empty() && !name.contains([':', '@', '*', '/']) && name.parse::<IpRange>().is_err();
        if !is_name {
            reader.invalid(*at, name, "a host name; it has none of : @ * / and is no address");
            continue;
        }
        let Some(text) = reader.string(item, "the address of a host") else {
            continue;
        };
        match text.parse::<IpRange>() {
            Ok(range) => {
                hosts.insert(name.clone(), Arc::new(range.into()));
            }
            Err(()) => reader.invalid(item.at, text, "an IP address or prefix"),
        }
    }
    hosts
}

/// An operation of an IP set.
struct Step<'a> {
    at: Position,
    adds: bool,
    operand: &'a str,
}

/// Reads the section `ipsets`: each a list of additions and removals, carried out in order.
pub(super) fn read_ip_sets(
    reader: &mut Reader,
    hosts: &BTreeMap<String, Arc<IpSet>>,
    item: &Item,
) -> BTreeMap<String, Arc<IpSet>> {
    let mut written: BTreeMap<&str, Vec<Step<'_>>> = BTreeMap::new();
    for Member { at, name, item } in reader.definitions(item, "\"ipsets\"") {
        if name.strip_prefix("ipset:").is_none_or(str::is_empty) {
            reader.invalid(*at, name, "the name of an IP set; it begins with \"ipset:\"");
            continue;
        }
        let step = |(at, text): (Position, &'_ str)| -> (Position, bool, usize) {
            let adds = !text.starts_with("remove ");
            let word = ["add ", "remove "].iter().find(|word| text.starts_with(**word));
            (at, adds, word.map_or(0, |word| word.len()))
        };
        let texts = reader.strings(item, "an IP set");
        let steps = texts.into_iter().map(|(at, text)| {
            let (at, adds, start) = step((at, text));
            Step {
                at,
                adds,
                operand: text[start..].trim(),
            }
        });
        written.insert(name, steps.collect());
    }
    let mut sets = IpSets {
        reader,
        hosts,
        written: &written,
        resolved: BTreeMap::new(),
        ranges: 0,
    };
    for (name, steps) in &written {
        if let Some(step) = steps.first() {
            sets.resolve(name, step.at, &mut Vec::new());
        }
    }
    let resolved = sets.resolved;
    written
        .keys()
        .map(|name| {
            (
                (*name).to_owned(),
                resolved.get(name).cloned().unwrap_or_default(),
            )
        })
        .collect()
}

/// IP sets while IP sets in IP sets are resolved.
struct IpSets<'a, 'r> {
    reader: &'r mut Reader,
    hosts: &'a BTreeMap<String, Arc<IpSet>>,
    written: &'a BTreeMap<&'a str, Vec<Step<'a>>>,
    resolved: BTreeMap<&'a str, Arc<IpSet>>,
    ranges: usize,
}

impl<'a> IpSets<'a, '_> {
    fn resolve(&mut self, name: &'a str, at: Position, path: &mut Vec<&'a str>) -> Arc<IpSet> {
        if let Some(set) = self.resolved.get(name) {
            return Arc::clone(set);
        }
        let Some((name, steps)) = self.written.get_key_value(name) else {
            let error = PolicyError::new(at, Problem::UndefinedIpSet(name.to_owned()));
            self.reader
                .report(error.suggest(name, self.written.keys().copied()));
            return Arc::default();
        };
        if !may_descend(self.reader, at, name, path) || self.ranges > limits::ADDRESS_RANGES {
            return Arc::default();
        }
        path.push(name);
        let mut set = IpSet::default();
        // Steps of one kind in a row are one operation.
        for run in steps.chunk_by(|a, b| a.adds == b.adds) {
            let operands: Vec<IpRange> = run
                .iter()
                .flat_map(|step| self.operand(step, path).ranges().to_vec())
                .collect();
            set = if run[0].adds {
                set.ranges().iter().copied().chain(operands).collect()
            } else {
                set.without(&operands.into_iter().collect())
            };
        }
        path.pop();
        self.ranges += set.ranges().len();
        if self.ranges > limits::ADDRESS_RANGES {
            self.reader
                .too_many(at, "address ranges in IP sets", limits::ADDRESS_RANGES);
        }
        let set = Arc::new(set);
        self.resolved.insert(name, Arc::clone(&set));
        set
    }

    fn operand(&mut self, step: &Step<'a>, path: &mut Vec<&'a str>) -> Arc<IpSet> {
        const OPERAND: &str = "an address, a prefix, a range, \"host:\" with a host, or an IP set; \"add\" or \"remove\" may stand before it";
        if step.operand.starts_with("ipset:") {
            return self.resolve(step.operand, step.at, path);
        }
        let host = step.operand.strip_prefix("host:").unwrap_or(step.operand);
        if let Some(set) = self.hosts.get(host) {
            return Arc::clone(set);
        }
        match step.operand.parse::<IpRange>() {
            Ok(range) => Arc::new(range.into()),
            Err(()) => {
                self.reader.invalid(step.at, step.operand, OPERAND);
                Arc::default()
            }
        }
    }
}

/// The names that the section `tagOwners` defines.
pub(super) fn read_tag_names(reader: &mut Reader, item: &Item) -> BTreeSet<Tag> {
    let mut tags = BTreeSet::new();
    for Member { at, name, .. } in reader.definitions(item, "\"tagOwners\"") {
        match name.parse() {
            Ok(_) if name == Tag::FUNNEL_GATEWAY => {
                reader.report(PolicyError::new(*at, Problem::ReservedTag));
            }
            Ok(tag) => {
                tags.insert(tag);
            }
            Err(_) => reader.invalid(*at, name, TAG),
        }
    }
    tags
}

/// Reads the section `tagOwners`.
pub(super) fn read_tag_owners(
    reader: &mut Reader,
    defined: &Definitions,
    item: &Item,
) -> BTreeMap<Tag, Vec<Selector>> {
    let mut owners = BTreeMap::new();
    for Member { name, item, .. } in reader.members(item, "\"tagOwners\"") {
        let list = selector::read_principals(reader, defined, item, "as the owner of a tag");
        if let Ok(tag) = name.parse() {
            owners.insert(tag, list);
        }
    }
    owners
}
