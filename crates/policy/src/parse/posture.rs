//! Postures: `attribute operator value`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reader::Reader;
use crate::hujson::{Item, Member, Position};
use crate::posture::{Assertion, NODE_ATTRIBUTES, Posture, Test};
use crate::{AttributeValue, PolicyError, Problem};

/// Reads the section `postures`.
pub(super) fn read_postures(reader: &mut Reader, item: &Item) -> BTreeMap<String, Arc<Posture>> {
    let mut postures = BTreeMap::new();
    for Member { at, name, item } in reader.definitions(item, "\"postures\"") {
        if name.strip_prefix("posture:").is_none_or(str::is_empty) {
            reader.invalid(*at, name, "the name of a posture; it begins with \"posture:\"");
            continue;
        }
        let mut assertions = Vec::new();
        let texts = reader.strings(item, "a posture");
        if texts.is_empty() {
            reader.invalid(*at, name, "a posture with at least one assertion");
        }
        for (at, text) in texts {
            match parse_assertion(text) {
                Ok(assertion) => {
                    check_attribute(reader, at, &assertion.attribute);
                    assertions.push(assertion);
                }
                Err(expected) => reader.invalid(at, text, expected),
            }
        }
        let posture = Posture {
            name: name.clone(),
            assertions,
        };
        postures.insert(name.clone(), Arc::new(posture));
    }
    postures
}

/// Reports an attribute of `node:` that no node has. Those of other namespaces are set from outside.
fn check_attribute(reader: &mut Reader, at: Position, name: &str) {
    if name.starts_with("node:") && !NODE_ATTRIBUTES.contains(&name) {
        let error = PolicyError::new(at, Problem::UnknownAttribute(name.to_owned()));
        reader.report(error.suggest(name, NODE_ATTRIBUTES.iter().copied()));
    }
}

const FORM: &str = "an assertion; write an attribute such as node:os, then ==, !=, <, <=, >, >=, IN, NOT IN with a value, \
                    or IS SET, NOT SET";
const VALUE: &str = "an assertion with a value; write 'text', a number, true or false";
const LIST: &str = "an assertion with a list; write it like ['macos', 'linux']";
const NAMESPACE: &str = "an assertion on an attribute; attributes look like node:os or custom:tier";

fn parse_assertion(text: &str) -> Result<Assertion, &'static str> {
    let text = text.trim();
    let end = text
        .find(|c: char| c.is_whitespace() || "=!<>".contains(c))
        .ok_or(FORM)?;
    let (attribute, rest) = text.split_at(end);
    let is_name = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    if !attribute
        .split_once(':')
        .is_some_and(|(space, name)| is_name(space) && is_name(name))
    {
        return Err(NAMESPACE);
    }
    let test = parse_test(rest.trim_start())?;
    Ok(Assertion {
        text: text.to_owned(),
        attribute: attribute.to_owned(),
        test,
    })
}

/// Makes the test of an operator out of its value.
type Comparison = fn(AttributeValue) -> Test;

fn parse_test(text: &str) -> Result<Test, &'static str> {
    // Longer operators first, so that "<" does not take the beginning of "<=".
    let comparisons: [(&str, Comparison); 6] = [
        ("==", Test::Equal),
        ("!=", Test::NotEqual),
        ("<=", Test::LessOrEqual),
        (">=", Test::GreaterOrEqual),
        ("<", Test::Less),
        (">", Test::Greater),
    ];
    for (operator, test) in comparisons {
        if let Some(value) = text.strip_prefix(operator) {
            return parse_value(value.trim()).map(test).ok_or(VALUE);
        }
    }
    let (words, list) = text.split_at(text.find('[').unwrap_or(text.len()));
    let words: Vec<String> = words.split_whitespace().map(str::to_ascii_uppercase).collect();
    match (
        words.iter().map(String::as_str).collect::<Vec<_>>().as_slice(),
        list.is_empty(),
    ) {
        (["IN"], _) => parse_list(list).map(Test::In).ok_or(LIST),
        (["NOT", "IN"], _) => parse_list(list).map(Test::NotIn).ok_or(LIST),
        (["IS", "SET"], true) => Ok(Test::IsSet),
        (["NOT", "SET"], true) => Ok(Test::NotSet),
        _ => Err(FORM),
    }
}

fn parse_list(text: &str) -> Option<Vec<AttributeValue>> {
    let mut rest = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim();
    let mut values = Vec::new();
    while !rest.is_empty() {
        let (value, after) = split_value(rest)?;
        values.push(value);
        rest = match after.trim_start() {
            "" => "",
            after => after.strip_prefix(',')?.trim_start(),
        };
    }
    (!values.is_empty()).then_some(values)
}

/// A whole text that is one value.
fn parse_value(text: &str) -> Option<AttributeValue> {
    split_value(text)
        .filter(|(_, rest)| rest.is_empty())
        .map(|(value, _)| value)
}

/// The value at the start of the text, and what follows it.
fn split_value(text: &str) -> Option<(AttributeValue, &str)> {
    if let Some(quoted) = text.strip_prefix('\'') {
        let (value, rest) = quoted.split_once('\'')?;
        return Some((AttributeValue::Text(value.to_owned()), rest));
    }
    let (word, rest) = text.split_at(text.find([',', ']', ' ']).unwrap_or(text.len()));
    let value = match word {
        "true" => AttributeValue::Bool(true),
        "false" => AttributeValue::Bool(false),
        number => AttributeValue::Number(number.parse().ok().filter(|number: &f64| number.is_finite())?),
    };
    Some((value, rest))
}
