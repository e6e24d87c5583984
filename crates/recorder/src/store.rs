//! The folder of recordings: a file for each, named by time and pod, never written twice.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::seal::{self, PublicKey, SealKey, Verdict};

/// Longest first line.
pub(crate) const MAX_HEADER: usize = 64 * 1024;
/// What recordings are called.
const ENDING: &str = "cast";

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one recording.
    pub recording: u64,
    /// Recordings at once.
    pub concurrent: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            recording: 4 << 30,
            concurrent: 2048,
        }
    }
}

/// A recording cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The first line is not that of a recording.
    #[error("this is no recording: {0}")]
    Header(String),
    /// The recording is longer than is kept.
    #[error("the recording is longer than {0} bytes")]
    TooLong(u64),
    /// No recording has the name.
    #[error("there is no recording {0}; `tailwharf recorder ls` lists them")]
    Unknown(String),
}

/// The first line of a recording.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Header {
    /// Version of the format.
    pub version: u8,
    /// Seconds since 1970.
    pub timestamp: i64,
    /// What was run.
    pub command: String,
    /// The device.
    pub src_node: String,
    /// Its user; empty for a device with tags.
    pub src_node_user: String,
    /// Where it was run.
    pub kubernetes: Place,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Place {
    /// The pod.
    pub pod_name: String,
    /// Its namespace.
    pub namespace: String,
    /// The container; empty for the first.
    pub container: String,
    /// `exec` or `attach`.
    pub session_type: String,
}

/// One recording in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, which is that of the file without the ending.
    pub name: String,
    /// Its first line.
    pub header: Header,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    limits: Limits,
    /// With which recordings are sealed.
    key: Option<Arc<SealKey>>,
}

impl Store {
    /// Opens the folder, and makes it if it is not there.
    ///
    /// # Errors
    /// When that fails.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|source| StoreError::File {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            limits,
            key: None,
        })
    }

    /// The same folder, in which recordings are sealed from now on.
    #[must_use]
    pub fn sealing(self, key: SealKey) -> Self {
        Self {
            key: Some(Arc::new(key)),
            ..self
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Begins a recording with its first line.
    pub(crate) fn begin(&self, first_line: &[u8]) -> Result<Writing, StoreError> {
        let header = parse(first_line)?;
        let time = Timestamp::now()
            .to_zoned(TimeZone::UTC)
            .strftime("%Y%m%dT%H%M%SZ")
            .to_string();
        let pod: String = header
            .kubernetes
            .pod_name
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(63)
            .collect();
        let name = format!("{time}-{pod}-{:08x}.{ENDING}", rand::random::<u32>());
        let path = self.folder.join(name);
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&path);
        let file = opened.map_err(|source| StoreError::File {
            path: path.clone(),
            source,
        })?;
        let mut writing = Writing {
            file,
            path,
            written: 0,
            limit: self.limits.recording,
            digest: Sha256::new(),
            key: self.key.clone(),
        };
        writing.write(first_line)?;
        Ok(writing)
    }

    /// All recordings, by name, which begins with their time.
    ///
    /// # Errors
    /// When the folder cannot be read. A file that is no recording is left out.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let failed = |source| StoreError::File {
            path: self.folder.clone(),
            source,
        };
        let mut entries = Vec::new();
        for found in fs::read_dir(&self.folder).map_err(failed)? {
            let path = found.map_err(failed)?.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            if let Some(name) = name
                && path.extension().is_some_and(|ending| ending == ENDING)
                && let Ok(header) = read_header(&path)
            {
                let bytes = fs::metadata(&path).map_or(0, |found| found.len());
                entries.push(Entry {
                    name: name.to_owned(),
                    header,
                    bytes,
                });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The recording of a name, to be read line by line.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(&self, name: &str) -> Result<BufReader<File>, StoreError> {
        let unknown = || StoreError::Unknown(name.to_owned());
        let path = self.path(name).ok_or_else(unknown)?;
        File::open(path).map(BufReader::new).map_err(|_| unknown())
    }

    /// Compares the recording of a name with its seal.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn verify(&self, name: &str, key: &PublicKey) -> Result<Verdict, StoreError> {
        let unknown = || StoreError::Unknown(name.to_owned());
        let path = self.path(name).filter(|path| path.exists()).ok_or_else(unknown)?;
        let name = name.strip_suffix(".cast").unwrap_or(name);
        seal::verify(&path, name, key).map_err(|source| StoreError::File { path, source })
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        let name = name.strip_suffix(".cast").unwrap_or(name);
        let inside = !name.contains(['/', '\0']);
        inside.then(|| self.folder.join(format!("{name}.{ENDING}")))
    }
}

fn parse(line: &[u8]) -> Result<Header, StoreError> {
    let header: Header =
        serde_json::from_slice(line).map_err(|error| StoreError::Header(error.to_string()))?;
    if header.version == 2 {
        Ok(header)
    } else {
        Err(StoreError::Header(format!(
            "its version is {}, not 2",
            header.version
        )))
    }
}

fn read_header(path: &Path) -> Result<Header, StoreError> {
    let failed = |source| StoreError::File {
        path: path.to_owned(),
        source,
    };
    let mut line = Vec::new();
    let file = File::open(path).map_err(failed)?;
    BufReader::new(file)
        .take(MAX_HEADER as u64)
        .read_until(b'\n', &mut line)
        .map_err(failed)?;
    parse(&line)
}

/// A recording under way.
#[derive(Debug)]
pub(crate) struct Writing {
    file: File,
    path: PathBuf,
    written: u64,
    limit: u64,
    digest: Sha256,
    key: Option<Arc<SealKey>>,
}

impl Writing {
    /// Adds bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.written + bytes.len() as u64 > self.limit {
            return Err(StoreError::TooLong(self.limit));
        }
        let failed = |source| StoreError::File {
            path: self.path.clone(),
            source,
        };
        self.file.write_all(bytes).map_err(failed)?;
        self.digest.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes sure that a power failure takes nothing.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|source| StoreError::File {
            path: self.path.clone(),
            source,
        })
    }

    /// Seals the recording, which is complete.
    pub(crate) fn seal(&self) -> Result<(), StoreError> {
        let Some(key) = &self.key else { return Ok(()) };
        let path = self.path.with_extension(seal::ENDING);
        let failed = |source| StoreError::File {
            path: path.clone(),
            source,
        };
        let name = self
            .path
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let text = key.seal(name, self.written, self.digest.clone(), Timestamp::now());
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&path);
        let mut file = opened.map_err(failed)?;
        file.write_all(&text)
            .and_then(|()| file.sync_data())
            .map_err(failed)
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}
