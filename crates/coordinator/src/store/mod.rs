//! Where changes are written before they are acknowledged.

mod backup;
mod sqlite;

use std::path::{Path, PathBuf};

use tailwharf_wire::key::MachinePrivate;

pub use self::{
    backup::{export, restore},
    sqlite::SqliteStore,
};
use crate::{
    model::{
        ApiToken, AuthKey, Confirmation, DnsSettings, DnsTxt, LogEntry, Node, OauthClient, PolicyVersion,
        Settings, User, VipService,
    },
    world::{Change, Counters},
};

/// Everything that a store holds.
#[derive(Debug, Default)]
pub struct Saved {
    /// The server's static Noise key; none before the first start.
    pub server_key: Option<MachinePrivate>,
    /// The numbers that only ever grow.
    pub counters: Counters,
    /// All users.
    pub users: Vec<User>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All services.
    pub services: Vec<VipService>,
    /// All auth keys.
    pub auth_keys: Vec<AuthKey>,
    /// All OAuth clients.
    pub oauth_clients: Vec<OauthClient>,
    /// All API tokens.
    pub tokens: Vec<ApiToken>,
    /// All TXT records.
    pub dns_txt: Vec<DnsTxt>,
    /// All that people confirmed.
    pub confirmations: Vec<Confirmation>,
    /// The policy in force; none before the first was set.
    pub policy: Option<PolicyVersion>,
    /// Rules for devices; none before the first were set.
    pub settings: Option<Settings>,
    /// Rules for names; none before the first were set.
    pub dns: Option<DnsSettings>,
    /// The log of changes, by number.
    pub log: Vec<LogEntry>,
}

/// A journal of changes. Used by one thread.
pub trait Store: Send {
    /// Reads everything, at start.
    ///
    /// # Errors
    /// When the store cannot be read or holds something else than what this version writes.
    fn load(&mut self) -> Result<Saved, StoreError>;

    /// Keeps the server's key.
    ///
    /// # Errors
    /// When it could not be stored.
    fn set_server_key(&mut self, key: &MachinePrivate) -> Result<(), StoreError>;

    /// Stores all of `changes`, or none. What was stored survives a crash of the process and of the machine.
    ///
    /// # Errors
    /// When they could not be stored; the store is as before then.
    fn commit(&mut self, changes: &[Change], counters: Counters) -> Result<(), StoreError>;

    /// Writes a copy of everything to a new file, readable by its owner alone.
    ///
    /// # Errors
    /// When the file is there already or cannot be written.
    fn back_up(&mut self, to: &Path) -> Result<(), StoreError>;
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or made.
    #[error("the store {} cannot be opened: check that the directory exists and may be written", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The file cannot be kept from others.
    #[error("the mode of the store {} cannot be set: check who owns it", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has the file.
    #[error("the store is in use by another coordinator: stop it first")]
    InUse,
    /// No space is left.
    #[error("the disk of the store is full: free some space")]
    Full,
    /// The file or file system may not be written.
    #[error("the store cannot be written: check the mount and permissions of `data_dir`")]
    ReadOnly,
    /// A later version has written the file.
    #[error("the store has schema {found}, this version knows up to {known}: use the newer version again")]
    Newer {
        /// What the file says.
        found: i64,
        /// The latest that this version knows.
        known: i64,
    },
    /// The file is damaged, or is none of ours.
    #[error("the store {} is damaged: restore a backup with `tailwharf coordinator restore`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file to write is there already.
    #[error("{} exists already: choose another file", .0.display())]
    Exists(PathBuf),
    /// There is no store yet.
    #[error("there is no store at {}: start the coordinator once, or name its configuration file", .0.display())]
    Missing(PathBuf),
    /// A file cannot be copied or moved.
    #[error("{} cannot be written: check the directory and free space", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A row is not what this version writes.
    #[error(
        "row `{id}` of table `{table}` of the store cannot be read: restore a backup with `tailwharf coordinator restore`"
    )]
    Row {
        /// The table.
        table: &'static str,
        /// The key of the row.
        id: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Anything else.
    #[error("the store failed to {step}")]
    Sql {
        /// What was being done.
        step: &'static str,
        /// What SQLite says.
        source: rusqlite::Error,
    },
}

impl StoreError {
    fn sql(step: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::PermissionDenied) => Self::ReadOnly,
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Self::InUse,
            _ => Self::Sql { step, source },
        }
    }
}

#[cfg(test)]
mod tests;
