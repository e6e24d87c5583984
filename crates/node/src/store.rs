//! State stores: in memory, and in a file. The one in a Kubernetes Secret is in the crate `proxy`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use futures::FutureExt;
use futures::future::BoxFuture;
use zeroize::Zeroizing;

use crate::api::{NodeState, StateStore, StoreError};
use crate::sync::lock;

/// Larger files are not state of ours. A state with a relay map of hundreds of relays stays under 200 KiB.
const MAX_STATE_BYTES: u64 = 4 << 20;

/// Keeps the state as long as the process lives; for ephemeral nodes and tests.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<Option<NodeState>>,
}

impl StateStore for MemoryStore {
    fn load(&self) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>> {
        let state = lock(&self.state).clone();
        async move { Ok(state) }.boxed()
    }

    fn save<'a>(&'a self, state: &'a NodeState) -> BoxFuture<'a, Result<(), StoreError>> {
        *lock(&self.state) = Some(state.clone());
        async { Ok(()) }.boxed()
    }
}

/// Keeps the state in one JSON file that only its owner may read. A write replaces the file at once or not at all.
#[derive(Debug, Clone)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// A store in the file at `path`. Its directory must exist; the file need not.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

impl StateStore for FileStore {
    fn load(&self) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>> {
        let path = self.path.clone();
        async move {
            blocking(move || read_state(&path))
                .await
                .map_err(|source| StoreError::Read {
                    place: self.place(),
                    source: source.into(),
                })
        }
        .boxed()
    }

    fn save<'a>(&'a self, state: &'a NodeState) -> BoxFuture<'a, Result<(), StoreError>> {
        let path = self.path.clone();
        let text = serde_json::to_vec_pretty(state)
            .map(Zeroizing::new)
            .map_err(io::Error::from);
        async move {
            blocking(move || write_atomically(&path, &text?))
                .await
                .map_err(|source| StoreError::Write {
                    place: self.place(),
                    source: source.into(),
                })
        }
        .boxed()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

fn read_state(path: &Path) -> io::Result<Option<NodeState>> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if size > MAX_STATE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the file is too large to be a node's state",
        ));
    }
    let text = Zeroizing::new(std::fs::read(path)?);
    Ok(Some(serde_json::from_slice(&text)?))
}

fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = directory.join(name);
    let written = create_private(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    });
    if let Err(error) = written {
        // Best effort: the error of the write is the one to tell.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    std::fs::File::open(directory)?.sync_all()
}

fn create_private(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::sample_state;

    #[tokio::test]
    async fn a_file_gives_back_what_was_saved_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.json");
        let store = FileStore::new(path.clone());
        assert!(store.load().await.unwrap().is_none());

        let state = sample_state(7);
        store.save(&state).await.unwrap();
        let loaded = FileStore::new(path.clone()).load().await.unwrap().unwrap();
        assert_eq!(
            serde_json::to_value(&loaded).unwrap(),
            serde_json::to_value(&state).unwrap()
        );
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            1,
            "no temporary file stays behind"
        );
    }

    #[tokio::test]
    async fn a_failed_write_leaves_the_old_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.json");
        let store = FileStore::new(path.clone());
        store.save(&sample_state(1)).await.unwrap();
        let before = std::fs::read(&path).unwrap();

        let blocker = directory
            .path()
            .join(format!("node.json.{}.new", std::process::id()));
        std::fs::create_dir(&blocker).unwrap();
        assert!(matches!(
            store.save(&sample_state(2)).await,
            Err(StoreError::Write { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[tokio::test]
    async fn a_damaged_file_is_an_error_and_not_a_new_node() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.json");
        std::fs::write(&path, b"{\"machine_key\": \"privkey:12").unwrap();
        assert!(matches!(
            FileStore::new(path).load().await,
            Err(StoreError::Read { .. })
        ));
    }
}
