//! What is wrong with a ProxyClass.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::{Value, json};
use tailwharf_kube_types::ProxyClass;
use tailwharf_kube_types::proxy_class::{PortRange, ProxyClassSpec, StatefulSetClass};
use thiserror::Error;

use super::Snapshot;
use crate::pool;

/// Longest name after the prefix of a label or annotation.
const MAX_NAME: usize = 63;
/// Longest prefix.
const MAX_PREFIX: usize = 253;
/// Most bytes of a patch.
const MAX_PATCH: usize = 64 << 10;

/// What the user has to change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// A key of labels or annotations.
    #[error(
        "{field}: {key:?} is no name of a label or annotation: write NAME or PREFIX/NAME, with letters, digits, '-', '_' and '.'"
    )]
    Key {
        /// Where.
        field: Field,
        /// What was given.
        key: String,
    },
    /// A value of a label.
    #[error("{field}: {value:?} is no value of a label: use at most 63 letters, digits, '-', '_' and '.'")]
    LabelValue {
        /// Where.
        field: Field,
        /// What was given.
        value: String,
    },
    /// The name of an image.
    #[error("{field}: {image:?} is no name of an image: write it like registry.example.com/tailwharf:1.0")]
    Image {
        /// Where.
        field: Field,
        /// What was given.
        image: String,
    },
    /// Debugging is not for that container.
    #[error("tailscaleInitContainer.debug cannot be used: remove it, and set tailscaleContainer.debug")]
    InitDebug,
    /// A port that cannot be.
    #[error(
        "staticEndpoints.nodePort.ports: {range} is no range of ports: use 1 to 65535, with endPort not below port"
    )]
    Ports {
        /// What was given.
        range: Ports,
    },
    /// Two ranges with ports in common.
    #[error(
        "staticEndpoints.nodePort.ports: {range} and {other} of {whose} have ports in common: each port is for one device"
    )]
    PortsOverlap {
        /// One range.
        range: Ports,
        /// The other.
        other: Ports,
        /// Of which class.
        whose: String,
    },
    /// The patch is too long.
    #[error("statefulSet.patch has {length} bytes: use at most {MAX_PATCH}")]
    PatchLength {
        /// Its length.
        length: usize,
    },
    /// The patch changes what the operator needs.
    #[error("statefulSet.patch may not change {field}: remove it from the patch")]
    PatchProtected {
        /// What.
        field: String,
    },
    /// The patch does not make a StatefulSet.
    #[error("statefulSet.patch does not fit a StatefulSet: {problem}")]
    Patch {
        /// Why.
        problem: String,
    },
}

/// A field of the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(&'static str);

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A range of ports as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(PortRange);

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.end_port {
            Some(end) => write!(f, "{}-{end}", self.0.port),
            None => write!(f, "{}", self.0.port),
        }
    }
}

impl Ports {
    /// First and last, if they are ports.
    fn bounds(self) -> Option<(u16, u16)> {
        let first = u16::try_from(self.0.port).ok().filter(|port| *port > 0)?;
        let last = u16::try_from(self.0.end_port.unwrap_or(self.0.port)).ok()?;
        (first <= last).then_some((first, last))
    }

    fn overlaps(self, other: Self) -> bool {
        match (self.bounds(), other.bounds()) {
            (Some((first, last)), Some((other_first, other_last))) => {
                first <= other_last && other_first <= last
            }
            _ => false,
        }
    }
}

