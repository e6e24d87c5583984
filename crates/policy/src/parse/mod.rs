//! Text to checked policy.
//!
//! The definitions (`groups`, `hosts`, `tagOwners`, `postures`) are read first, then everything that refers to them, so that
//! the order of the sections does not matter. All problems are collected, up to a limit; a policy with one is no policy.

mod posture;
mod reader;
mod rules;
mod selector;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::hujson::{self, Item, Member};
use crate::ipset::IpRange;
use crate::model::{Approvers, NodeAttributes, Selector};
use crate::posture::Assertion;
use crate::{Policy, PolicyError, Problem, Tag};

use reader::Reader;

/// The fields of a policy.
const FIELDS: &[&str] = &[
    "groups",
    "hosts",
    "tagOwners",
    "acls",
    "grants",
    "postures",
    "defaultSrcPosture",
    "nodeAttrs",
    "autoApprovers",
    "tests",
    "ssh",
    "sshTests",
];

/// Fields that policies of other control servers may have and that have no meaning here.
const UNSUPPORTED: &[&str] = &[
    "derpMap",
    "disableIPv4",
    "ipsets",
    "OneCGNATRoute",
    "randomizeClientPort",
    "extraRecords",
    "workloads",
];

/// What rules may refer to.
#[derive(Default)]
struct Definitions {
    groups: BTreeMap<String, BTreeSet<String>>,
    hosts: BTreeMap<String, IpRange>,
    /// Names only: an owner may itself be a tag that is defined further down.
    tags: BTreeSet<Tag>,
    postures: BTreeMap<String, Arc<[Assertion]>>,
    default_posture: Vec<Arc<[Assertion]>>,
}

impl Policy {
    /// Reads and checks a policy.
    ///
    /// # Errors
    ///
    /// The problems found, at most 50, in the order of the text. If the text is not HuJSON, the first one.
    pub fn parse(text: &str) -> Result<Self, Vec<PolicyError>> {
        let document = hujson::parse(text).map_err(|error| vec![error])?;
        let mut reader = Reader::default();
        let policy = read_document(&mut reader, &document);
        reader.finish(policy)
    }
}

fn read_document(reader: &mut Reader, document: &Item) -> Policy {
    let Some(fields) = reader.fields(document, "the policy", FIELDS, UNSUPPORTED) else {
        return Policy::allow_all();
    };
    let mut defined = Definitions {
        groups: fields
            .get("groups")
            .map(|item| read_groups(reader, item))
            .unwrap_or_default(),
        hosts: fields
            .get("hosts")
            .map(|item| read_hosts(reader, item))
            .unwrap_or_default(),
        tags: fields
            .get("tagOwners")
            .map(|item| read_tag_names(reader, item))
            .unwrap_or_default(),
        postures: fields
            .get("postures")
            .map(|item| posture::read_postures(reader, item))
            .unwrap_or_default(),
        default_posture: Vec::new(),
    };
    if let Some(item) = fields.get("defaultSrcPosture") {
        defined.default_posture = rules::read_posture_names(reader, &defined, item);
    }
    let mut policy = Policy {
        tag_owners: fields
            .get("tagOwners")
            .map(|item| read_tag_owners(reader, &defined, item))
            .unwrap_or_default(),
        node_attributes: fields
            .get("nodeAttrs")
            .map(|item| read_node_attributes(reader, &defined, item))
            .unwrap_or_default(),
        approvers: fields
            .get("autoApprovers")
            .map(|item| read_approvers(reader, &defined, item))
            .unwrap_or_default(),
        tests: fields
            .get("tests")
            .map(|item| rules::read_tests(reader, &defined, item))
            .unwrap_or_default(),
        ..Policy::allow_all()
    };
    let (acls, grants) = (fields.get("acls"), fields.get("grants"));
    if acls.is_some() || grants.is_some() {
        let mut list = acls
            .map(|item| rules::read_acls(reader, &defined, item))
            .unwrap_or_default();
        list.extend(
            grants
                .map(|item| rules::read_grants(reader, &defined, item))
                .unwrap_or_default(),
        );
        policy.rules = Some(list);
    }
    for name in ["ssh", "sshTests"] {
        if let Some(item) = fields.get(name) {
            let entries = reader.objects(item, "an SSH section");
            if !entries.is_empty() {
                policy
                    .warnings
                    .push(PolicyError::new(item.at, Problem::Rule(SSH_NOT_ENFORCED)));
            }
        }
    }
    policy.groups = defined.groups;
    policy
}

const SSH_NOT_ENFORCED: &str = "SSH rules have no effect: this server gives no node an SSH policy";

