//! Copies of a store while no coordinator runs on it.

use std::{fs, io::Write, path::Path};

use rusqlite::Connection;
use serde_json::{Map, Value, json};

use super::{SqliteStore, Store, StoreError, sqlite::TABLES};

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
    let dir = file.parent().unwrap_or_else(|| Path::new("."));
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
