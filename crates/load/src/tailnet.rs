//! A tailnet of the size of a company: 50 groups, 100 tags.

use std::fmt::Write;

use anyhow::Result;
use tailwharf_testkit::Tailnet;

pub(crate) const GROUPS: usize = 50;
pub(crate) const TAGS: usize = 100;
/// Groups that each user is in.
const MEMBERSHIPS: usize = 4;
/// Nodes of people and nodes of tags take turns.
const KINDS: usize = 2;

/// The policy. A `marker` makes one that differs for every node: in all ports, and in an attribute of this name.
pub(crate) fn policy(rules: usize, marker: Option<&str>) -> String {
    let mut text = String::from("{\n\"groups\": {\n");
    for group in 0..GROUPS {
        let members: Vec<String> = (0..MEMBERSHIPS)
            .map(|step| login((group + step) % GROUPS))
            .collect();
        _ = writeln!(text, "  \"group:g{group}\": {members:?},");
    }
    text.push_str("},\n\"tagOwners\": {\n");
    for tag in 0..TAGS {
        _ = writeln!(text, "  \"tag:t{tag}\": [\"autogroup:admin\"],");
    }
    text.push_str("},\n\"grants\": [\n");
    for rule in 0..rules {
        _ = writeln!(
            text,
            "  {{\"src\": [\"group:g{}\"], \"dst\": [\"tag:t{}\"], \"ip\": [\"tcp:{}\"]}},",
            rule % GROUPS,
            // Each group has other tags with each of its rules.
            (rule * 7 + rule / GROUPS * 13) % TAGS,
            if marker.is_some() { 20_000 } else { 1000 } + rule
        );
    }
    text.push_str("],\n");
    if let Some(marker) = marker {
        _ = writeln!(
            text,
            "\"nodeAttrs\": [{{\"target\": [\"*\"], \"attr\": [\"{marker}\"]}}],"
        );
    }
    text.push_str("}\n");
    text
}

pub(crate) fn login(user: usize) -> String {
    format!("user{user}@example.com")
}

/// Makes the users, and a key for each of `count` nodes.
///
/// # Errors
/// The words of the administrator's commands.
pub(crate) fn keys(tailnet: &Tailnet, count: usize) -> Result<Vec<String>> {
    let mut owned = Vec::with_capacity(GROUPS);
    for user in 0..GROUPS {
        let role = if user == 0 { "owner" } else { "member" };
        owned.push(tailnet.user_key(&login(user), role)?);
    }
    let mut tagged = Vec::with_capacity(TAGS);
    for tag in 0..TAGS {
        tagged.push(tailnet.key(&["--tags", &format!("tag:t{tag}"), "--reusable"])?);
    }
    let key = |node: usize| {
        let (kind, index) = (node % KINDS, node / KINDS);
        let keys = if kind == 0 { &owned } else { &tagged };
        keys[index % keys.len()].clone()
    };
    Ok((0..count).map(key).collect())
}
