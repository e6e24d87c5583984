//! Follows the file of records. Kubernetes replaces a mounted ConfigMap as a whole, by a link to another folder, so a look at what the name leads to tells
//! of each change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tailwharf_kube_types::dns_config::{Records, RecordsError};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::zone::Zones;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A ConfigMap holds no more.
const MAX_FILE: u64 = 1 << 20;

/// Why the file was not taken.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    #[error("it has {0} bytes, more than a ConfigMap holds")]
    TooLong(u64),
    #[error("it is not a file of records")]
    Content(#[from] RecordsError),
}

/// What the name of the file leads to.
type Version = Option<(PathBuf, SystemTime, u64)>;

/// The zones of the file now, and the work that follows it. What cannot be read changes nothing: old answers are better than none.
pub(crate) fn follow(path: PathBuf) -> (impl Future<Output = ()>, watch::Receiver<Arc<Zones>>) {
    let (sender, zones) = watch::channel(Arc::default());
    let mut seen = None;
    look(&path, &mut seen, &sender);
    let following = async move {
        loop {
            sleep(LOOK).await;
            look(&path, &mut seen, &sender);
        }
    };
    (following, zones)
}

fn look(path: &Path, seen: &mut Option<Version>, zones: &watch::Sender<Arc<Zones>>) {
    let version = version(path);
    if seen.as_ref() == Some(&version) {
        return;
    }
    *seen = Some(version);
    match read(path) {
        Ok(records) => {
            let now = Zones::new(&records);
            info!(names = now.len(), "the records are read");
            zones.send_replace(Arc::new(now));
        }
        Err(error) => warn!(
            file = %path.display(),
            error = &error as &dyn std::error::Error,
            "the file of records is not taken; the names known so far stay"
        ),
    }
}

fn version(path: &Path) -> Version {
    let real = fs::canonicalize(path).ok()?;
    let metadata = fs::metadata(&real).ok()?;
    Some((real, metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<Records, FileError> {
    let length = fs::metadata(path)?.len();
    if length > MAX_FILE {
        return Err(FileError::TooLong(length));
    }
    Ok(Records::parse(&fs::read_to_string(path)?)?)
}
