//! Files that are replaced as a whole: after a crash, either the old or the new content is there.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::CaError;

/// Reads a file; `None` if there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CaError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CaError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let damaged = |source| CaError::Damaged {
        path: path.to_owned(),
        source,
    };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// Replaces a file. Blocks until it is on the disk.
pub(crate) fn write(path: &Path, content: &impl Serialize) -> Result<(), CaError> {
    let failed = |source| CaError::Write {
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_vec(content).map_err(|error| failed(error.into()))?;
    let new = path.with_extension("json.new");
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed)?;
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    let folder = path.parent().unwrap_or(path);
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}
