//! Postures: assertions over the attributes of a node.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tailwharf_wire::tailcfg::Hostinfo;

/// The attributes of a node by name, such as `node:os` or `custom:tier`.
pub type Attributes = BTreeMap<String, AttributeValue>;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AttributeValue {
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A text. Order comparisons read it as a version: `1.9` is less than `1.60`.
    Text(String),
}

impl AttributeValue {
    /// The order of two values of one kind.
    fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => a.partial_cmp(b),
            (Self::Text(a), Self::Text(b)) => Some(compare_versions(a, b)),
            _ => None,
        }
    }
}

/// Compares dotted versions part by part: numbers as numbers, the rest as text, missing parts as 0.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let parts =
        |text: &str| -> Vec<String> { text.split(['.', '-', '+', '_', ' ']).map(str::to_owned).collect() };
    let (a, b) = (parts(a), parts(b));
    for i in 0..a.len().max(b.len()) {
        let (x, y) = (
            a.get(i).map_or("0", String::as_str),
            b.get(i).map_or("0", String::as_str),
        );
        let order = match (x.parse::<u64>(), y.parse::<u64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            _ => x.cmp(y),
        };
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// A named list of assertions, all of which must hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Posture {
    /// With its prefix `posture:`.
    pub(crate) name: String,
    pub(crate) assertions: Vec<Assertion>,
}

impl Posture {
    /// Whether the attributes satisfy the posture.
    pub(crate) fn holds(&self, attributes: &Attributes) -> bool {
        self.assertions
            .iter()
            .all(|assertion| assertion.holds(attributes))
    }
}

/// One line of a posture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assertion {
    /// As it is written.
    pub(crate) text: String,
    pub(crate) attribute: String,
    pub(crate) test: Test,
}

/// What must hold for an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Test {
    Equal(AttributeValue),
    NotEqual(AttributeValue),
    Less(AttributeValue),
    LessOrEqual(AttributeValue),
    Greater(AttributeValue),
    GreaterOrEqual(AttributeValue),
    In(Vec<AttributeValue>),
    NotIn(Vec<AttributeValue>),
    IsSet,
    NotSet,
}

impl Assertion {
    /// Whether the attributes satisfy the assertion. An attribute that is not set satisfies `NOT SET` alone.
    pub(crate) fn holds(&self, attributes: &Attributes) -> bool {
        let Some(value) = attributes.get(&self.attribute) else {
            return self.test == Test::NotSet;
        };
        match &self.test {
            Test::Equal(wanted) => value == wanted,
            Test::NotEqual(unwanted) => value != unwanted,
            Test::Less(limit) => value.order(limit).is_some_and(Ordering::is_lt),
            Test::LessOrEqual(limit) => value.order(limit).is_some_and(Ordering::is_le),
            Test::Greater(limit) => value.order(limit).is_some_and(Ordering::is_gt),
            Test::GreaterOrEqual(limit) => value.order(limit).is_some_and(Ordering::is_ge),
            Test::In(list) => list.contains(value),
            Test::NotIn(list) => !list.contains(value),
            Test::IsSet => true,
            Test::NotSet => false,
        }
    }
}

/// The attributes that nodes tell about themselves.
pub(crate) const NODE_ATTRIBUTES: &[&str] = &[
    "node:os",
    "node:osVersion",
    "node:tsAutoUpdate",
    "node:tsReleaseTrack",
    "node:tsStateEncrypted",
    "node:tsVersion",
];

/// The attributes that a node tells about itself: `node:os`, `node:osVersion`, `node:tsVersion`, `node:tsReleaseTrack`,
/// `node:tsAutoUpdate` and `node:tsStateEncrypted`. What it does not tell is not set.
pub fn host_attributes(host: &Hostinfo) -> Attributes {
    let mut attributes = Attributes::new();
    let mut set = |name: &str, text: &str| {
        if !text.is_empty() {
            attributes.insert(name.to_owned(), AttributeValue::Text(text.to_owned()));
        }
    };
    set("node:os", &host.os.to_ascii_lowercase());
    set("node:osVersion", &host.os_version);
    let version = host.ipn_version.split('-').next().unwrap_or_default();
    set("node:tsVersion", version);
    set("node:tsReleaseTrack", release_track(version));
    attributes.insert(
        "node:tsAutoUpdate".to_owned(),
        AttributeValue::Bool(host.allows_update),
    );
    if let Some(encrypted) = host.state_encrypted {
        attributes.insert(
            "node:tsStateEncrypted".to_owned(),
            AttributeValue::Bool(encrypted),
        );
    }
    attributes
}

/// Releases with an even second number are stable, the others are not.
fn release_track(version: &str) -> &'static str {
    match version
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse::<u32>().ok())
    {
        Some(minor) if minor % 2 == 0 => "stable",
        Some(_) => "unstable",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::{compare_versions, release_track};

    #[test]
    fn versions_compare_by_number() {
        for (a, b, order) in [
            ("1.9", "1.60", Ordering::Less),
            ("1.60", "1.60.0", Ordering::Equal),
            ("1.102.5", "1.60", Ordering::Greater),
            ("14.1-rc1", "14.1-rc2", Ordering::Less),
        ] {
            assert_eq!(compare_versions(a, b), order, "{a} and {b}");
        }
    }

    #[test]
    fn the_second_number_tells_the_track() {
        assert_eq!(release_track("1.102.5"), "stable");
        assert_eq!(release_track("1.103.0"), "unstable");
        assert_eq!(release_track("tailwharf"), "");
    }
}
