//! Which pods of the cluster may use an egress Service: the annotation [`crate::contract::annotation::EGRESS_FROM`].
//!
//! It is written like `from` of a NetworkPolicy, in JSON. A key that is not known makes it invalid: one that is mistyped and left out would let in more
//! pods than it says.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;

use crate::contract::annotation;

/// Longest annotation, in bytes.
const MAX_TEXT: usize = 16 * 1024;
/// Most entries.
const MAX_ENTRIES: usize = 64;

/// Which pods may use something. Without entries: none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(Vec<Source>);

/// One entry: pods of its own namespace if it names none.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Source {
    namespace_selector: Option<Selector>,
    pod_selector: Option<Selector>,
}

/// A label selector of Kubernetes. Without requirements it selects everything.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    #[serde(default)]
    match_labels: Labels,
    #[serde(default)]
    match_expressions: Vec<Requirement>,
}

#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Why a text does not say which pods may use something.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SourcesError {
    /// Longer than any list worth having.
    #[error("it has {length} bytes: use at most {MAX_TEXT}, by labels that several pods share")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// No JSON, or other keys than those of a NetworkPolicy's `from`.
    #[error(
        "{message}; write it like `from` of a NetworkPolicy, in JSON: {}",
        SourcesError::EXAMPLE
    )]
    Syntax {
        /// What the parser says.
        message: String,
    },
    /// More entries than worth having.
    #[error("{count} entries are too many: use at most {MAX_ENTRIES}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// An entry without a selector.
    #[error("entry {number} selects nothing: give it a namespaceSelector or a podSelector; {{}} selects all")]
    Empty {
        /// Which, from 1.
        number: usize,
    },
    /// An operator with values that it does not take, or without those that it needs.
    #[error("operator {operator} of label {key:?} {what}")]
    Values {
        /// The label.
        key: String,
        /// The operator.
        operator: &'static str,
        /// What is wrong.
        what: &'static str,
    },
}

impl SourcesError {
    const EXAMPLE: &str = r#"[{"namespaceSelector": {"matchLabels": {"team": "web"}}, "podSelector": {"matchLabels": {"app": "front"}}}]"#;
}

impl Sources {
    /// Whether a pod of `namespace`, with these labels, is among them. `home` is the namespace of whoever wrote them.
    #[must_use]
    pub fn select(&self, home: &str, namespace: &str, of_namespace: &Labels, of_pod: &Labels) -> bool {
        self.0.iter().any(|source| {
            let namespace_fits = match &source.namespace_selector {
                Some(selector) => selector.selects(of_namespace),
                None => namespace == home,
            };
            let pods = source.pod_selector.as_ref();
            namespace_fits && pods.is_none_or(|selector| selector.selects(of_pod))
        })
    }
}

impl FromStr for Sources {
    type Err = SourcesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_TEXT {
            return Err(SourcesError::TooLong { length: text.len() });
        }
        let one = text.trim_start().starts_with('{');
        let read = match one {
            true => serde_json::from_str(text).map(|source| vec![source]),
            false => serde_json::from_str::<Vec<Source>>(text),
        };
        let sources = read.map_err(|error| SourcesError::Syntax {
            message: error.to_string(),
        })?;
        if sources.len() > MAX_ENTRIES {
            return Err(SourcesError::TooMany { count: sources.len() });
        }
        for (number, source) in (1..).zip(&sources) {
            let selectors = [&source.namespace_selector, &source.pod_selector];
            if selectors.iter().all(|selector| selector.is_none()) {
                return Err(SourcesError::Empty { number });
            }
            let requirements = selectors
                .into_iter()
                .flatten()
                .flat_map(|selector| &selector.match_expressions);
            for requirement in requirements {
                requirement.check()?;
            }
        }
        Ok(Self(sources))
    }
}

impl Selector {
    fn selects(&self, labels: &Labels) -> bool {
        let wanted = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(wanted)
            && self
                .match_expressions
                .iter()
                .all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn check(&self) -> Result<(), SourcesError> {
        let (operator, needs_values) = match self.operator {
            Operator::In => ("In", true),
            Operator::NotIn => ("NotIn", true),
            Operator::Exists => ("Exists", false),
            Operator::DoesNotExist => ("DoesNotExist", false),
        };
        if needs_values != self.values.is_empty() {
            return Ok(());
        }
        Err(SourcesError::Values {
            key: self.key.chars().take(80).collect(),
            operator,
            what: if needs_values {
                "needs values"
            } else {
                "takes no values"
            },
        })
    }

    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => is_listed,
            Operator::NotIn => !is_listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// The sources that an object's annotations name: `None` if everybody may use it.
///
/// # Errors
/// What is wrong with the annotation.
pub fn of_annotations(annotations: Option<&Labels>) -> Option<Result<Sources, SourcesError>> {
    let text = annotations?.get(annotation::EGRESS_FROM)?;
    Some(text.parse())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    /// Whether a pod `app=front` of namespace `shop`, which has `team=web`, may use what is in namespace `net`.
    fn front_may(text: &str) -> bool {
        let (namespace, pod) = (labels(&[("team", "web")]), labels(&[("app", "front")]));
        text.parse::<Sources>()
            .unwrap()
            .select("net", "shop", &namespace, &pod)
    }

    #[test]
    fn entries_mean_what_they_mean_in_a_network_policy() {
        for (allowed, text) in [
            (false, "[]"),
            (true, r#"{"namespaceSelector": {}}"#),
            (
                true,
                r#"[{"namespaceSelector": {"matchLabels": {"team": "web"}}}]"#,
            ),
            (
                false,
                r#"[{"namespaceSelector": {"matchLabels": {"team": "db"}}}]"#,
            ),
            // A pod selector alone is for pods of the own namespace.
            (false, r#"{"podSelector": {"matchLabels": {"app": "front"}}}"#),
            (
                true,
                r#"{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "front"}}}"#,
            ),
            (
                false,
                r#"{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "back"}}}"#,
            ),
            (
                true,
                r#"[{"podSelector": {}}, {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "web"]}]}}]"#,
            ),
            (
                false,
                r#"{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["web"]}]}}"#,
            ),
            (
                true,
                r#"{"namespaceSelector": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}, {"key": "team", "operator": "Exists"}]}}"#,
            ),
        ] {
            assert_eq!(front_may(text), allowed, "{text}");
        }
        let own: Sources = r#"{"podSelector": {}}"#.parse().unwrap();
        assert!(own.select("net", "net", &labels(&[]), &labels(&[])));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let error = |text: &str| text.parse::<Sources>().unwrap_err();
        for text in [
            "",
            "true",
            r#"[{"podSelectr": {}}]"#,
            r#"{"podSelector": {"matchLabel": {"a": "b"}}}"#,
            r#"{"namespaceSelector": {}, "ipBlock": {"cidr": "0.0.0.0/0"}}"#,
            r#"{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Equals", "values": ["b"]}]}}"#,
        ] {
            assert!(matches!(error(text), SourcesError::Syntax { .. }), "{text}");
        }
        assert_eq!(
            error(r#"[{"podSelector": {}}, {}]"#),
            SourcesError::Empty { number: 2 }
        );
        let values =
            r#"{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}}"#;
        assert!(matches!(
            error(values),
            SourcesError::Values { operator: "In", .. }
        ));
        let many = format!("[{}]", [r#"{"podSelector": {}}"#; 65].join(","));
        assert_eq!(error(&many), SourcesError::TooMany { count: 65 });
        assert!(matches!(error(&" ".repeat(20_000)), SourcesError::TooLong { .. }));
    }
}
