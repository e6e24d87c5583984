//! Our custom resource definitions beside those of the official operator: whatever manifest is good for those is good for ours.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::workspace;

fn main() -> ExitCode {
    tailwharf_e2e::run(
        &[Need::OfficialOperator],
        || Ok(()),
        &[
            ("connectors_are_those_of_the_contract", |()| {
                compare("connectors", &[])
            }),
            ("proxy_classes_are_those_of_the_contract", |()| {
                compare("proxyclasses", &[".spec.statefulSet.patch"])
            }),
        ],
    )
}

/// Compares a definition with the official one. `ours` are fields that only ours has.
fn compare(plural: &str, ours: &[&str]) -> Result<()> {
    let read = |path: std::path::PathBuf| -> Result<Value> {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_saphyr::from_str(&text)?)
    };
    let official = read(workspace::official_crds().join(format!("tailscale.com_{plural}.yaml")))?;
    let own = read(
        workspace::root()
            .join("deploy/crds")
            .join(format!("{plural}.tailscale.com.yaml")),
    )?;

    for field in [
        "/spec/group",
        "/spec/names/kind",
        "/spec/names/plural",
        "/spec/names/shortNames",
        "/spec/scope",
    ] {
        let (theirs, ours) = (official.pointer(field), own.pointer(field));
        let is_none = |value: Option<&Value>| value.is_none_or(|value| value == &Value::Array(Vec::new()));
        ensure!(
            theirs == ours || is_none(theirs) && is_none(ours),
            "{field}: {theirs:?} and {ours:?}"
        );
    }
    let version = |crd: &Value| crd["spec"]["versions"][0].clone();
    let (theirs, own) = (version(&official), version(&own));
    for field in ["name", "served", "storage", "subresources"] {
        ensure!(
            theirs[field] == own[field],
            "{field}: {} and {}",
            theirs[field],
            own[field]
        );
    }
    let columns = |version: &Value| -> BTreeSet<String> {
        let list = version["additionalPrinterColumns"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        list.iter()
            .map(|column| format!("{} {} {}", column["name"], column["jsonPath"], column["type"]))
            .collect()
    };
    ensure!(
        columns(&theirs) == columns(&own),
        "{:?} and {:?}",
        columns(&theirs),
        columns(&own)
    );

    let (theirs, own) = (fields(&theirs), fields(&own));
    let mut different = Vec::new();
    for (path, field) in &theirs {
        match own.get(path) {
            None => different.push(format!("{path} is missing")),
            Some(own) if own != field => different.push(format!("{path}: {field:?} there, {own:?} here")),
            Some(_) => {}
        }
    }
    let more = own
        .keys()
        .filter(|path| !theirs.contains_key(*path) && !ours.contains(&path.as_str()));
    different.extend(more.map(|path| format!("{path} is not in the contract")));
    ensure!(different.is_empty(), "{}", different.join("\n"));
    ensure!(theirs.len() > 20, "only {} fields were compared", theirs.len());
    Ok(())
}

/// What a schema says of a field that decides which manifests are good.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    type_: String,
    required: BTreeSet<String>,
    rest: Vec<String>,
}

fn fields(version: &Value) -> BTreeMap<String, Field> {
    let mut fields = BTreeMap::new();
    collect(&version["schema"]["openAPIV3Schema"], "", &mut fields);
    for name in [".apiVersion", ".kind", ".metadata"] {
        fields.remove(name);
    }
    fields
}

fn collect(schema: &Value, path: &str, fields: &mut BTreeMap<String, Field>) {
    let words = |value: &Value| -> BTreeSet<String> {
        let list = value.as_array().cloned().unwrap_or_default();
        list.iter().map(ToString::to_string).collect()
    };
    let in_conditions = path.contains(".conditions");
    let mut rest = Vec::new();
    for key in [
        "enum",
        "pattern",
        "minItems",
        "minimum",
        "maxLength",
        "minLength",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-preserve-unknown-fields",
    ] {
        let ignored = in_conditions && key != "x-kubernetes-list-map-keys"
            // A label selector or a set of claims: the keys are there to merge by, not to refuse.
            || key == "x-kubernetes-list-map-keys" && path.ends_with(".claims")
            // Ours is one shorter than what the pattern allows already.
            || key == "maxLength" && path.ends_with(".hostnamePrefix");
        let value = &schema[key];
        if !value.is_null() && !ignored {
            let text = match (key, value.as_f64()) {
                ("enum", _) => format!("{:?}", words(value)),
                (_, Some(number)) => number.to_string(),
                (_, None) => value.to_string(),
            };
            rest.push(format!("{key}={text}"));
        }
    }
    fields.insert(
        path.to_owned(),
        Field {
            type_: schema["type"].as_str().unwrap_or_default().to_owned(),
            required: words(&schema["required"]),
            rest,
        },
    );
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        collect(inner, &format!("{path}.{name}"), fields);
    }
    if !schema["items"].is_null() {
        collect(&schema["items"], &format!("{path}[]"), fields);
    }
    if schema["additionalProperties"].is_object() {
        collect(&schema["additionalProperties"], &format!("{path}{{}}"), fields);
    }
}
