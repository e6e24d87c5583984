//! Values that people write into annotations and settings, parsed once.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const MAX_LABEL: usize = 63;
const MAX_TAG: usize = 128;

/// The name of a device on the tailnet: one DNS label of 1 to 63 letters, digits and inner hyphens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(String);

/// Why a text is no [`Hostname`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostnameError {
    /// Nothing was given.
    #[error("the hostname is empty: use 1 to 63 letters, digits or '-'")]
    Empty,
    /// More than 63 bytes.
    #[error("the hostname {name:?} has {length} characters: use at most 63")]
    TooLong {
        /// What was given.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Something other than a letter, digit or hyphen.
    #[error("the hostname {name:?} contains {found:?}: use only letters, digits and '-'")]
    Character {
        /// What was given.
        name: String,
        /// The first character that may not be there.
        found: char,
    },
    /// A hyphen at one of the ends.
    #[error("the hostname {name:?} begins or ends with '-': begin and end it with a letter or digit")]
    Edge {
        /// What was given.
        name: String,
    },
}

impl Hostname {
    /// The name as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = HostnameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = || shorten(text);
        if text.is_empty() {
            return Err(HostnameError::Empty);
        }
        if let Some(found) = text.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
            return Err(HostnameError::Character { name: name(), found });
        }
        if text.len() > MAX_LABEL {
            return Err(HostnameError::TooLong {
                name: name(),
                length: text.len(),
            });
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(HostnameError::Edge { name: name() });
        }
        Ok(Self(text.to_owned()))
    }
}

/// A tag of the tailnet policy, with its prefix: `tag:k8s`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// Why a text is no [`Tag`] or list of tags.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TagError {
    /// The list, or an item of it, is empty.
    #[error("a tag is empty: write tags like \"tag:k8s,tag:web\"")]
    Empty,
    /// The prefix is missing.
    #[error("the tag {tag:?} does not begin with \"tag:\": write \"tag:NAME\"")]
    Prefix {
        /// What was given.
        tag: String,
    },
    /// The name does not begin with a letter or has other characters than letters, digits and hyphens.
    #[error("the tag {tag:?} is not valid: after \"tag:\" use a letter, then letters, digits or '-'")]
    Name {
        /// What was given.
        tag: String,
    },
    /// Longer than 128 bytes.
    #[error("the tag {tag:?} is too long: use at most 128 characters")]
    TooLong {
        /// The beginning of what was given.
        tag: String,
    },
    /// More tags than a device may have.
    #[error("{count} tags are too many: use at most {}", crate::contract::MAX_TAGS)]
    TooMany {
        /// How many were given.
        count: usize,
    },
}

impl Tag {
    /// The tag with its prefix.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a comma-separated list, as annotations and settings hold it. Blanks around items are ignored; the result is sorted and has no
    /// duplicates, so that two spellings of one set are equal.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, TagError> {
        let mut tags = text
            .split(',')
            .map(|item| item.trim().parse())
            .collect::<Result<Vec<Self>, _>>()?;
        tags.sort();
        tags.dedup();
        if tags.len() > crate::contract::MAX_TAGS {
            return Err(TagError::TooMany { count: tags.len() });
        }
        Ok(tags)
    }

    /// The comma-separated form of a list of tags.
    #[must_use]
    pub fn join(tags: &[Self]) -> String {
        tags.iter().map(Self::as_str).collect::<Vec<_>>().join(",")
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let tag = || shorten(text);
        if text.is_empty() {
            return Err(TagError::Empty);
        }
        let Some(name) = text.strip_prefix("tag:") else {
            return Err(TagError::Prefix { tag: tag() });
        };
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(inner) {
            return Err(TagError::Name { tag: tag() });
        }
        if text.len() > MAX_TAG {
            return Err(TagError::TooLong { tag: tag() });
        }
        Ok(Self(text.to_owned()))
    }
}

/// The beginning of a text that a person wrote, short enough for a message.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 80;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain(['…']).collect()
    }
}

macro_rules! text_value {
    ($type:ident, $error:ident, $schema:expr) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

text_value!(
    Hostname,
    HostnameError,
    json_schema!({
        "type": "string", "maxLength": 63, "pattern": "^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$",
    })
);
text_value!(
    Tag,
    TagError,
    json_schema!({
        "type": "string", "maxLength": 128, "pattern": "^tag:[a-zA-Z][a-zA-Z0-9-]*$",
    })
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostnames_are_dns_labels() {
        for good in ["a", "web", "Web-1", "0", &"a".repeat(63)] {
            assert_eq!(good.parse::<Hostname>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<Hostname>(), Err(HostnameError::Empty));
        assert!(matches!(
            "a".repeat(64).parse::<Hostname>(),
            Err(HostnameError::TooLong { length: 64, .. })
        ));
        assert!(matches!(
            "-a".parse::<Hostname>(),
            Err(HostnameError::Edge { .. })
        ));
        assert!(matches!(
            "a-".parse::<Hostname>(),
            Err(HostnameError::Edge { .. })
        ));
        assert!(matches!(
            "a.b".parse::<Hostname>(),
            Err(HostnameError::Character { found: '.', .. })
        ));
        assert!(matches!(
            "ü".parse::<Hostname>(),
            Err(HostnameError::Character { found: 'ü', .. })
        ));
    }

    #[test]
    fn errors_stay_short_whatever_was_written() {
        let error = "ü".repeat(10_000).parse::<Hostname>().unwrap_err();
        assert!(error.to_string().chars().count() < 200);
    }

    #[test]
    fn tags_have_a_prefix_and_a_name() {
        assert_eq!("tag:k8s".parse::<Tag>().unwrap().as_str(), "tag:k8s");
        assert!(matches!("k8s".parse::<Tag>(), Err(TagError::Prefix { .. })));
        for bad in ["tag:", "tag:1", "tag:-a", "tag:a_b", "tag:a b"] {
            assert!(matches!(bad.parse::<Tag>(), Err(TagError::Name { .. })), "{bad}");
        }
    }

    #[test]
    fn lists_of_tags_are_sets() {
        let tags = Tag::parse_list("tag:web, tag:k8s,tag:web").unwrap();
        assert_eq!(Tag::join(&tags), "tag:k8s,tag:web");
        assert_eq!(Tag::parse_list("tag:a,"), Err(TagError::Empty));
        assert_eq!(Tag::parse_list(""), Err(TagError::Empty));
        let many = (0..40).map(|n| format!("tag:a{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(Tag::parse_list(&many), Err(TagError::TooMany { count: 40 }));
    }
}