fn read_groups(reader: &mut Reader, item: &Item) -> BTreeMap<String, BTreeSet<String>> {
    let mut groups = BTreeMap::new();
    for Member { at, name, item } in reader.members(item, "\"groups\"") {
        if name.strip_prefix("group:").is_none_or(str::is_empty) {
            reader.invalid(*at, name, "the name of a group; it begins with \"group:\"");
            continue;
        }
        let mut members = BTreeSet::new();
        for (at, member) in reader.strings(item, "a group") {
            if member.contains('@') && !member.starts_with("group:") {
                members.insert(member.to_ascii_lowercase());
            } else {
                reader.invalid(
                    at,
                    member,
                    "the login name of a user, such as \"alice@example.com\"",
                );
            }
        }
        groups.insert(name.clone(), members);
    }
    groups
}

fn read_hosts(reader: &mut Reader, item: &Item) -> BTreeMap<String, IpRange> {
    let mut hosts = BTreeMap::new();
    for Member { at, name, item } in reader.members(item, "\"hosts\"") {
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
                hosts.insert(name.clone(), range);
            }
            Err(()) => reader.invalid(item.at, text, "an IP address or prefix"),
        }
    }
    hosts
}

fn read_tag_names(reader: &mut Reader, item: &Item) -> BTreeSet<Tag> {
    let mut tags = BTreeSet::new();
    for Member { at, name, .. } in reader.members(item, "\"tagOwners\"") {
        match name.parse() {
            Ok(tag) => {
                tags.insert(tag);
            }
            Err(_) => reader.invalid(*at, name, TAG),
        }
    }
    tags
}

/// What a tag looks like, for messages.
const TAG: &str = "a tag; write \"tag:\", then a letter, then letters, digits or dashes";

fn read_tag_owners(reader: &mut Reader, defined: &Definitions, item: &Item) -> BTreeMap<Tag, Vec<Selector>> {
    let mut owners = BTreeMap::new();
    for Member { name, item, .. } in reader.members(item, "\"tagOwners\"") {
        let list = reader
            .strings(item, "the owners of a tag")
            .into_iter()
            .filter_map(|(at, text)| {
                selector::read_principal(reader, defined, at, text, "as the owner of a tag")
            })
            .collect();
        if let Ok(tag) = name.parse() {
            owners.insert(tag, list);
        }
    }
    owners
}

fn read_approvers(reader: &mut Reader, defined: &Definitions, item: &Item) -> Approvers {
    const WHERE: &str = "as an auto-approver";
    let mut approvers = Approvers::default();
    let Some(fields) = reader.fields(item, "\"autoApprovers\"", &["routes", "exitNode"], &["services"])
    else {
        return approvers;
    };
    let principals = |reader: &mut Reader, item: &Item| -> Vec<Selector> {
        let texts = reader.strings(item, "auto-approvers");
        texts
            .into_iter()
            .filter_map(|(at, text)| selector::read_principal(reader, defined, at, text, WHERE))
            .collect()
    };
    if let Some(item) = fields.get("exitNode") {
        approvers.exit_node = principals(reader, item);
    }
    if let Some(routes) = fields.get("routes") {
        for Member { at, name, item } in reader.members(routes, "\"autoApprovers\".\"routes\"") {
            let list = principals(reader, item);
            match name.parse::<IpNet>() {
                Ok(prefix) => approvers.routes.push((prefix.trunc(), list)),
                Err(_) => reader.invalid(*at, name, "a prefix, such as \"10.0.0.0/8\""),
            }
        }
    }
    approvers
}

fn read_node_attributes(reader: &mut Reader, defined: &Definitions, item: &Item) -> Vec<NodeAttributes> {
    const WITHIN: &str = "an entry of \"nodeAttrs\"";
    let mut entries = Vec::new();
    for item in reader.objects(item, "\"nodeAttrs\"") {
        let Some(fields) = reader.fields(item, WITHIN, &["target", "attr", "app"], &["ipPool"]) else {
            continue;
        };
        let mut entry = NodeAttributes {
            targets: Vec::new(),
            attributes: BTreeMap::new(),
        };
        match fields.get("target") {
            Some(target) => entry.targets = selector::read_targets(reader, defined, target),
            None => reader.missing(item.at, "target", WITHIN),
        }
        if fields.get("attr").is_none() && fields.get("app").is_none() {
            reader.missing(item.at, "attr", WITHIN);
        }
        if let Some(list) = fields.get("attr") {
            let names = reader.strings(list, "node attributes");
            entry
                .attributes
                .extend(names.into_iter().map(|(_, name)| (name.to_owned(), Vec::new())));
        }
        if let Some(app) = fields.get("app") {
            entry.attributes.extend(rules::read_capabilities(reader, app));
        }
        entries.push(entry);
    }
    entries
}
