//! What can be wrong with a policy text, and where.

use std::fmt;

use crate::hujson::Position;

/// One problem of a policy text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub what: Problem,
    /// The name that was probably meant.
    pub suggestion: Option<String>,
}

impl PolicyError {
    pub(crate) fn new(at: Position, what: Problem) -> Self {
        Self {
            line: at.line,
            column: at.column,
            what,
            suggestion: None,
        }
    }

    /// Adds the candidate nearest to `name`, if one is near.
    pub(crate) fn suggest<'a>(mut self, name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        self.suggestion = nearest(name, candidates).map(str::to_owned);
        self
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.what)?;
        match &self.suggestion {
            Some(name) => write!(f, "; did you mean {name:?}?"),
            None => Ok(()),
        }
    }
}

/// What is wrong at a place of a policy text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The text is longer than [`crate::MAX_TEXT`].
    #[error("the policy is longer than {} bytes", crate::MAX_TEXT)]
    TooLong,
    /// The text is not HuJSON.
    #[error("{0}")]
    Syntax(&'static str),
    /// The text goes on after the document.
    #[error("nothing may follow the end of the policy")]
    TrailingText,
    /// An object has one name twice.
    #[error("field {0:?} is already given above")]
    DuplicateField(String),
    /// A field that does not exist here.
    #[error("unknown field {field:?} in {within}")]
    UnknownField {
        /// The name of the field.
        field: String,
        /// The object that it stands in.
        within: &'static str,
    },
    /// A field or value of the language that this server does not do.
    #[error("{0} is not supported by this server; remove it")]
    Unsupported(String),
    /// A field that must be given.
    #[error("{within} needs a field {field:?}")]
    MissingField {
        /// The name of the field.
        field: &'static str,
        /// The object that lacks it.
        within: &'static str,
    },
    /// A value of another kind.
    #[error("{what} must be {expected}, not {found}")]
    WrongKind {
        /// What the value is for.
        what: &'static str,
        /// The kind that is needed.
        expected: &'static str,
        /// The kind that stands there.
        found: &'static str,
    },
    /// A group that `groups` does not have.
    #[error("group {0:?} is not defined in \"groups\"")]
    UndefinedGroup(String),
    /// A host that `hosts` does not have.
    #[error("host {0:?} is not defined in \"hosts\"")]
    UndefinedHost(String),
    /// A tag that `tagOwners` does not have.
    #[error("tag {0:?} has no entry in \"tagOwners\"")]
    TagWithoutOwner(String),
    /// A posture that `postures` does not have.
    #[error("posture {0:?} is not defined in \"postures\"")]
    UndefinedPosture(String),
    /// An IP set that `ipsets` does not have.
    #[error("IP set {0:?} is not defined in \"ipsets\"")]
    UndefinedIpSet(String),
    /// Names that are defined by each other.
    #[error("{0} is a circle; remove one of these references")]
    Circle(String),
    /// More of something than the limit.
    #[error("there are more than {limit} {what}; make the policy smaller")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: usize,
    },
    /// The tag of the public gateway.
    #[error("this tag is for the control server's own Funnel gateway; choose another")]
    ReservedTag,
    /// An attribute that no node has.
    #[error("nodes have no attribute {0:?}")]
    UnknownAttribute(String),
    /// An autogroup that does not exist.
    #[error("{0:?} is not an autogroup")]
    UnknownAutogroup(String),
    /// A selector that means nothing in this place.
    #[error("{selector:?} cannot be used {place}")]
    Misplaced {
        /// The selector.
        selector: String,
        /// Where it stands.
        place: &'static str,
    },
    /// A value that cannot be read.
    #[error("{value:?} is not {expected}")]
    Invalid {
        /// The value as written.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A definition of a cluster that cannot be used.
    #[error("this definition of a cluster cannot be used: {0}")]
    Cluster(String),
    /// One of the policy's own tests does not hold.
    #[error("{destination} is {found} for {source_name}, but the test says {expected}")]
    TestFailed {
        /// Who tried.
        source_name: String,
        /// What was tried; for SSH, as which user of which machine.
        destination: String,
        /// What the rules say: `accepted`, `checked` or `denied`.
        found: &'static str,
        /// What the test says.
        expected: &'static str,
    },
    /// A rule of the language that spans several fields.
    #[error("{0}")]
    Rule(&'static str),
}

/// The candidate with the least edit distance to `name`, if at most a third of the name has to change. Upper and lower
/// case are alike.
fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 64;
    if name.len() > LONGEST {
        return None;
    }
    let allowed = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, without regard to ASCII case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        let fields = ["acls", "grants", "groups", "tagOwners"];
        assert_eq!(nearest("tagowner", fields), Some("tagOwners"));
        assert_eq!(nearest("acl", fields), Some("acls"));
        assert_eq!(nearest("gruops", fields), Some("groups"));
        assert_eq!(nearest("derpMap", fields), None);
    }
}
