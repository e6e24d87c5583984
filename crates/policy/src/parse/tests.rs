//! The sections `tests` and `sshTests`.

use super::ports::{read_protocol, split_port};
use super::reader::{Fields, Reader};
use super::{Definitions, selector, ssh};
use crate::hujson::{Item, Member, Position, Value};
use crate::model::{Probe, Selector, SshTest, SshVerdict, Test};
use crate::posture::Attributes;
use crate::{AttributeValue, PolicyError, Problem};

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
    const FIELDS: &[&str] = &["src", "proto", "accept", "deny", "srcPostureAttrs"];
    let fields = reader.fields(item, WITHIN, FIELDS, &[])?;
    let (source, attributes) = read_source(reader, defined, item, &fields, WITHIN)?;
    let protocol = fields
        .get("proto")
        .and_then(|item| read_protocol(reader, item).first().copied());
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

/// The source of a test, and the attributes that it is tried with.
fn read_source(
    reader: &mut Reader,
    defined: &Definitions,
    item: &Item,
    fields: &Fields<'_>,
    within: &'static str,
) -> Option<(Selector, Attributes)> {
    const PLACE: &str = "as the source of a test; write a user, a group, a tag, a host or an address";
    let Some(src) = fields.get("src") else {
        reader.missing(item.at, "src", within);
        return None;
    };
    let text = reader.string(src, "\"src\"")?;
    let source = selector::read_source(reader, defined, src.at, text)?;
    if !is_concrete(&source) {
        let what = Problem::Misplaced {
            selector: text.to_owned(),
            place: PLACE,
        };
        reader.report(PolicyError::new(src.at, what));
    }
    let attributes = fields
        .get("srcPostureAttrs")
        .map(|item| read_attributes(reader, item))
        .unwrap_or_default();
    Some((source, attributes))
}

/// Whether a selector means something that can be tried.
fn is_concrete(selector: &Selector) -> bool {
    !matches!(selector, Selector::Any | Selector::Auto(_) | Selector::Domain(_))
}

/// A destination of a test: one thing, one port.
fn read_probe(reader: &mut Reader, defined: &Definitions, at: Position, text: &str) -> Option<Probe> {
    const FORM: &str = "a destination with one port, such as \"tag:web:443\"";
    let (name, port) = split_port(text);
    let Some(port) = port.and_then(|port| port.parse().ok()) else {
        reader.invalid(at, text, FORM);
        return None;
    };
    let target = selector::read_destination(reader, defined, at, name)?;
    if !is_concrete(&target) {
        reader.invalid(at, text, FORM);
        return None;
    }
    Some(Probe {
        at,
        text: text.to_owned(),
        target,
        port,
    })
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

/// Reads the section `sshTests`.
pub(super) fn read_ssh_tests(reader: &mut Reader, defined: &Definitions, item: &Item) -> Vec<SshTest> {
    reader
        .objects(item, "\"sshTests\"")
        .into_iter()
        .filter_map(|item| read_ssh_test(reader, defined, item))
        .collect()
}

fn read_ssh_test(reader: &mut Reader, defined: &Definitions, item: &Item) -> Option<SshTest> {
    const WITHIN: &str = "an entry of \"sshTests\"";
    const FIELDS: &[&str] = &["src", "dst", "accept", "check", "deny", "srcPostureAttrs"];
    let fields = reader.fields(item, WITHIN, FIELDS, &[])?;
    let (source, attributes) = read_source(reader, defined, item, &fields, WITHIN)?;
    let Some(dst) = fields.get("dst") else {
        reader.missing(item.at, "dst", WITHIN);
        return None;
    };
    let mut destinations = Vec::new();
    for (at, text) in reader.strings(dst, "the destinations of an SSH test") {
        let Some(selector) = selector::read_destination(reader, defined, at, text) else {
            continue;
        };
        if is_concrete(&selector) && !matches!(selector, Selector::Service(_)) {
            destinations.push(selector);
        } else {
            reader.invalid(
                at,
                text,
                "a destination of an SSH test; write a user, a tag, a host or an address",
            );
        }
    }
    let mut expected = Vec::new();
    for (name, verdict) in [
        ("accept", SshVerdict::Accept),
        ("check", SshVerdict::Check),
        ("deny", SshVerdict::Deny),
    ] {
        let users = fields.get(name).map(|item| ssh::read_user_names(reader, item));
        for (at, user) in users.unwrap_or_default() {
            expected.push((at, user.to_owned(), verdict));
        }
    }
    Some(SshTest {
        source,
        attributes,
        destinations,
        expected,
    })
}
