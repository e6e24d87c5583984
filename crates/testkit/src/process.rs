//! Child processes that end with their owner.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::eventually_within;

/// How long a process may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// A running child with its output in a file. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; standard output and error are appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let child = command
            .stdin(Stdio::null())
            .stdout(open().with_context(|| format!("{}", log.display()))?)
            .stderr(open()?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name} ({:?})", command.get_program()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_path_buf(),
        })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> Result<u64> {
        resident(self.pid())
    }

    /// Fails, with the end of the log, if the process has ended.
    ///
    /// # Errors
    /// When it has.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}):\n{}", self.name, self.log_end(20)),
        }
    }

    /// The last `lines` of the log.
    #[must_use]
    pub fn log_end(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The whole log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A line by which [`end_recorded`] finds this process later: its number and start time.
    ///
    /// # Errors
    /// When it has ended.
    pub fn record(&self) -> Result<String> {
        Ok(format!("{} {}\n", self.pid(), start_time(self.pid())?))
    }

    /// Kills the process without warning and waits for its end.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and waits; kills after a grace period.
    ///
    /// # Errors
    /// When the process had to be killed.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    /// Like [`Process::stop`], for a process whose owner will replace it.
    ///
    /// # Errors
    /// When the process had to be killed.
    pub fn terminate(&mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM)?;
        let name = self.name.clone();
        let ended = eventually_within(GRACE, "the process ends", || {
            ensure!(self.child.try_wait()?.is_some(), "{name} still runs");
            Ok(())
        });
        if ended.is_err() {
            self.child.kill()?;
            self.child.wait()?;
        }
        ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be reported from here; a process that is gone already is what we want.
        let _ = self.end();
    }
}

/// Resident memory of a process in bytes, from the kernel.
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: u32) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("no VmRSS")?;
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .context("VmRSS without a number")?
        .parse()?;
    Ok(kib * 1024)
}

/// Ends the processes of a record, unless their number has gone to another process since.
///
/// # Errors
/// When one does not end.
pub fn end_recorded(record: &Path) -> Result<()> {
    for line in fs::read_to_string(record).unwrap_or_default().lines() {
        let (pid, born) = line
            .split_once(' ')
            .context("a record has a number and a time in each line")?;
        let number: u32 = pid.parse()?;
        if start_time(number).is_ok_and(|time| time == born) {
            kill(Pid::from_raw(i32::try_from(number)?), Signal::SIGTERM)?;
            eventually_within(GRACE, "a recorded process ends", || {
                ensure!(
                    start_time(number).is_ok_and(|time| time == born).eq(&false),
                    "{number} still runs"
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// When a process started, in the kernel's own unit; `/proc/PID/stat`, field 22. A zombie counts as ended.
fn start_time(pid: u32) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .context("no name in stat")?
        .1
        .split_whitespace()
        .collect();
    ensure!(fields.first() != Some(&"Z"), "{pid} has ended");
    Ok(fields.get(19).context("a short stat")?.to_string())
}

/// Runs a command to its end and returns what it printed on standard output.
///
/// # Errors
/// When it cannot be started or fails; the message has its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}{}",
        describe(command),
        output.status,
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever its exit status.
///
/// # Errors
/// When it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| describe(command))
}

/// The command as a person would type it.
#[must_use]
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_else(|| command.get_program());
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}
