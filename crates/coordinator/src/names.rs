//! DNS names of nodes: labels made from host names, and the domain they stand under.

use std::fmt;

use serde::Deserialize;

/// The longest DNS label.
const LABEL_LIMIT: usize = 63;
/// What a node is called whose host name has no usable character.
const FALLBACK: &str = "node";

/// The MagicDNS domain of the tailnet, such as `tail1234.ts.net`: lower case, without a final dot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Suffix(String);

/// A text that is not a domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a domain: write at least two labels, like `tail1234.ts.net`")]
pub struct InvalidSuffix(String);

impl Suffix {
    /// The domain, without a final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full name of the node `label`, without a final dot.
    pub fn fqdn(&self, label: &str) -> String {
        format!("{label}.{}", self.0)
    }
}

impl TryFrom<String> for Suffix {
    type Error = InvalidSuffix;

    fn try_from(text: String) -> Result<Self, InvalidSuffix> {
        match domain(&text) {
            Some(domain) if domain.contains('.') && domain.len() < 253 - LABEL_LIMIT => Ok(Self(domain)),
            Some(_) | None => Err(InvalidSuffix(text)),
        }
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A domain in lower case and without a final dot; `None` when the text is none.
pub fn domain(text: &str) -> Option<String> {
    let domain = text.trim_end_matches('.').to_ascii_lowercase();
    let legal = domain.len() <= 253 && domain.split('.').all(|label| sanitise(label) == label);
    legal.then_some(domain)
}

/// Makes a DNS label of a host name: its first label in lower case, with a hyphen for each run of other characters, 63 characters at most.
pub fn sanitise(hostname: &str) -> String {
    let mut label = String::new();
    let first = hostname
        .trim()
        .split('.')
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    for c in first.chars().map(|c| c.to_ascii_lowercase()) {
        if label.len() == LABEL_LIMIT {
            break;
        }
        if c.is_ascii_alphanumeric() {
            label.push(c);
        } else if !label.is_empty() && (c == '-' || !label.ends_with('-')) {
            label.push('-');
        }
    }
    let label = label.trim_end_matches('-');
    if label.is_empty() {
        FALLBACK.to_owned()
    } else {
        label.to_owned()
    }
}

/// The first of `label`, `label-1`, `label-2`… that is not taken. Never longer than a DNS label may be.
pub fn first_free(label: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(label) {
        return label.to_owned();
    }
    (1_u64..)
        .map(|number| {
            let suffix = format!("-{number}");
            let stem = &label[..label.len().min(LABEL_LIMIT - suffix.len())];
            format!("{}{suffix}", stem.trim_end_matches('-'))
        })
        .find(|candidate| !taken(candidate))
        .unwrap_or_else(|| label.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_names_become_labels() {
        for (hostname, label) in [
            ("laptop", "laptop"),
            ("Alice's MacBook Pro", "alice-s-macbook-pro"),
            ("host.example.com", "host"),
            ("--x--", "x"),
            ("a--b", "a--b"),
            ("", "node"),
            ("😀", "node"),
            (".", "node"),
            ("..lead", "lead"),
            ("db_1", "db-1"),
        ] {
            assert_eq!(sanitise(hostname), label, "{hostname:?}");
        }
    }

    #[test]
    fn suffixes_are_domains() {
        assert_eq!(
            Suffix::try_from("Tail1.TS.net.".to_owned()).unwrap().as_str(),
            "tail1.ts.net"
        );
        for bad in ["", "net", "a..b", "-a.b", "a b.c", &"a.".repeat(120)] {
            assert!(Suffix::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn labels_are_legal_and_stable(hostname in any::<String>()) {
            let label = sanitise(&hostname);
            prop_assert!((1..=LABEL_LIMIT).contains(&label.len()));
            prop_assert!(label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
            prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
            prop_assert_eq!(sanitise(&label), label);
        }

        #[test]
        fn names_handed_out_are_distinct_labels(hostnames in proptest::collection::vec("[a-c-]{0,3}|[a]{60,70}", 1..40)) {
            let mut taken = BTreeSet::new();
            for hostname in hostnames {
                let name = first_free(&sanitise(&hostname), |name| taken.contains(name));
                prop_assert_eq!(sanitise(&name), name.clone());
                prop_assert!(taken.insert(name));
            }
        }
    }
}
