//! Schemas of values that custom resources take over from Kubernetes, and the definitions as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A custom resource definition as it is installed.
///
/// # Errors
/// When the type makes none, which a test of this crate rules out.
pub fn definition<K: CustomResourceExt>() -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut crd = serde_json::to_value(K::crd())?;
    walk(&mut crd, &mut |schema| {
        // Nobody has a reason to write null.
        schema.remove("nullable");
    });
    serde_json::from_value(crd)
}

/// The schema of a Kubernetes type without its descriptions: people know it from pods, and it is long.
pub(crate) fn core<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator).to_value();
    walk(&mut schema, &mut |fields| {
        if fields.get("description").is_some_and(Value::is_string) {
            fields.remove("description");
        }
    });
    walk(&mut schema, &mut list_types);
    Schema::try_from(schema).unwrap_or_default()
}

/// What the API server has to know to merge lists and references of Kubernetes types.
fn list_types(fields: &mut serde_json::Map<String, Value>) {
    let atomic =
        fields.get("type") == Some(&json!("array")) && !fields.contains_key("x-kubernetes-list-type");
    if atomic {
        fields.insert("x-kubernetes-list-type".to_owned(), json!("atomic"));
    }
}

/// Networks in CIDR notation.
pub(crate) fn cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "items": {"type": "string", "format": "cidr"},
    })
}

/// A list of conditions, one of each type.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    type Conditions = Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>;
    let mut schema = core::<Conditions>(generator);
    schema.insert("x-kubernetes-list-type".to_owned(), json!("map"));
    schema.insert("x-kubernetes-list-map-keys".to_owned(), json!(["type"]));
    schema
}

/// Calls `change` for every object in `value`, the outer ones first.
fn walk(value: &mut Value, change: &mut impl FnMut(&mut serde_json::Map<String, Value>)) {
    match value {
        Value::Object(fields) => {
            change(fields);
            for field in fields.values_mut() {
                walk(field, change);
            }
        }
        Value::Array(items) => {
            for item in items {
                walk(item, change);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
