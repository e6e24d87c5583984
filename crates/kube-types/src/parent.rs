//! The user's object for which something was made, as the four labels that everything made carries.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::contract::label;

/// Kinds of objects that ask for something on the tailnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParentKind {
    /// An exposed Service.
    #[serde(rename = "svc")]
    Service,
    /// An Ingress of the operator's class.
    Ingress,
    /// A Connector. It has no namespace.
    Connector,
    /// The operator itself: its device on the tailnet.
    Operator,
    /// A pool of proxy pods.
    Pool,
    /// A nameserver, of a DNSConfig.
    Nameserver,
}

impl ParentKind {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "svc",
            Self::Ingress => "ingress",
            Self::Connector => "connector",
            Self::Operator => "operator",
            Self::Pool => "pool",
            Self::Nameserver => "nameserver",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [
            Self::Service,
            Self::Ingress,
            Self::Connector,
            Self::Operator,
            Self::Pool,
            Self::Nameserver,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == text)
    }
}

/// The object for which something was made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Parent {
    /// Its kind.
    pub kind: ParentKind,
    /// Its namespace; empty if its kind has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Parent {
    /// A Service as parent.
    #[must_use]
    pub fn service(namespace: &str, name: &str) -> Self {
        Self::new(ParentKind::Service, namespace, name)
    }

    /// An Ingress as parent.
    #[must_use]
    pub fn ingress(namespace: &str, name: &str) -> Self {
        Self::new(ParentKind::Ingress, namespace, name)
    }

    fn new(kind: ParentKind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// A Connector as parent.
    #[must_use]
    pub fn connector(name: &str) -> Self {
        Self {
            kind: ParentKind::Connector,
            namespace: String::new(),
            name: name.to_owned(),
        }
    }

    /// The labels of everything made for this parent.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        [
            (label::MANAGED, "true"),
            (label::PARENT_TYPE, self.kind.as_str()),
            (label::PARENT_NAME, &self.name),
            (label::PARENT_NAMESPACE, &self.namespace),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    /// Reads the parent from labels. `None` if the object does not carry all four of them: then tailwharf did not make it.
    #[must_use]
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        if labels.get(label::MANAGED).map(String::as_str) != Some("true") {
            return None;
        }
        Some(Self {
            kind: ParentKind::parse(labels.get(label::PARENT_TYPE)?)?,
            namespace: labels.get(label::PARENT_NAMESPACE)?.clone(),
            name: labels.get(label::PARENT_NAME)?.clone(),
        })
    }

    /// A label selector that finds everything made for this parent.
    #[must_use]
    pub fn selector(&self) -> String {
        self.labels()
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(",")
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_round_trip() {
        let parent = Parent::service("default", "nginx");
        assert_eq!(Parent::from_labels(&parent.labels()), Some(parent));
    }

    #[test]
    fn what_lacks_a_label_was_not_made_by_us() {
        for key in Parent::service("default", "nginx").labels().keys() {
            let mut labels = Parent::service("default", "nginx").labels();
            labels.remove(key);
            assert_eq!(Parent::from_labels(&labels), None, "without {key}");
        }
    }
}
