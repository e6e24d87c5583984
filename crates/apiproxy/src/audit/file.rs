//! Audit lines on their way to standard output, to a file or to the webhook's queue, by a thread of their own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::Output;
use super::queue::Queue;

/// Bytes of lines that wait to be written. What comes on top is counted and lost.
const MAX_WAITING: usize = 16 * 1024 * 1024;

/// Time for what waits to be written when the proxy ends.
const FLUSH: Duration = Duration::from_secs(2);

/// A file with rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSettings {
    /// The file. Older ones are beside it, with `.1`, `.2`, … behind the name.
    pub path: PathBuf,
    /// Most bytes of one file.
    pub max_bytes: u64,
    /// How many older files are kept.
    pub keep: u32,
}

/// The audit log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened.
    #[error("cannot open the audit log {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The webhook cannot be used.
    #[error("the audit webhook {url} cannot be used: {why}")]
    Webhook {
        /// Its URL.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The thread cannot be started.
    #[error("the thread that writes the audit log cannot be started")]
    Thread(#[source] io::Error),
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// The thread writes what it has taken.
    busy: bool,
    over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
    done: Condvar,
    dropped: AtomicU64,
}

/// Writes lines in the order in which they come. Dropping it writes what waits.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(mut sink: Sink) -> Result<Self, AuditError> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || run(&theirs, &mut sink))
            .map_err(AuditError::Thread)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn write(&self, line: &[u8]) {
        let mut waiting = self.shared.lock();
        if waiting.lines.len() + line.len() > MAX_WAITING {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        self.shared.more.notify_one();
    }

    /// Waits until everything that has come is written, for [`FLUSH`] at most.
    pub(super) fn flush(&self) {
        let waits = |waiting: &mut Waiting| waiting.busy || !waiting.lines.is_empty();
        // A disk that does not answer keeps nobody from ending.
        drop(
            self.shared
                .done
                .wait_timeout_while(self.shared.lock(), FLUSH, waits),
        );
    }

    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.more.notify_one();
        if let Some(thread) = self.thread.take() {
            // A thread that has failed wrote what it could.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Shared, sink: &mut Sink) {
    let mut failing = false;
    loop {
        let waiting = shared.lock();
        let mut waiting = shared
            .more
            .wait_while(waiting, |waiting| waiting.lines.is_empty() && !waiting.over)
            .unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut waiting.lines);
        let over = waiting.over;
        waiting.busy = true;
        drop(waiting);
        let written = sink.write(&lines);
        if let Err(error) = &written {
            let lost = lines.iter().filter(|byte| **byte == b'\n').count();
            shared.dropped.fetch_add(lost as u64, Ordering::Relaxed);
            if !failing {
                tracing::error!(%error, "the audit log cannot be written; lines are lost until it can");
            }
        }
        failing = written.is_err();
        shared.lock().busy = false;
        shared.done.notify_all();
        if over {
            return;
        }
    }
}

/// Where a thread writes lines.
pub(super) enum Sink {
    Stdout,
    File(Rotating),
    Queue(Arc<Queue>),
}

impl Sink {
    pub(super) fn open(output: &Output) -> Result<Self, AuditError> {
        Ok(match output {
            Output::Stdout => Self::Stdout,
            Output::File(settings) => Self::File(Rotating::open(settings.clone())?),
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Self::File(file) => file.write(lines),
            Self::Queue(queue) => queue.append(lines),
        }
    }
}

pub(super) struct Rotating {
    settings: FileSettings,
    file: File,
    length: u64,
}

impl Rotating {
    fn open(settings: FileSettings) -> Result<Self, AuditError> {
        let opened = open(&settings.path);
        let (file, length) = opened.map_err(|source| AuditError::Open {
            path: settings.path.clone(),
            source,
        })?;
        Ok(Self {
            settings,
            file,
            length,
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if self.length > 0 && self.length + line.len() as u64 > self.settings.max_bytes {
                self.rotate()?;
            }
            self.file.write_all(line)?;
            self.length += line.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.settings.path;
        let older = |number: u32| {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.settings.keep).rev() {
            match fs::rename(older(number), older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.settings.keep == 0 {
            fs::remove_file(path)?;
        } else {
            fs::rename(path, older(1))?;
        }
        (self.file, self.length) = open(path)?;
        Ok(())
    }
}

fn open(path: &std::path::Path) -> io::Result<(File, u64)> {
    let file = File::options().create(true).append(true).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_makes_room_and_no_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let settings = FileSettings {
            path: dir.path().join("audit.log"),
            max_bytes: 20,
            keep: 2,
        };
        let writer = Writer::start(Sink::open(&Output::File(settings)).unwrap()).unwrap();
        for number in 0..6 {
            writer.write(format!("line {number}\n").as_bytes());
        }
        drop(writer);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("audit.log"), "line 4\nline 5\n");
        assert_eq!(read("audit.log.1"), "line 2\nline 3\n");
        assert_eq!(read("audit.log.2"), "line 0\nline 1\n");
        assert!(!dir.path().join("audit.log.3").exists());
    }
}