/// Tells everything that is wrong with the class.
pub fn validate(snapshot: &Snapshot) -> Result<(), Vec<Problem>> {
    let Some(class) = &snapshot.class else {
        return Ok(());
    };
    let mut problems = Vec::new();
    if let Some(set) = &class.spec.stateful_set {
        stateful_set(set, &mut problems);
    }
    let monitor = class
        .spec
        .metrics
        .as_ref()
        .and_then(|metrics| metrics.service_monitor.as_ref());
    labels(
        Field("metrics.serviceMonitor.labels"),
        monitor.and_then(|monitor| monitor.labels.as_ref()),
        &mut problems,
    );
    ports(class, &snapshot.others, &mut problems);
    if problems.is_empty() {
        patch(&class.spec, &mut problems);
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn stateful_set(set: &StatefulSetClass, problems: &mut Vec<Problem>) {
    labels(Field("statefulSet.labels"), set.labels.as_ref(), problems);
    keys(
        Field("statefulSet.annotations"),
        set.annotations.as_ref(),
        problems,
    );
    let Some(pod) = &set.pod else { return };
    labels(Field("statefulSet.pod.labels"), pod.labels.as_ref(), problems);
    keys(
        Field("statefulSet.pod.annotations"),
        pod.annotations.as_ref(),
        problems,
    );
    let containers = [
        (Field("tailscaleContainer.image"), &pod.tailscale_container),
        (
            Field("tailscaleInitContainer.image"),
            &pod.tailscale_init_container,
        ),
    ];
    for (field, container) in containers {
        let image = container.as_ref().and_then(|container| container.image.as_ref());
        if let Some(image) = image.filter(|image| !image.is_empty() && !is_image(image)) {
            problems.push(Problem::Image {
                field,
                image: short(image),
            });
        }
    }
    if pod
        .tailscale_init_container
        .as_ref()
        .is_some_and(|container| container.debug.is_some())
    {
        problems.push(Problem::InitDebug);
    }
}

fn labels(field: Field, map: Option<&BTreeMap<String, String>>, problems: &mut Vec<Problem>) {
    keys(field, map, problems);
    for value in map.into_iter().flat_map(BTreeMap::values) {
        if !value.is_empty() && !is_name(value) {
            problems.push(Problem::LabelValue {
                field,
                value: short(value),
            });
        }
    }
}

fn keys(field: Field, map: Option<&BTreeMap<String, String>>, problems: &mut Vec<Problem>) {
    for key in map.into_iter().flat_map(BTreeMap::keys) {
        let valid = match key.split_once('/') {
            Some((prefix, name)) => is_domain(prefix) && is_name(name),
            None => is_name(key),
        };
        if !valid {
            problems.push(Problem::Key {
                field,
                key: short(key),
            });
        }
    }
}

/// Letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= MAX_NAME
        && text.chars().all(inner)
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        is_name(label)
            && label
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    text.len() <= MAX_PREFIX && text.split('.').all(label)
}

/// `[REGISTRY[:PORT]/]PATH[:TAG][@DIGEST]`.
fn is_image(text: &str) -> bool {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let hex = |text: &str| text.len() >= 32 && text.chars().all(|c| c.is_ascii_hexdigit());
    if digest.is_some_and(|digest| !digest.split_once(':').is_some_and(|(_, value)| hex(value))) {
        return false;
    }
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    let in_tag = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good_tag = |tag: &str| {
        !tag.is_empty() && tag.len() <= 128 && tag.chars().all(in_tag) && !tag.starts_with(['-', '.'])
    };
    if tag.is_some_and(|tag| !good_tag(tag)) {
        return false;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    };
    let in_registry = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']');
    let part = |part: &str| {
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.chars().all(|c| lower(c) || matches!(c, '-' | '_' | '.'))
            && part.starts_with(lower)
            && part.ends_with(lower)
    };
    text.len() <= 512
        && registry.is_none_or(|registry| registry.chars().all(in_registry))
        && path.split('/').all(part)
}

/// The ranges of a class are ranges, and no port is in two of them. Of two classes, the older one may keep its ports.
fn ports(class: &ProxyClass, others: &[std::sync::Arc<ProxyClass>], problems: &mut Vec<Problem>) {
    let own = ranges(&class.spec);
    for range in &own {
        if range.bounds().is_none() {
            problems.push(Problem::Ports { range: *range });
        }
    }
    for (index, range) in own.iter().enumerate() {
        let overlap = |other: &Ports, whose: &str| Problem::PortsOverlap {
            range: *range,
            other: *other,
            whose: whose.to_owned(),
        };
        let inside = own.iter().skip(index + 1).filter(|other| range.overlaps(**other));
        problems.extend(inside.map(|other| overlap(other, "this class")));
        for class in others.iter().filter(|other| other.is_ready()) {
            let name = class.metadata.name.as_deref().unwrap_or_default();
            let found = ranges(&class.spec)
                .into_iter()
                .find(|other| range.overlaps(*other));
            problems.extend(found.map(|other| overlap(&other, &format!("ProxyClass {name}"))));
        }
    }
}

