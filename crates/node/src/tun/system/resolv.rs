//! How programs of this machine find out where names are resolved: `/etc/resolv.conf`, or systemd-resolved where that manages it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::plan::{Dns, RESOLVER};
use crate::dns::name_servers;

const FILE: &str = "/etc/resolv.conf";
/// Where the file of others is kept while ours is in its place.
const BACKUP: &str = "/etc/resolv.conf.before-tailwharf";
/// The first line of our file.
const MARK: &str = "# Written by tailwharf; what was here before is in ";

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
    /// A file and its backup.
    File { path: PathBuf, backup: PathBuf },
}

impl Resolv {
    /// Finds out who manages names, and restores what an earlier run left changed.
    pub(super) fn new(device: &str) -> Self {
        let link = fs::read_link(FILE).unwrap_or_default();
        let is_resolved = link.components().any(|part| part.as_os_str() == "systemd")
            && resolvectl(&["--version".to_owned()]).is_ok();
        if is_resolved {
            // It forgets what it was told about a device together with the device.
            return Self::with(Manager::Resolved, device);
        }
        let path = fs::canonicalize(FILE).unwrap_or_else(|_| FILE.into());
        Self::on_file(path, BACKUP.into(), device)
    }

    fn with(manager: Manager, device: &str) -> Self {
        Self {
            manager,
            device: device.to_owned(),
            changed: false,
        }
    }

    fn on_file(path: PathBuf, backup: PathBuf, device: &str) -> Self {
        let is_ours = fs::read_to_string(&path).is_ok_and(|text| text.starts_with(MARK));
        if !is_ours {
            // Somebody else has written the file since: the backup is older than that.
            let _ = fs::remove_file(&backup);
        }
        let mut resolv = Self::with(Manager::File { path, backup }, device);
        resolv.changed = is_ours;
        resolv.restore();
        resolv
    }

    /// Who resolves names of others, before our change.
    pub(super) fn upstream(&self) -> Vec<SocketAddr> {
        let Manager::File { path, backup } = &self.manager else {
            return Vec::new();
        };
        let text = fs::read_to_string(if self.changed { backup } else { path }).unwrap_or_default();
        name_servers(&text)
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
            Manager::File { path, backup } => {
                if !self.changed {
                    let before = match fs::read(path) {
                        Ok(before) => before,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                        Err(error) => return Err(error),
                    };
                    fs::write(backup, before)?;
                }
                let before = fs::read_to_string(backup).unwrap_or_default();
                replace(path, &content(dns, backup, &before))?;
            }
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
            Manager::File { path, backup } => fs::read_to_string(backup)
                .and_then(|before| replace(path, &before))
                .and_then(|()| fs::remove_file(backup)),
        };
        if let Err(error) = restored {
            tracing::warn!(%error, "how names were resolved before could not be restored");
        }
    }
}

/// Our file: the options of the one before, which may matter to the programs here, stay.
fn content(dns: &Dns, backup: &Path, before: &str) -> String {
    let mut text = format!("{MARK}{}\nnameserver {RESOLVER}\n", backup.display());
    if !dns.search.is_empty() {
        text.push_str(&format!("search {}\n", dns.search.join(" ")));
    }
    for line in before.lines().filter(|line| line.starts_with("options ")) {
        text.push_str(line);
        text.push('\n');
    }
    text
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

    fn dns() -> Dns {
        Dns {
            search: vec!["tail1234.ts.net".into()],
            own: vec!["tail1234.ts.net".into()],
            all: false,
        }
    }

    const BEFORE: &str = "nameserver 192.0.2.53\noptions ndots:5\nsearch cluster.local\n";

    #[test]
    fn the_file_is_ours_until_it_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let (path, backup) = (dir.path().join("resolv.conf"), dir.path().join("before"));
        fs::write(&path, BEFORE).unwrap();
        let mut resolv = Resolv::on_file(path.clone(), backup.clone(), "tun9");
        for _ in 0..2 {
            resolv.apply(&dns()).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert!(
                text.contains("\nnameserver 100.100.100.100\nsearch tail1234.ts.net\noptions ndots:5\n"),
                "{text}"
            );
            assert_eq!(resolv.upstream(), ["192.0.2.53:53".parse().unwrap()]);
        }
        resolv.restore();
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
        assert!(!backup.exists());
    }

    #[test]
    fn what_a_killed_run_left_is_restored_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (path, backup) = (dir.path().join("resolv.conf"), dir.path().join("before"));
        fs::write(&path, BEFORE).unwrap();
        Resolv::on_file(path.clone(), backup.clone(), "tun9")
            .apply(&dns())
            .unwrap();
        Resolv::on_file(path.clone(), backup.clone(), "tun9");
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);

        // What somebody else wrote meanwhile stays.
        Resolv::on_file(path.clone(), backup.clone(), "tun9")
            .apply(&dns())
            .unwrap();
        fs::write(&path, "nameserver 192.0.2.54\n").unwrap();
        Resolv::on_file(path.clone(), backup.clone(), "tun9");
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.54\n");
        assert!(!backup.exists());
    }
}
