//! Audit lines that wait for the webhook, in files: a new process goes on where the old one ended.
//!
//! Lines are appended to the youngest part and taken from the oldest, which goes when it was delivered. When there is no more room the oldest lines
//! go first, and are counted.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Most bytes of a part, which is delivered in one request.
const MAX_PART: u64 = 256 * 1024;
const SUFFIX: &str = "jsonl";

/// One file of lines.
#[derive(Debug)]
struct Part {
    number: u64,
    bytes: u64,
    lines: u64,
}

#[derive(Debug, Default)]
struct State {
    /// From the oldest to the youngest.
    parts: VecDeque<Part>,
    /// The youngest part, as long as it grows.
    growing: Option<File>,
    next: u64,
    /// The part that is being delivered.
    taken: Option<u64>,
}

/// Lines in a folder.
#[derive(Debug)]
pub(super) struct Queue {
    folder: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    news: Notify,
    dropped: AtomicU64,
}

impl Queue {
    /// Opens a folder, and finds what waits there.
    pub(super) fn open(folder: &Path, max_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut parts = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let (Some(number), true) = (number, path.extension().is_some_and(|end| end == SUFFIX)) else {
                continue;
            };
            let content = fs::read(&path)?;
            parts.push(Part {
                number,
                bytes: content.len() as u64,
                lines: count(&content),
            });
        }
        parts.sort_unstable_by_key(|part| part.number);
        let next = parts.last().map_or(0, |part| part.number + 1);
        let queue = Self {
            folder: folder.to_owned(),
            max_bytes,
            state: Mutex::new(State {
                parts: parts.into(),
                next,
                ..State::default()
            }),
            news: Notify::new(),
            dropped: AtomicU64::new(0),
        };
        queue.make_room(&mut queue.lock())?;
        Ok(queue)
    }

    /// Takes whole lines.
    pub(super) fn append(&self, lines: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let mut rest = lines;
        while !rest.is_empty() {
            let length = state.parts.back().map_or(0, |part| part.bytes);
            let room = usize::try_from(MAX_PART.saturating_sub(length)).unwrap_or(0);
            let fits = &rest[..rest.len().min(room)];
            let fits = fits
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            if state.growing.is_some() && fits > 0 {
                let (now, later) = rest.split_at(fits);
                self.grow(&mut state, now)?;
                rest = later;
                continue;
            }
            self.begin(&mut state)?;
            if !rest[..rest.len().min(MAX_PART as usize)].contains(&b'\n') {
                // A line that is longer than a part has one of its own.
                let end = rest
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .map_or(rest.len(), |end| end + 1);
                let (now, later) = rest.split_at(end);
                self.grow(&mut state, now)?;
                rest = later;
            }
        }
        self.make_room(&mut state)?;
        drop(state);
        self.news.notify_one();
        Ok(())
    }

    fn begin(&self, state: &mut State) -> io::Result<()> {
        let number = state.next;
        state.growing = Some(
            File::options()
                .append(true)
                .create_new(true)
                .open(self.path(number))?,
        );
        state.next += 1;
        state.parts.push_back(Part {
            number,
            bytes: 0,
            lines: 0,
        });
        Ok(())
    }

    fn grow(&self, state: &mut State, lines: &[u8]) -> io::Result<()> {
        let State { growing, parts, .. } = state;
        let (Some(file), Some(part)) = (growing.as_mut(), parts.back_mut()) else {
            return Ok(());
        };
        if let Err(error) = file.write_all(lines) {
            // Half a line may be there: nothing comes behind it.
            part.bytes = file.metadata().map_or(part.bytes, |found| found.len());
            *growing = None;
            return Err(error);
        }
        part.bytes += lines.len() as u64;
        part.lines += count(lines);
        Ok(())
    }

    /// Drops the oldest parts that are not under way, until the others have room.
    fn make_room(&self, state: &mut State) -> io::Result<()> {
        while state.parts.iter().map(|part| part.bytes).sum::<u64>() > self.max_bytes {
            let oldest = usize::from(state.taken.is_some());
            // The youngest stays: it is being written.
            if oldest + 1 >= state.parts.len() {
                break;
            }
            if let Some(part) = state.parts.remove(oldest) {
                self.dropped.fetch_add(part.lines, Ordering::Relaxed);
                self.remove(part.number)?;
            }
        }
        Ok(())
    }

    /// The oldest lines and the number by which they are told to be done; `None` when nothing waits.
    pub(super) fn take(&self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut state = self.lock();
        loop {
            let Some(part) = state.parts.front() else {
                return Ok(None);
            };
            let number = part.number;
            if state.parts.len() == 1 {
                state.growing = None;
            }
            let mut content = match fs::read(self.path(number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                read => read?,
            };
            content.truncate(
                content
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1),
            );
            if content.is_empty() {
                state.parts.pop_front();
                self.remove(number)?;
                continue;
            }
            state.taken = Some(number);
            return Ok(Some((number, content)));
        }
    }

    /// The lines that were taken under this number are done with: delivered, or not to be delivered ever.
    pub(super) fn done(&self, number: u64, delivered: bool) -> io::Result<()> {
        let mut state = self.lock();
        state.taken = None;
        if state.parts.front().is_some_and(|part| part.number == number)
            && let Some(part) = state.parts.pop_front()
            && !delivered
        {
            self.dropped.fetch_add(part.lines, Ordering::Relaxed);
        }
        self.remove(number)
    }

    /// Waits until lines have come.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Lines that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.lock().parts.iter().map(|part| part.lines).sum()
    }

    /// Lines for which there was no room, or which the webhook does not want.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016}.{SUFFIX}"))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        match fs::remove_file(self.path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize, length: usize) -> Vec<u8> {
        let mut line = format!("{number:08} ").into_bytes();
        line.resize(length - 1, b'x');
        line.push(b'\n');
        line
    }

    /// All lines that wait, by their numbers.
    fn empty(queue: &Queue) -> Vec<usize> {
        let mut found = Vec::new();
        while let Some((number, lines)) = queue.take().unwrap() {
            let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            found
                .extend(lines.map(|line| std::str::from_utf8(&line[..8]).unwrap().parse::<usize>().unwrap()));
            queue.done(number, true).unwrap();
        }
        found
    }

    #[test]
    fn lines_keep_their_order_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path(), 1 << 30).unwrap();
        for number in 0..1000 {
            queue.append(&line(number, 1000)).unwrap();
        }
        let (first, lines) = queue.take().unwrap().unwrap();
        assert!(lines.len() as u64 <= MAX_PART);
        // Not delivered: it comes again.
        drop(queue);
        let queue = Queue::open(dir.path(), 1 << 30).unwrap();
        assert_eq!(queue.take().unwrap().unwrap().0, first);
        queue.append(&line(1000, 2 * MAX_PART as usize)).unwrap();
        queue
            .append(&[line(1001, 100), line(1002, 100)].concat())
            .unwrap();
        assert_eq!(queue.waiting(), 1003);
        assert_eq!(empty(&queue), (0..1003).collect::<Vec<_>>());
        assert_eq!((queue.waiting(), queue.dropped()), (0, 0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_oldest_lines_make_room_and_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path(), 4 * MAX_PART).unwrap();
        queue.append(&line(0, 1000)).unwrap();
        // What is under way stays.
        let (taken, _) = queue.take().unwrap().unwrap();
        for number in 1..5000 {
            queue.append(&line(number, 1000)).unwrap();
        }
        queue.done(taken, true).unwrap();
        let left = empty(&queue);
        assert_eq!(*left.last().unwrap(), 4999);
        assert!(left.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        assert_eq!(left.len() as u64 + queue.dropped() + 1, 5000);
        assert!(queue.dropped() > 3000);
    }

    #[test]
    fn half_a_line_of_a_process_that_was_killed_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("0000000000000007.jsonl"),
            [line(1, 50), b"00000002 ha".to_vec()].concat(),
        )
        .unwrap();
        fs::write(dir.path().join("0000000000000003.jsonl"), "00000000 half").unwrap();
        fs::write(dir.path().join("notes.txt"), "mine").unwrap();
        let queue = Queue::open(dir.path(), 1 << 20).unwrap();
        queue.append(&line(3, 50)).unwrap();
        assert_eq!(empty(&queue), [1, 3]);
        assert!(dir.path().join("notes.txt").exists());
    }
}
