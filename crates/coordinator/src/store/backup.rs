//! Copies of a store while no coordinator runs on it.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Map, Value, json};

use super::{SqliteStore, Store, StoreError, sqlite::TABLES};

/// What stands beside the store and belongs to the server's identity as well: the certificate authority, the relay's key, the gateway's device. Each is
/// replaced as a whole, so that it may be read at any time.
const BESIDE: [&str; 4] = ["ca.json", "ca-accounts.json", "relay.json", "funnel.state"];

/// Puts what stands beside the store in `dir` into a copy of it, as a table that only copies have.
pub(super) fn add_files(copy: &Path, dir: &Path) -> Result<(), StoreError> {
    let step = "add the files beside the store to its copy";
    let db = Connection::open(copy).map_err(StoreError::sql(step))?;
    db.execute_batch("CREATE TABLE files (id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;")
        .map_err(StoreError::sql(step))?;
    for name in BESIDE {
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(body) => db
                .execute("INSERT INTO files VALUES (?1, ?2)", params![name, body])
                .map(drop)
                .map_err(StoreError::sql(step))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Copy { path, source }),
        }
    }
    db.close().map_err(|(_, error)| StoreError::sql(step)(error))
}

/// Takes the files out of a copy and puts them in their places; what was there is kept under the name `<file>.replaced`.
fn put_files(copy: &Path, dir: &Path) -> Result<(), StoreError> {
    let step = "read the files of a copy";
    let db = Connection::open(copy).map_err(StoreError::sql(step))?;
    let has_files: bool = db
        .query_row(
            "SELECT COUNT(*) FROM sqlite_schema WHERE name = 'files'",
            [],
            |row| row.get(0),
        )
        .map_err(StoreError::sql(step))?;
    if !has_files {
        return Ok(());
    }
    for name in BESIDE {
        let body: Option<Vec<u8>> = db
            .query_row("SELECT body FROM files WHERE id = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(StoreError::sql(step))?;
        let Some(body) = body else {
            continue;
        };
        let path = dir.join(name);
        let staged = dir.join(format!("{name}.restored"));
        let placed = || {
            let mut file = super::sqlite::private_file(&staged)?;
            file.write_all(&body)?;
            file.sync_all()?;
            if path.exists() {
                fs::rename(&path, dir.join(format!("{name}.replaced")))?;
            }
            fs::rename(&staged, &path)
        };
        placed().map_err(|source| StoreError::Copy {
            path: path.clone(),
            source,
        })?;
    }
    db.execute_batch("DROP TABLE files; VACUUM;")
        .map_err(StoreError::sql(step))?;
    db.close().map_err(|(_, error)| StoreError::sql(step)(error))
}

/// Puts a backup in the place of the store in `file`, which is kept beside it under the name `<file>.replaced`.
///
/// The backup is checked before anything changes, and the store is replaced in one step.
///
/// # Errors
/// When the store is in use, or the backup is none that this version can read.
pub fn restore(backup: &Path, file: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Copy { path, source }
    };
    // Held until the end: no coordinator can start meanwhile.
    let former = match file.exists() {
        true => Some(hold(file)?),
        false => None,
    };
    let staged = file.with_extension("db.restored");
    let content = fs::read(backup).map_err(failed(backup))?;
    super::sqlite::private_file(&staged)
        .and_then(|mut copy| copy.write_all(&content).and_then(|()| copy.sync_all()))
        .map_err(failed(&staged))?;
    let readable = SqliteStore::open(&staged).and_then(|mut store| {
        let saved = store.load()?;
        store.close()?;
        Ok(saved)
    });
    if let Err(error) = readable {
        let _ = fs::remove_file(&staged);
        return Err(match error {
            StoreError::Damaged { what, .. } => StoreError::Damaged {
                path: backup.to_owned(),
                what,
            },
            other => other,
        });
    }
    let dir = file.parent().unwrap_or_else(|| Path::new("."));
    put_files(&staged, dir)?;
    if former.is_some() {
        let kept = file.with_extension("db.replaced");
        fs::copy(file, &kept).map_err(failed(&kept))?;
    }
    // What the journal of the former store holds must not be read into the restored one.
    for journal in ["db-wal", "db-shm"] {
        let journal = file.with_extension(journal);
        if journal.exists() {
            fs::remove_file(&journal).map_err(failed(&journal))?;
        }
    }
    fs::rename(&staged, file).map_err(failed(file))?;
    fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed(dir))
}

/// Takes the lock of a store, whatever state it is in.
fn hold(file: &Path) -> Result<Option<Connection>, StoreError> {
    match SqliteStore::open(file) {
        Ok(mut store) => {
            store.fold_journal()?;
            Ok(Some(store.into_connection()))
        }
        Err(StoreError::Damaged { .. } | StoreError::Newer { .. } | StoreError::Row { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Everything that a store holds, as JSON: by table, and in it by id. Of credentials it has hashes; the server's key is left out.
///
/// # Errors
/// When the store is in use or cannot be read.
pub fn export(file: &Path) -> Result<Value, StoreError> {
    let store = SqliteStore::open(file)?;
    let mut tables = Map::new();
    for table in TABLES {
        let mut rows = Map::new();
        for (id, row) in store.raw_rows(table)? {
            if (table, id.as_str()) != ("meta", "server_key") {
                rows.insert(id, row);
            }
        }
        tables.insert(table.to_owned(), Value::Object(rows));
    }
    Ok(json!({ "tables": tables }))
}

#[cfg(test)]
mod tests;
