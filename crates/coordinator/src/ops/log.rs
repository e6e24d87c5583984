//! The log of changes.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Context, Operations};
use crate::{
    model::{Action, Author, LogEntry, Node, TargetKind, User},
    world::{Change, World},
};

/// The longest detail of an entry, in bytes.
const DETAIL_LIMIT: usize = 1024;

/// Which entries of the log to show.
#[derive(Clone, Copy, Debug)]
pub struct LogQuery {
    /// From this time on, this included.
    pub from: Timestamp,
    /// Up to this time, this not included.
    pub to: Timestamp,
    /// Only entries before this one, to read on.
    pub before: Option<i64>,
    /// How many at most.
    pub limit: usize,
}

impl Operations {
    /// Entries of the log, the latest first.
    pub fn log(&self, query: LogQuery) -> Vec<Arc<LogEntry>> {
        let world = self.world();
        world
            .log()
            .filter(|entry| query.before.is_none_or(|before| entry.id < before))
            .filter(|entry| query.from <= entry.at && entry.at < query.to)
            .take(query.limit)
            .cloned()
            .collect()
    }
}

/// What an entry of the log is about.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    kind: TargetKind,
    id: String,
    name: String,
    detail: String,
}

impl Subject {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "ids and references of all kinds come as they are"
    )]
    pub(crate) fn new(kind: TargetKind, id: impl ToString, name: impl ToString) -> Self {
        Self {
            kind,
            id: id.to_string(),
            name: name.to_string(),
            detail: String::new(),
        }
    }

    pub(crate) fn node(node: &Node) -> Self {
        Self::new(TargetKind::Node, &node.stable_id, &node.name)
    }

    pub(crate) fn user(user: &User) -> Self {
        Self::new(TargetKind::User, user.id, &user.login)
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "texts and values of all kinds come as they are"
    )]
    pub(crate) fn detail(mut self, detail: impl ToString) -> Self {
        self.detail = detail.to_string();
        let end = self.detail.floor_char_boundary(DETAIL_LIMIT);
        self.detail.truncate(end);
        self
    }
}

/// Adds an entry to what a decision changes.
pub(crate) fn note(
    world: &World,
    context: &Context,
    changes: &mut Vec<Change>,
    author: Author,
    action: Action,
    subject: Subject,
) {
    let last = changes.iter().rev().find_map(|change| match change {
        Change::Log(entry) => Some(entry.id),
        _ => None,
    });
    let last = last.or_else(|| world.log().next().map(|entry| entry.id));
    changes.push(Change::Log(Arc::new(LogEntry {
        id: last.unwrap_or(0) + 1,
        at: context.now,
        author,
        action,
        kind: subject.kind,
        target: subject.id,
        name: subject.name,
        detail: subject.detail,
    })));
}
