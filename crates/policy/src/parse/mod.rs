//! Text to checked policy.
//!
//! The definitions (`groups`, `hosts`, `ipsets`, `tagOwners`, `postures`) are read first, then everything that refers to
//! them, so that the order of the sections does not matter. All problems are collected, up to a limit; a policy with one is no
//! policy.

mod attributes;
mod definitions;
mod ports;
mod posture;
mod reader;
mod rules;
mod selector;
mod ssh;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::hujson::{self, Item, Position};
use crate::ipset::IpSet;
use crate::limits;
use crate::model::{Postures, Selector};
use crate::posture::Posture;
use crate::{Policy, PolicyError, Tag};

use reader::{Fields, Reader};

/// The fields of a policy.
const FIELDS: &[&str] = &[
    "groups",
    "hosts",
    "ipsets",
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
    "derpMap",
    "randomizeClientPort",
    "disableIPv4",
    "OneCGNATRoute",
];

/// Fields that policies of other control servers may have and that have no meaning here.
const UNSUPPORTED: &[&str] = &["extraRecords", "workloads"];

/// What a tag looks like, for messages.
const TAG: &str = "a tag; write \"tag:\", then a letter, then letters, digits or dashes";

/// What rules may refer to.
#[derive(Default)]
struct Definitions {
    groups: BTreeMap<String, BTreeSet<String>>,
    hosts: BTreeMap<String, Arc<IpSet>>,
    ip_sets: BTreeMap<String, Arc<IpSet>>,
    /// Names only: an owner may itself be a tag that is defined further down.
    tags: BTreeSet<Tag>,
    postures: BTreeMap<String, Arc<Posture>>,
    default_posture: Postures,
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
        return Policy::default();
    };
    let defined = read_definitions(reader, &fields);
    let mut policy = Policy {
        tag_owners: section(&fields, "tagOwners", |item| {
            definitions::read_tag_owners(reader, &defined, item)
        }),
        ssh: section(&fields, "ssh", |item| ssh::read(reader, &defined, item)),
        node_attributes: section(&fields, "nodeAttrs", |item| {
            attributes::read_node_attributes(reader, &defined, item)
        }),
        approvers: section(&fields, "autoApprovers", |item| {
            attributes::read_approvers(reader, &defined, item)
        }),
        tests: section(&fields, "tests", |item| tests::read_tests(reader, &defined, item)),
        ssh_tests: section(&fields, "sshTests", |item| {
            tests::read_ssh_tests(reader, &defined, item)
        }),
        derp_map: section(&fields, "derpMap", |item| attributes::read_derp_map(reader, item)),
        settings: attributes::read_settings(reader, &fields),
        ..Policy::default()
    };
    let (acls, grants) = (fields.get("acls"), fields.get("grants"));
    if acls.is_some() || grants.is_some() {
        let mut list = section(&fields, "acls", |item| rules::read_acls(reader, &defined, item));
        list.extend(section(&fields, "grants", |item| {
            rules::read_grants(reader, &defined, item)
        }));
        policy.rules = Some(list);
    }
    policy.groups = defined.groups;
    check_size(reader, document.at, &policy);
    policy
}

/// What a section holds, if it is there.
fn section<T: Default>(fields: &Fields<'_>, name: &str, read: impl FnOnce(&Item) -> T) -> T {
    fields.get(name).map(read).unwrap_or_default()
}

fn read_definitions(reader: &mut Reader, fields: &Fields<'_>) -> Definitions {
    let mut defined = Definitions {
        groups: section(fields, "groups", |item| definitions::read_groups(reader, item)),
        hosts: section(fields, "hosts", |item| definitions::read_hosts(reader, item)),
        tags: section(fields, "tagOwners", |item| {
            definitions::read_tag_names(reader, item)
        }),
        postures: section(fields, "postures", |item| posture::read_postures(reader, item)),
        ..Definitions::default()
    };
    defined.ip_sets = section(fields, "ipsets", |item| {
        definitions::read_ip_sets(reader, &defined.hosts, item)
    });
    defined.default_posture = section(fields, "defaultSrcPosture", |item| {
        rules::read_posture_names(reader, &defined, item)
    });
    defined
}

/// Reports what would make a policy too large to apply.
fn check_size(reader: &mut Reader, at: Position, policy: &Policy) {
    let rules = policy.rules.as_deref().unwrap_or_default();
    if rules.len() > limits::RULES || policy.ssh.len() > limits::RULES {
        reader.too_many(at, "rules", limits::RULES);
    }
    let selectors = rules
        .iter()
        .flat_map(|rule| rule.sources.iter().chain(rule.destinations()));
    let ranges: usize = selectors
        .map(|selector| match selector {
            Selector::Addresses(set) => set.ranges().len(),
            _ => 0,
        })
        .sum();
    if ranges > limits::RULE_RANGES {
        reader.too_many(at, "address ranges in rules", limits::RULE_RANGES);
    }
    if policy.test_steps() > limits::TEST_STEPS {
        reader.too_many(
            at,
            "steps for the tests to take (sources × destinations × rules)",
            limits::TEST_STEPS,
        );
    }
}
