//! State stores: in memory, and in a file. The one in a Kubernetes Secret is in the crate `proxy`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tailwharf_kube_types::StateSecret;
use url::Url;
use zeroize::Zeroizing;

use crate::api::{NodeState, StateStore, StoreError};
use crate::layout::{self, Login};
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

/// Keeps the state in a file that only its owner may read, in the format of `tailscaled`'s state file: a file that the
/// official client wrote is taken over, and it can take over one that was written here. A write replaces the file at once or
/// not at all.
#[derive(Debug, Clone)]
pub struct FileStore {
    path: PathBuf,
    login: Login,
}

/// Where the device of a state file is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLogin {
    /// The control server.
    pub control_url: Url,
    /// The name it asks for; empty: that of the machine.
    pub hostname: String,
}

impl FileStore {
    /// A store in the file at `path` for a node of the control server `control_url` that asks for the name `hostname`. The
    /// file's directory must exist; the file need not.
    #[must_use]
    pub fn new(path: PathBuf, control_url: &Url, hostname: &str) -> Self {
        let control_url = control_url.as_str().trim_end_matches('/').to_owned();
        let login = Login {
            seed: control_url.clone(),
            control_url,
            hostname: hostname.to_owned(),
        };
        Self { path, login }
    }

    /// Where the device whose state is in a file is logged in. `None` when there is no file, or no login in it.
    ///
    /// # Errors
    /// When the file is there and holds no state.
    pub fn stored_login(path: &Path) -> Result<Option<StoredLogin>, StoreError> {
        let secret = read_secret(path).map_err(|source| StoreError::Read {
            place: path.display().to_string(),
            source: source.into(),
        })?;
        Ok(secret.profile.and_then(|profile| {
            let control_url = profile.control_url.parse().ok()?;
            Some(StoredLogin {
                control_url,
                hostname: profile.hostname,
            })
        }))
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn read(&self) -> io::Result<Option<NodeState>> {
        let secret = read_secret(&self.path)?;
        let state = layout::node_state(&secret, &self.login.control_url).map_err(io::Error::other)?;
        if state.is_some() {
            return Ok(state);
        }
        // A login elsewhere: the machine stays the same, the node is new.
        let Some(machine_key) = &secret.machine_key else {
            return Ok(None);
        };
        Ok(Some(NodeState {
            machine_key: machine_key.reveal().parse().map_err(io::Error::other)?,
            ..NodeState::fresh(&mut StdRng::from_entropy())
        }))
    }

    fn write(&self, state: &NodeState) -> io::Result<()> {
        let mut secret = read_secret(&self.path)?;
        layout::write_state(&mut secret, state, &self.login);
        let text = Zeroizing::new(serde_json::to_vec_pretty(&secret.to_data())?);
        write_atomically(&self.path, &text)
    }
}

impl StateStore for FileStore {
    fn load(&self) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>> {
        let store = self.clone();
        async move {
            blocking(move || store.read())
                .await
                .map_err(|source| StoreError::Read {
                    place: self.place(),
                    source: source.into(),
                })
        }
        .boxed()
    }

    fn save<'a>(&'a self, state: &'a NodeState) -> BoxFuture<'a, Result<(), StoreError>> {
        let (store, state) = (self.clone(), state.clone());
        async move {
            blocking(move || store.write(&state))
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

/// The content of a state file; without a file, nothing.
fn read_secret(path: &Path) -> io::Result<StateSecret> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(StateSecret::default()),
        Err(error) => return Err(error),
    };
    if size > MAX_STATE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the file is too large to be a node's state",
        ));
    }
    let text = Zeroizing::new(std::fs::read(path)?);
    // The official client leaves an empty file where it was stopped early.
    if text.is_empty() {
        return Ok(StateSecret::default());
    }
    let data: BTreeMap<String, ByteString> = serde_json::from_slice(&text)?;
    StateSecret::from_data(&data).map_err(io::Error::other)
}

/// Replaces a file that only its owner may read: after a crash, either the old or the new content is there. Blocks until it is on the disk.
///
/// # Errors
/// When it cannot be written.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
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

    fn store(path: &Path) -> FileStore {
        let server = "http://control.example:8080".parse().unwrap();
        FileStore::new(path.to_owned(), &server, "laptop")
    }

    #[tokio::test]
    async fn a_file_gives_back_what_was_saved_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.state");
        let store = store(&path);
        assert!(store.load().await.unwrap().is_none());
        assert_eq!(FileStore::stored_login(&path).unwrap(), None);

        let state = sample_state(7);
        store.save(&state).await.unwrap();
        let loaded = store.load().await.unwrap().unwrap();
        assert_eq!(
            serde_json::to_value(&loaded).unwrap(),
            serde_json::to_value(&state).unwrap()
        );
        let login = FileStore::stored_login(&path).unwrap().unwrap();
        assert_eq!(
            (login.control_url.as_str(), login.hostname.as_str()),
            ("http://control.example:8080/", "laptop")
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
    async fn a_login_at_another_server_is_another_device_of_the_same_machine() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.state");
        let first = store(&path);
        let state = sample_state(3);
        first.save(&state).await.unwrap();
        let other = FileStore::new(path.clone(), &"https://other.example".parse().unwrap(), "laptop");
        let new = other.load().await.unwrap().unwrap();
        assert_eq!(*new.machine_key.to_text(), *state.machine_key.to_text());
        assert_ne!(new.node_key.public(), state.node_key.public());
        assert_eq!(new.stable_id, None);
        other.save(&new).await.unwrap();
        let data: BTreeMap<String, ByteString> =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let profiles = data.keys().filter(|key| key.starts_with("profile-"));
        assert_eq!(profiles.count(), 2, "the first login is kept");
    }

    #[tokio::test]
    async fn a_failed_write_leaves_the_old_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.state");
        let store = store(&path);
        store.save(&sample_state(1)).await.unwrap();
        let before = std::fs::read(&path).unwrap();

        let blocker = directory
            .path()
            .join(format!("node.state.{}.new", std::process::id()));
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
        let path = directory.path().join("node.state");
        for junk in [
            "{\"_machinekey\": \"cHJp",
            "[]",
            "{\"_machinekey\": 7}",
            "{\"_machinekey\": \"cHJpdmtleToxMg==\"}",
        ] {
            std::fs::write(&path, junk).unwrap();
            assert!(
                matches!(store(&path).load().await, Err(StoreError::Read { .. })),
                "{junk}"
            );
        }
        std::fs::write(&path, "").unwrap();
        assert!(store(&path).load().await.unwrap().is_none());
    }
}
