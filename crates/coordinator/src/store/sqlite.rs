//! The embedded store: one SQLite file.
//!
//! Each record is a row of its key and its JSON. The in-memory model is what is searched, so the tables need no further columns. The file is held
//! exclusively, which keeps a second coordinator away.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ToSql, Transaction, params};
use serde::{Serialize, de::DeserializeOwned};
use tailwharf_wire::key::MachinePrivate;

use super::{Saved, Store, StoreError};
use crate::model::Confirmation;
use crate::world::{Change, Counters, LOG_LIMIT};

/// Statements by schema version, from 1. A statement that was released is never changed; a new one is added behind it.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta          (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE users         (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE nodes         (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE auth_keys     (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE oauth_clients (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE tokens        (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE dns_txt       (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE policies      (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
",
    "
    CREATE TABLE services      (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE log           (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
",
    "
    CREATE TABLE confirmations (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
",
];

/// Every table of rows, for exports.
pub(super) const TABLES: [&str; 11] = [
    "meta",
    "users",
    "nodes",
    "services",
    "auth_keys",
    "oauth_clients",
    "tokens",
    "dns_txt",
    "confirmations",
    "policies",
    "log",
];

/// Versions of the policy that are kept.
const POLICY_HISTORY: i64 = 100;

/// A store in one file.
#[derive(Debug)]
pub struct SqliteStore {
    db: Connection,
}

impl SqliteStore {
    /// Opens the file, makes it if it is not there, and brings its schema up to date.
    ///
    /// # Errors
    /// When the file cannot be opened, is in use, or was written by a later version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let db = Connection::open_with_flags(path, flags).map_err(open)?;
        // The file holds the server's key. SQLite gives its journal the same mode.
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|source| StoreError::Mode {
            path: path.to_owned(),
            source,
        })?;
        // FULL: the journal reaches the disk before a commit returns.
        db.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;",
        )
        .map_err(|source| damage(path, StoreError::sql("prepare the file")(source)))?;
        let mut store = Self { db };
        store.check(path)?;
        store.migrate().map_err(|error| damage(path, error))?;
        Ok(store)
    }

    /// Looks for damage.
    fn check(&self, path: &Path) -> Result<(), StoreError> {
        let found: String = self
            .db
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| damage(path, StoreError::sql("check the file")(source)))?;
        if found == "ok" {
            return Ok(());
        }
        Err(StoreError::Damaged {
            path: path.to_owned(),
            what: found,
        })
    }

    /// Limits the file to `pages` pages, so that tests can fill it.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pages: u32) {
        self.db
            .execute_batch(&format!("PRAGMA max_page_count = {pages};"))
            .unwrap();
    }

    /// Makes the store refuse writes, as a read-only file system would.
    #[cfg(test)]
    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.db
            .execute_batch(&format!("PRAGMA query_only = {read_only};"))
            .unwrap();
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        let step = "bring the schema up to date";
        let transaction = self.db.transaction().map_err(StoreError::sql(step))?;
        transaction
            .execute_batch("CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT;")
            .map_err(StoreError::sql(step))?;
        let found: i64 = transaction
            .query_row("SELECT COALESCE(MAX(version), 0) FROM migrations", [], |row| {
                row.get(0)
            })
            .map_err(StoreError::sql(step))?;
        let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        if found > known {
            return Err(StoreError::Newer { found, known });
        }
        for (version, statements) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
            transaction
                .execute_batch(statements)
                .map_err(StoreError::sql(step))?;
            transaction
                .execute("INSERT INTO migrations VALUES (?1, datetime('now'))", [version])
                .map_err(StoreError::sql(step))?;
        }
        transaction.commit().map_err(StoreError::sql(step))
    }

    fn rows<T: DeserializeOwned>(&self, table: &'static str) -> Result<Vec<T>, StoreError> {
        let rows = self.raw_rows(table)?;
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// The rows of a table with their ids.
    pub(super) fn raw_rows<T: DeserializeOwned>(
        &self,
        table: &'static str,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let sql = format!("SELECT CAST(id AS TEXT), body FROM {table} ORDER BY id");
        let mut statement = self.db.prepare(&sql).map_err(StoreError::sql("read"))?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .map_err(StoreError::sql("read"))?;
        rows.map(|row| {
            let (id, body) = row.map_err(StoreError::sql("read"))?;
            match serde_json::from_str(&body) {
                Ok(row) => Ok((id, row)),
                Err(source) => Err(StoreError::Row { table, id, source }),
            }
        })
        .collect()
    }

    /// Brings what the journal holds into the file itself.
    pub(super) fn fold_journal(&mut self) -> Result<(), StoreError> {
        self.db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(StoreError::sql("fold the journal"))
    }

    /// The connection, and with it the lock.
    pub(super) fn into_connection(self) -> Connection {
        self.db
    }

    /// Closes the file, so that it is whole without its journal.
    pub(super) fn close(mut self) -> Result<(), StoreError> {
        self.fold_journal()?;
        self.db
            .close()
            .map_err(|(_, source)| StoreError::sql("close the file")(source))
    }

    fn meta<T: DeserializeOwned>(&self, id: &'static str) -> Result<Option<T>, StoreError> {
        let body: Option<String> = self
            .db
            .query_row("SELECT body FROM meta WHERE id = ?1", [id], |row| row.get(0))
            .optional()
            .map_err(StoreError::sql("read"))?;
        body.map(|body| serde_json::from_str(&body))
            .transpose()
            .map_err(|source| StoreError::Row {
                table: "meta",
                id: id.to_owned(),
                source,
            })
    }
}

