//! The name of a tag.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A tag, such as `tag:k8s`: the prefix, then a letter, then letters, digits and dashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// A text that is not a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tag; write \"tag:\", then a letter, then letters, digits or dashes")]
pub struct InvalidTag(pub String);

/// The longest tag, prefix included.
const MAX_LENGTH: usize = 68;

impl Tag {
    /// The tag by which a control server knows its public gateway. Policies cannot give it to anybody.
    pub const FUNNEL_GATEWAY: &'static str = "tag:funnel-gateway";

    /// The tag as it is written, with its prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let valid = text.len() <= MAX_LENGTH
            && text.strip_prefix("tag:").is_some_and(|name| {
                name.starts_with(|c: char| c.is_ascii_alphabetic())
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            });
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidTag(text.chars().take(MAX_LENGTH).collect()))
        }
    }
}

impl TryFrom<String> for Tag {
    type Error = InvalidTag;

    fn try_from(text: String) -> Result<Self, InvalidTag> {
        text.parse()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

impl AsRef<str> for Tag {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
