//! Whether an object has to be applied again.
//!
//! An object is applied if a field differs from what is wanted, or if the digest of what was applied last differs, which tells of fields that are no
//! longer wanted. Defaults that the API server fills in count as no difference.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tailwharf_kube_types::contract::annotation::APPLIED;

/// Characters of the digest in the annotation.
pub const APPLIED_HASH_LENGTH: usize = 16;

/// Adds the digest of the body to its annotations.
pub(crate) fn stamp(mut body: Value) -> Value {
    let digest = hex::encode(Sha256::digest(canonical(&body)));
    body["metadata"]["annotations"][APPLIED] = json!(digest[..APPLIED_HASH_LENGTH]);
    body
}

/// Whether applying the stamped body `wanted` would change `observed`.
pub(crate) fn differs(wanted: &Value, observed: &Value) -> bool {
    !contains(observed, wanted)
}

/// Whether `observed` has everything that is in `wanted`. Lists have to be of one length; absent and empty is the same.
fn contains(observed: &Value, wanted: &Value) -> bool {
    match (observed, wanted) {
        (Value::Object(observed), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| contains(observed.get(key).unwrap_or(&Value::Null), wanted)),
        (Value::Array(observed), Value::Array(wanted)) => {
            observed.len() == wanted.len()
                && observed
                    .iter()
                    .zip(wanted)
                    .all(|(observed, wanted)| contains(observed, wanted))
        }
        (Value::Null, wanted) => is_empty(wanted),
        (observed, wanted) => observed == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// JSON with sorted keys, whatever order the map type has.
fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<_> = fields.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (key, value) in keys {
                let _ = write!(out, "{}:", json!(key));
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = write!(out, "{value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_of_the_server_are_no_difference() {
        let wanted = json!({"spec": {"replicas": 2, "list": [{"a": 1}], "none": {}}});
        assert!(!differs(
            &wanted,
            &json!({"spec": {"replicas": 2, "list": [{"a": 1, "b": 2}], "more": true}})
        ));
        assert!(differs(
            &wanted,
            &json!({"spec": {"replicas": 3, "list": [{"a": 1}]}})
        ));
        assert!(differs(
            &wanted,
            &json!({"spec": {"replicas": 2, "list": [{"a": 1}, {"a": 2}]}})
        ));
        assert!(differs(&wanted, &json!({"spec": {"replicas": 2}})));
    }

    #[test]
    fn a_field_that_is_no_longer_wanted_is_a_difference() {
        let before = stamp(json!({"spec": {"a": 1, "b": 2}}));
        let after = stamp(json!({"spec": {"a": 1}}));
        assert!(differs(&after, &before));
        assert!(!differs(&before, &before));
    }

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let one: Value = serde_json::from_str(r#"{"a":1,"b":{"c":[1,"x"],"d":null}}"#).unwrap();
        let two: Value = serde_json::from_str(r#"{"b":{"d":null,"c":[1,"x"]},"a":1}"#).unwrap();
        assert_eq!(stamp(one), stamp(two));
    }
}
