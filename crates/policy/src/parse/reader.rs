//! Reading a document tree while collecting what is wrong with it.

use crate::hujson::{Item, Member, Position, Value};
use crate::{Policy, PolicyError, Problem, limits};

/// How many problems are reported at once.
pub(crate) const MAX_ERRORS: usize = 50;

/// The longest string that has a meaning to the policy, in bytes. Values of capabilities may be longer.
const MAX_STRING: usize = 4096;

/// Messages quote this many characters of a value.
pub(super) const QUOTED: usize = 80;

/// Collects the problems of a document.
#[derive(Default)]
pub(super) struct Reader {
    errors: Vec<PolicyError>,
    /// Destinations of all rules so far, each counted once for each range of ports.
    openings: usize,
}

/// The fields of an object that are present, under their canonical names.
pub(super) struct Fields<'a>(Vec<(&'static str, &'a Item)>);

impl<'a> Fields<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a Item> {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, item)| *item)
    }
}

impl Reader {
    /// The policy if nothing was wrong.
    pub(super) fn finish(mut self, policy: Policy) -> Result<Policy, Vec<PolicyError>> {
        if self.errors.is_empty() {
            return Ok(policy);
        }
        self.errors.sort_by_key(|error| (error.line, error.column));
        self.errors.dedup();
        Err(self.errors)
    }

    /// Whether something is wrong so far.
    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    pub(super) fn report(&mut self, error: PolicyError) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    pub(super) fn invalid(&mut self, at: Position, value: &str, expected: &'static str) {
        let value = value.chars().take(QUOTED).collect();
        self.report(PolicyError::new(at, Problem::Invalid { value, expected }));
    }

    pub(super) fn missing(&mut self, at: Position, field: &'static str, within: &'static str) {
        self.report(PolicyError::new(at, Problem::MissingField { field, within }));
    }

    pub(super) fn too_many(&mut self, at: Position, what: &'static str, limit: usize) {
        self.report(PolicyError::new(at, Problem::TooMany { what, limit }));
    }

    pub(super) fn wrong_kind(&mut self, item: &Item, what: &'static str, expected: &'static str) {
        self.report(PolicyError::new(
            item.at,
            Problem::WrongKind {
                what,
                expected,
                found: item.kind(),
            },
        ));
    }

    /// Whether a rule may open this much more; reports it if not.
    pub(super) fn may_open(&mut self, at: Position, destinations: usize, ports: usize) -> bool {
        self.openings = self.openings.saturating_add(destinations.saturating_mul(ports));
        let fits = self.openings <= limits::OPENINGS;
        if !fits {
            self.too_many(at, "destinations with ports", limits::OPENINGS);
        }
        fits
    }

    /// The fields of an object with a fixed set of names. Upper and lower case are alike, as policies have always been
    /// read.
    pub(super) fn fields<'a>(
        &mut self,
        item: &'a Item,
        within: &'static str,
        known: &[&'static str],
        unsupported: &[&'static str],
    ) -> Option<Fields<'a>> {
        let Value::Object(members) = &item.value else {
            self.wrong_kind(item, within, "an object");
            return None;
        };
        let mut fields: Vec<(&'static str, &Item)> = Vec::new();
        for Member { at, name, item } in members {
            let is = |field: &&&str| field.eq_ignore_ascii_case(name);
            if let Some(field) = known.iter().find(is) {
                if fields.iter().any(|(present, _)| present == field) {
                    self.report(PolicyError::new(*at, Problem::DuplicateField(name.clone())));
                } else {
                    fields.push((field, item));
                }
            } else if unsupported.iter().any(|field| field.eq_ignore_ascii_case(name)) {
                self.report(PolicyError::new(
                    *at,
                    Problem::Unsupported(format!("field {name:?}")),
                ));
            } else {
                let what = Problem::UnknownField {
                    field: name.clone(),
                    within,
                };
                self.report(PolicyError::new(*at, what).suggest(name, known.iter().copied()));
            }
        }
        Some(Fields(fields))
    }

    /// The members of an object with free names.
    pub(super) fn members<'a>(&mut self, item: &'a Item, what: &'static str) -> &'a [Member] {
        match &item.value {
            Value::Object(members) => members,
            _ => {
                self.wrong_kind(item, what, "an object");
                &[]
            }
        }
    }

    /// The members of a section that defines names.
    pub(super) fn definitions<'a>(&mut self, item: &'a Item, what: &'static str) -> &'a [Member] {
        let members = self.members(item, what);
        if members.len() > limits::DEFINITIONS {
            self.too_many(item.at, "names in one section", limits::DEFINITIONS);
            return &[];
        }
        members
    }

    /// A boolean.
    pub(super) fn bool(&mut self, item: &Item, what: &'static str) -> bool {
        match item.value {
            Value::Bool(value) => value,
            _ => {
                self.wrong_kind(item, what, "true or false");
                false
            }
        }
    }

    /// The elements of an array.
    pub(super) fn array<'a>(&mut self, item: &'a Item, what: &'static str) -> &'a [Item] {
        match &item.value {
            Value::Array(items) => items,
            _ => {
                self.wrong_kind(item, what, "an array");
                &[]
            }
        }
    }

    /// The elements of an array of objects.
    pub(super) fn objects<'a>(&mut self, item: &'a Item, what: &'static str) -> Vec<&'a Item> {
        let mut objects = Vec::new();
        for item in self.array(item, what) {
            match item.value {
                Value::Object(_) => objects.push(item),
                _ => self.wrong_kind(item, "each entry", "an object"),
            }
        }
        objects
    }

    /// The elements of an array of strings, each with its place.
    pub(super) fn strings<'a>(&mut self, item: &'a Item, what: &'static str) -> Vec<(Position, &'a str)> {
        let items = self.array(item, what);
        items
            .iter()
            .filter_map(|item| self.string(item, what).map(|text| (item.at, text)))
            .collect()
    }

    /// A string.
    pub(super) fn string<'a>(&mut self, item: &'a Item, what: &'static str) -> Option<&'a str> {
        match &item.value {
            Value::String(text) if text.len() <= MAX_STRING => Some(text),
            Value::String(text) => {
                self.invalid(item.at, text, "short enough; the limit is 4096 bytes");
                None
            }
            _ => {
                self.wrong_kind(item, what, "a string");
                None
            }
        }
    }
}