/// A new, empty file that its owner alone may read.
pub(super) fn private_file(path: &Path) -> std::io::Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Says of which file an error speaks that means damage.
fn damage(path: &Path, error: StoreError) -> StoreError {
    match error {
        StoreError::Sql { source, .. }
            if matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ) =>
        {
            StoreError::Damaged {
                path: path.to_owned(),
                what: source.to_string(),
            }
        }
        error => error,
    }
}

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Saved, StoreError> {
        let fresh = Counters::default();
        Ok(Saved {
            server_key: self.meta("server_key")?,
            counters: Counters {
                next_node: self.meta("next_node")?.unwrap_or(fresh.next_node),
                next_user: self.meta("next_user")?.unwrap_or(fresh.next_user),
                last_v4: self.meta("last_v4")?.unwrap_or(fresh.last_v4),
            },
            users: self.rows("users")?,
            nodes: self.rows("nodes")?,
            auth_keys: self.rows("auth_keys")?,
            oauth_clients: self.rows("oauth_clients")?,
            tokens: self.rows("tokens")?,
            dns_txt: self.rows("dns_txt")?,
            confirmations: self.rows("confirmations")?,
            policy: self.rows("policies")?.pop(),
            services: self.rows("services")?,
            settings: self.meta("settings")?,
            dns: self.meta("dns")?,
            log: self.rows("log")?,
        })
    }

    fn set_server_key(&mut self, key: &MachinePrivate) -> Result<(), StoreError> {
        let transaction = self
            .db
            .transaction()
            .map_err(StoreError::sql("store the server key"))?;
        put(&transaction, "meta", &"server_key", key)?;
        transaction
            .commit()
            .map_err(StoreError::sql("store the server key"))
    }

    fn commit(&mut self, changes: &[Change], counters: Counters) -> Result<(), StoreError> {
        // A transaction that is dropped before its commit is rolled back.
        let transaction = self.db.transaction().map_err(StoreError::sql("begin a change"))?;
        for change in changes {
            write(&transaction, change)?;
        }
        put(&transaction, "meta", &"next_node", &counters.next_node)?;
        put(&transaction, "meta", &"next_user", &counters.next_user)?;
        put(&transaction, "meta", &"last_v4", &counters.last_v4)?;
        transaction.commit().map_err(StoreError::sql("store a change"))
    }

    fn back_up(&mut self, to: &Path) -> Result<(), StoreError> {
        if to.exists() {
            return Err(StoreError::Exists(to.to_owned()));
        }
        let name = to.to_str().ok_or_else(|| StoreError::Copy {
            path: to.to_owned(),
            source: std::io::ErrorKind::InvalidFilename.into(),
        })?;
        let copy_failed = |source| StoreError::Copy {
            path: to.to_owned(),
            source,
        };
        // SQLite takes an empty file for a new one; made by us, nobody else ever could read it.
        private_file(to).map_err(copy_failed)?;
        let copied = self.db.execute("VACUUM INTO ?1", [name]);
        if copied.is_err() {
            fs::remove_file(to).map_err(copy_failed)?;
        }
        copied.map_err(StoreError::sql("copy the store"))?;
        let dir = self.db.path().map(Path::new).and_then(Path::parent);
        let added = dir.map_or(Ok(()), |dir| super::backup::add_files(to, dir));
        if added.is_err() {
            fs::remove_file(to).map_err(copy_failed)?;
        }
        added?;
        fs::File::open(to)
            .and_then(|file| file.sync_all())
            .map_err(copy_failed)
    }
}

