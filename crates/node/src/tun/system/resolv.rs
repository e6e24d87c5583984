//! How programs of this machine find out where names are resolved: `/etc/resolv.conf`, or systemd-resolved where that manages it.
//!
//! Our `resolv.conf` keeps the lines of the one before as comments: nothing else has to be found, and put back, by a later run.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::plan::{Dns, RESOLVER};
use crate::dns::name_servers;

const FILE: &str = "/etc/resolv.conf";
/// The first line of our file.
const MARK: &str = "# Written by tailwharf. What was here before comes back when it ends:";
/// What stands before each line of the file before.
const BEFORE: &str = "#: ";

/// The resolver configuration of this machine.
#[derive(Debug)]
pub(super) struct Resolv {
    manager: Manager,
    device: String,
    changed: bool,
}

#[derive(Debug)]
enum Manager {
    /// systemd-resolved, told by its command.
    Resolved,
    /// A file.
    File(PathBuf),
}

impl Resolv {
    /// Finds out who manages names, and restores what an earlier run left changed.
    pub(super) fn new(device: &str) -> Self {
        let link = fs::read_link(FILE).unwrap_or_default();
        let is_resolved = link.components().any(|part| part.as_os_str() == "systemd")
            && resolvectl(&["--version".to_owned()]).is_ok();
        let mut resolv = Self {
            manager: match is_resolved {
                // It forgets what it was told about a device together with the device.
                true => Manager::Resolved,
                false => Manager::File(fs::canonicalize(FILE).unwrap_or_else(|_| FILE.into())),
            },
            device: device.to_owned(),
            changed: true,
        };
        resolv.restore();
        resolv
    }

    /// Who resolves names of others, before our change.
    pub(super) fn upstream(&self) -> Vec<SocketAddr> {
        match &self.manager {
            Manager::Resolved => Vec::new(),
            Manager::File(path) => name_servers(&before(path).unwrap_or_default()),
        }
    }

    /// Lets names be resolved by the tailnet's resolver.
    pub(super) fn apply(&mut self, dns: &Dns) -> io::Result<()> {
        match &self.manager {
            Manager::Resolved => {
                let device = &self.device;
                resolvectl(&["dns".into(), device.clone(), RESOLVER.to_string()])?;
                let mut words = vec!["domain".into(), device.clone()];
                words.extend(dns.search.iter().cloned());
                words.extend(dns.own.iter().map(|name| format!("~{name}")));
                if dns.all {
                    words.push("~.".into());
                }
                resolvectl(&words)?;
            }
            Manager::File(path) => replace(path, &ours(dns, &before(path)?))?,
        }
        self.changed = true;
        Ok(())
    }

    /// Puts back what was there before.
    pub(super) fn restore(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let restored = match &self.manager {
            Manager::Resolved => resolvectl(&["revert".into(), self.device.clone()]),
            Manager::File(path) if is_ours(path) => before(path).and_then(|text| replace(path, &text)),
            // Somebody else has written it since.
            Manager::File(_) => Ok(()),
        };
        if let Err(error) = restored {
            tracing::warn!(%error, "how names were resolved before could not be restored");
        }
    }
}

fn is_ours(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK))
}

/// The file as it was before our change.
fn before(path: &Path) -> io::Result<String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    if !text.starts_with(MARK) {
        return Ok(text);
    }
    let kept = text.lines().filter_map(|line| line.strip_prefix(BEFORE));
    Ok(kept.flat_map(|line| [line, "\n"]).collect())
}

/// Our file: the options of the one before, which may matter to the programs here, stay.
fn ours(dns: &Dns, before: &str) -> String {
    let mut lines = vec![MARK.to_owned()];
    lines.extend(before.lines().map(|line| format!("{BEFORE}{line}")));
    lines.push(format!("nameserver {RESOLVER}"));
    if !dns.search.is_empty() {
        lines.push(format!("search {}", dns.search.join(" ")));
    }
    let options = before.lines().filter(|line| line.starts_with("options "));
    lines.extend(options.map(str::to_owned));
    lines.push(String::new());
    lines.join("\n")
}

/// Writes a file at once, where it is not mounted by itself as in a container.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let replaced = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        let _ = fs::remove_file(&new);
        return fs::write(path, text);
    }
    Ok(())
}

fn resolvectl(words: &[String]) -> io::Result<()> {
    let status = Command::new("resolvectl")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("resolvectl {} failed", words.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "nameserver 192.0.2.53\noptions ndots:5\nsearch cluster.local\n";

    /// A file of others, and the configuration on it.
    fn file() -> (tempfile::TempDir, PathBuf, Resolv) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, TEXT).unwrap();
        let resolv = Resolv {
            manager: Manager::File(path.clone()),
            device: "tun9".into(),
            changed: false,
        };
        (dir, path, resolv)
    }

    fn dns() -> Dns {
        Dns {
            search: vec!["tail1234.ts.net".into()],
            own: vec!["tail1234.ts.net".into()],
            all: false,
        }
    }

    #[test]
    fn the_file_is_ours_until_it_is_restored() {
        let (_dir, path, mut resolv) = file();
        for _ in 0..2 {
            resolv.apply(&dns()).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            let active: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert_eq!(
                active,
                [
                    "nameserver 100.100.100.100",
                    "search tail1234.ts.net",
                    "options ndots:5"
                ]
            );
            assert_eq!(resolv.upstream(), ["192.0.2.53:53".parse().unwrap()]);
        }
        resolv.restore();
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
    }

    #[test]
    fn what_a_killed_run_left_is_restored_and_what_others_wrote_stays() {
        let (_dir, path, mut resolv) = file();
        resolv.apply(&dns()).unwrap();
        let mut next = Resolv {
            manager: Manager::File(path.clone()),
            device: "tun9".into(),
            changed: true,
        };
        next.restore();
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
        next.apply(&dns()).unwrap();
        fs::write(&path, "nameserver 192.0.2.54\n").unwrap();
        next.restore();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.54\n");
    }
}
