//! Strategic merge patches of a StatefulSet.

use serde_json::{Map, Value};

/// Merges `patch` into `target`: objects field by field, lists whose items have a key item by item, everything else as a whole. `null` removes a
/// field, and `$patch: delete` or `$patch: replace` does so with an object.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    if directive(patch) == Some("replace") {
        target.clear();
    }
    for (name, value) in fields.iter().filter(|(name, _)| *name != DIRECTIVE) {
        match (value, merge_key(name)) {
            (Value::Null, _) => {
                target.remove(name);
            }
            (value, _) if directive(value) == Some("delete") => {
                target.remove(name);
            }
            (Value::Array(items), Some(key)) => {
                let list = target.entry(name.clone()).or_insert(Value::Null);
                merge_list(list, items, key);
            }
            (value, _) => merge(target.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}

fn merge_list(target: &mut Value, items: &[Value], key: &str) {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(target) = target else { return };
    for item in items {
        let position = target.iter().position(|known| known[key] == item[key]);
        match (position, directive(item)) {
            (Some(position), Some("delete")) => {
                target.remove(position);
            }
            (None, Some("delete")) => {}
            (Some(position), _) => merge(&mut target[position], item),
            (None, _) => {
                let mut new = Value::Null;
                merge(&mut new, item);
                target.push(new);
            }
        }
    }
}

const DIRECTIVE: &str = "$patch";

fn directive(value: &Value) -> Option<&str> {
    value.get(DIRECTIVE)?.as_str()
}

/// The field that tells items of a list apart; `None` for lists that are taken as a whole.
pub(super) fn merge_key(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env" | "imagePullSecrets" => {
            Some("name")
        }
        "ports" => Some("containerPort"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "hostAliases" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_with_keys_are_merged_and_others_replaced() {
        let mut pod = json!({
            "containers": [{"name": "proxy", "args": ["proxy"], "env": [{"name": "A", "value": "1"}]}],
            "tolerations": [{"key": "a"}],
            "hostNetwork": true,
        });
        let patch = json!({
            "containers": [
                {"name": "proxy", "args": ["other"], "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]},
                {"name": "more", "image": "x"},
            ],
            "tolerations": [{"key": "b"}],
            "hostNetwork": null,
        });
        merge(&mut pod, &patch);
        let wanted = json!({
            "containers": [
                {"name": "proxy", "args": ["other"], "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]},
                {"name": "more", "image": "x"},
            ],
            "tolerations": [{"key": "b"}],
        });
        assert_eq!(pod, wanted);
    }

    #[test]
    fn directives_delete_and_replace() {
        let mut pod = json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "1"}, "dnsConfig": {"y": 1}});
        let patch = json!({
            "containers": [{"name": "a", "$patch": "delete"}, {"name": "c", "$patch": "delete"}],
            "nodeSelector": {"$patch": "replace", "z": "2"},
            "dnsConfig": {"$patch": "delete"},
        });
        merge(&mut pod, &patch);
        assert_eq!(
            pod,
            json!({"containers": [{"name": "b"}], "nodeSelector": {"z": "2"}})
        );
    }
}