fn ranges(spec: &ProxyClassSpec) -> Vec<Ports> {
    let ports = spec
        .static_endpoints
        .iter()
        .flat_map(|endpoints| &endpoints.node_port.ports);
    ports.copied().map(Ports).collect()
}

/// The patch makes a StatefulSet that is still the pool's, and has no fields that none has.
fn patch(spec: &ProxyClassSpec, problems: &mut Vec<Problem>) {
    let Some(patch) = spec.stateful_set.as_ref().and_then(|set| set.patch.as_ref()) else {
        return;
    };
    let length = patch.to_string().len();
    if length > MAX_PATCH {
        problems.push(Problem::PatchLength { length });
        return;
    }
    let plain = pool::sample(None);
    let patched = pool::sample(Some(spec));
    for field in [
        "/apiVersion",
        "/kind",
        "/metadata/name",
        "/metadata/namespace",
        "/metadata/ownerReferences",
        "/spec/selector",
        "/spec/serviceName",
        "/spec/template/spec/serviceAccountName",
        "/spec/template/spec/containers/0/name",
        "/status",
    ] {
        if plain.pointer(field) != patched.pointer(field) {
            problems.push(Problem::PatchProtected {
                field: field[1..].replace('/', "."),
            });
        }
    }
    for field in ["/metadata/labels", "/spec/template/metadata/labels"] {
        let kept = |key: &String, value: &Value| patched.pointer(field).is_some_and(|map| map[key] == *value);
        let labels = plain.pointer(field).and_then(Value::as_object);
        for (key, value) in labels.into_iter().flatten() {
            if !kept(key, value) {
                problems.push(Problem::PatchProtected {
                    field: format!("label {key}"),
                });
            }
        }
    }
    match serde_json::from_value::<StatefulSet>(patched.clone()) {
        Err(error) => problems.push(Problem::Patch {
            problem: short(&error.to_string()),
        }),
        Ok(typed) => {
            if let Some(path) = unknown_field(&patched, &json!(typed), "") {
                problems.push(Problem::Patch {
                    problem: format!("there is no field {}", short(&path)),
                });
            }
        }
    }
}

/// The first field that the typed object lost.
fn unknown_field(written: &Value, typed: &Value, path: &str) -> Option<String> {
    match (written, typed) {
        (Value::Object(written), typed) => written.iter().find_map(|(key, value)| {
            let inner = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            match typed.get(key) {
                Some(typed) => unknown_field(value, typed, &inner),
                None if is_empty(value) => None,
                None => Some(inner),
            }
        }),
        (Value::Array(written), Value::Array(typed)) => written
            .iter()
            .zip(typed)
            .enumerate()
            .find_map(|(index, (value, typed))| unknown_field(value, typed, &format!("{path}[{index}]"))),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn short(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        let digest = format!("tailwharf@sha256:{}", "0a".repeat(32));
        for good in [
            "tailwharf",
            "tailscale/tailscale:v1.102.5",
            "localhost:5000/a/b:x",
            "registry.example.com/tailwharf:1.0",
            &digest,
        ] {
            assert!(is_image(good), "{good}");
        }
        for bad in ["", "A/b", "a b", "a:", "a//b", "a@sha256:zz", "a:-x", "/a"] {
            assert!(!is_image(bad), "{bad}");
        }
    }

    #[test]
    fn names_of_labels() {
        for good in ["a", "A_b.c-d", "example.com/x"] {
            let map = BTreeMap::from([(good.to_owned(), String::new())]);
            let mut problems = Vec::new();
            labels(Field("x"), Some(&map), &mut problems);
            assert_eq!(problems, [], "{good}");
        }
        for bad in ["", "-a", "a/b/c", "Example.com/x", "a b"] {
            let map = BTreeMap::from([(bad.to_owned(), String::new())]);
            let mut problems = Vec::new();
            keys(Field("x"), Some(&map), &mut problems);
            assert_eq!(problems.len(), 1, "{bad}");
        }
    }
}