fn write(to: &Transaction<'_>, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::PutUser(user) => put(to, "users", &user.id.0, user.as_ref()),
        Change::DeleteUser(id) => delete(to, "users", &id.0),
        Change::PutNode(node) => put(to, "nodes", &node.id.0, node.as_ref()),
        Change::DeleteNode(id) => delete(to, "nodes", &id.0),
        Change::PutAuthKey(key) => put(to, "auth_keys", &key.id.0, key.as_ref()),
        Change::DeleteAuthKey(id) => delete(to, "auth_keys", &id.0),
        Change::PutOauthClient(client) => put(to, "oauth_clients", &client.id.0, client.as_ref()),
        Change::DeleteOauthClient(id) => delete(to, "oauth_clients", &id.0),
        Change::PutToken(token) => put(to, "tokens", &token.id.0, token.as_ref()),
        Change::DeleteToken(id) => delete(to, "tokens", &id.0),
        Change::PutDnsTxt(record) => put(to, "dns_txt", &record.name, record.as_ref()),
        Change::DeleteDnsTxt(name) => delete(to, "dns_txt", name),
        Change::PutConfirmation(confirmation) => {
            let id = Confirmation::id(confirmation.source, &confirmation.target);
            put(to, "confirmations", &id, confirmation.as_ref())
        }
        Change::DeleteConfirmation(id) => delete(to, "confirmations", id),
        Change::PutPolicy(active) => {
            let version = active.version.as_ref();
            put(to, "policies", &version.version, version)?;
            to.execute(
                "DELETE FROM policies WHERE id <= ?1",
                [version.version - POLICY_HISTORY],
            )
            .map(drop)
            .map_err(StoreError::sql("drop old policies"))
        }
        Change::PutService(service) => put(to, "services", &service.name.as_str(), service.as_ref()),
        Change::DeleteService(name) => delete(to, "services", &name.as_str()),
        Change::PutSettings(settings) => put(to, "meta", &"settings", settings.as_ref()),
        Change::PutDns(dns) => put(to, "meta", &"dns", dns.as_ref()),
        Change::Log(entry) => {
            put(to, "log", &entry.id, entry.as_ref())?;
            delete(to, "log", &(entry.id - LOG_LIMIT))
        }
        Change::SetPresence(..)
        | Change::PutRegistration(_)
        | Change::DeleteRegistration(_)
        | Change::PutCheck(_)
        | Change::DeleteCheck(_)
        | Change::SetDerpMap(_) => Ok(()),
    }
}

fn put(
    to: &Transaction<'_>,
    table: &'static str,
    id: &dyn ToSql,
    row: &impl Serialize,
) -> Result<(), StoreError> {
    let body = serde_json::to_string(row).map_err(|source| StoreError::Row {
        table,
        id: String::new(),
        source,
    })?;
    to.prepare_cached(&format!(
        "INSERT INTO {table} VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = ?2"
    ))
    .and_then(|mut statement| statement.execute(params![id, body]))
    .map(drop)
    .map_err(StoreError::sql("store a change"))
}

fn delete(from: &Transaction<'_>, table: &'static str, id: &dyn ToSql) -> Result<(), StoreError> {
    from.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))
        .and_then(|mut statement| statement.execute([id]))
        .map(drop)
        .map_err(StoreError::sql("store a deletion"))
}
