//! A tailnet of our own: the coordinator as a process, its administrator's commands, and our node as a process.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::network::Namespace;
use crate::process::{Process, run};
use crate::wait::eventually;
use crate::workspace;

/// The policy of the product story, with two users.
pub const STORY_POLICY: &str = include_str!("../policies/story.hujson");
/// The MagicDNS suffix of test tailnets.
pub const SUFFIX: &str = "tail1234.ts.net";
const PORT: u16 = 8080;
const RELAY_PORT: u16 = 3340;
const STUN_PORT: u16 = 3478;

/// A running coordinator with its embedded relay.
#[derive(Debug)]
pub struct Tailnet {
    dir: PathBuf,
    url: String,
    process: Option<Process>,
}

impl Tailnet {
    /// Starts a coordinator on `address`, with its data under `dir`, and returns when it answers.
    ///
    /// # Errors
    /// When it does not; the message has the end of its log.
    pub fn start(address: Ipv4Addr, dir: &Path, policy: &str) -> Result<Self> {
        Self::start_with(address, dir, policy, "")
    }

    /// The same with further lines of the coordinator's configuration: tables of TOML.
    ///
    /// # Errors
    /// As [`Tailnet::start`].
    pub fn start_with(address: Ipv4Addr, dir: &Path, policy: &str, more: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("policy.hujson"), policy)?;
        let url = format!("http://{address}:{PORT}");
        fs::write(
            dir.join("coordinator.toml"),
            format!(
                "server_url = \"{url}\"\nlisten = \"{address}:{PORT}\"\ndata_dir = \"{data}\"\n\
                 magic_dns_suffix = \"{SUFFIX}\"\npolicy_file = \"{policy}\"\n\n\
                 [relay]\nlisten = \"{address}:{RELAY_PORT}\"\nstun_listen = \"{address}:{STUN_PORT}\"\n\
                 hostname = \"{address}\"\n{more}",
                data = dir.join("data").display(),
                policy = dir.join("policy.hujson").display(),
            ),
        )?;
        let mut tailnet = Self {
            dir: dir.to_path_buf(),
            url,
            process: None,
        };
        tailnet.resume()?;
        Ok(tailnet)
    }

    /// Starts the coordinator again on what it stored.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn resume(&mut self) -> Result<()> {
        let mut command = Command::new(workspace::tailwharf());
        command.args(["coordinator", "--config"]).arg(self.config());
        let mut process = Process::start("coordinator", &mut command, &self.dir.join("coordinator.log"))?;
        let health = format!("{}/health", self.url);
        eventually("the coordinator answers", || {
            process.alive()?;
            run(Command::new("curl").args(["-sf", "--max-time", "2", &health])).map(drop)
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the coordinator, and with it the relay, without warning.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the coordinator does not run")?
            .kill()
    }

    /// The coordinator's process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The login server of this tailnet.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The configuration file, for `tailwharf coordinator --config`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("coordinator.toml")
    }

    /// The command of an administrator.
    #[must_use]
    pub fn admin(&self, words: &[&str]) -> Command {
        let mut command = Command::new(workspace::tailwharf());
        command
            .args(["coordinator", "--config"])
            .arg(self.config())
            .args(words);
        command
    }

    /// Runs an administrator's command with `--output json`.
    ///
    /// # Errors
    /// The command's own words.
    pub fn administer(&self, words: &[&str]) -> Result<Value> {
        let text = run(self.admin(words).args(["--output", "json"]))?;
        if text.trim().is_empty() {
            Ok(Value::Null)
        } else {
            Ok(serde_json::from_str(&text)?)
        }
    }

    /// Makes a user and a reusable auth key of that user.
    ///
    /// # Errors
    /// The command's own words.
    pub fn user_key(&self, user: &str, role: &str) -> Result<String> {
        if !self.users()?.iter().any(|known| known == user) {
            self.administer(&["user", "create", user, "--role", role])?;
        }
        self.key(&["--user", user, "--reusable"])
    }

    /// Makes an auth key.
    ///
    /// # Errors
    /// The command's own words.
    pub fn key(&self, options: &[&str]) -> Result<String> {
        let key = self.administer(&[&["key", "create"], options].concat())?;
        Ok(key["key"].as_str().context("no key in the answer")?.to_owned())
    }

    /// Makes an OAuth client; its id and secret.
    ///
    /// # Errors
    /// The command's own words.
    pub fn oauth_client(&self, tags: &str) -> Result<(String, String)> {
        let client = self.administer(&[
            "oauth-client",
            "create",
            "--scopes",
            "auth_keys,devices:core,services",
            "--tags",
            tags,
        ])?;
        let word = |name: &str| {
            client[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {name}"))
        };
        Ok((word("id")?, word("key")?))
    }

    /// The devices, as the administrator sees them.
    ///
    /// # Errors
    /// The command's own words.
    pub fn nodes(&self) -> Result<Vec<Value>> {
        Ok(self
            .administer(&["node", "list"])?
            .as_array()
            .cloned()
            .unwrap_or_default())
    }

    /// The root of the coordinator's certificate authority, as PEM.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub fn root_certificate(&self) -> Result<String> {
        let url = format!("{}/acme/root.pem", self.url);
        run(Command::new("curl").args(["-sSf", "--max-time", "10", &url]))
    }

    /// The end of the coordinator's log.
    #[must_use]
    pub fn log_end(&self, lines: usize) -> String {
        self.process
            .as_ref()
            .map(|process| process.log_end(lines))
            .unwrap_or_default()
    }

    /// The line by which [`crate::process::end_recorded`] finds the coordinator later.
    ///
    /// # Errors
    /// When it does not run.
    pub fn record(&self) -> Result<String> {
        self.process
            .as_ref()
            .context("the coordinator does not run")?
            .record()
    }

    /// Resident memory of the coordinator in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident(&self) -> Result<u64> {
        self.process
            .as_ref()
            .context("the coordinator does not run")?
            .resident()
    }

    fn users(&self) -> Result<Vec<String>> {
        let list = self.administer(&["user", "list"])?;
        let name = |user: &Value| user["loginName"].as_str().unwrap_or_default().to_owned();
        Ok(list
            .as_array()
            .map(|users| users.iter().map(name).collect())
            .unwrap_or_default())
    }
}

/// Our node as a process: `tailwharf node`.
#[derive(Debug)]
pub struct NodeProcess {
    process: Process,
}

impl NodeProcess {
    /// Starts `tailwharf node` on this machine with its state under `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        dir: &Path,
        login_server: &str,
        auth_key: &str,
        hostname: &str,
        extra: &[&str],
    ) -> Result<Self> {
        Self::start_in(None, dir, login_server, auth_key, hostname, extra)
    }

    /// The same in a namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_in(
        place: Option<&Namespace>,
        dir: &Path,
        login_server: &str,
        auth_key: &str,
        hostname: &str,
        extra: &[&str],
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let program = workspace::tailwharf();
        let mut command = place.map_or_else(|| Command::new(&program), |place| place.command(&program));
        command
            .args(["node", "--login-server", login_server, "--hostname", hostname])
            .arg("--state")
            .arg(dir.join("node.json"))
            .args(extra)
            .env("TS_AUTHKEY", auth_key);
        Ok(Self {
            process: Process::start(hostname, &mut command, &dir.join("node.log"))?,
        })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(self) -> Result<()> {
        self.process.stop()
    }
}

/// An address and port as `host:port`, with brackets where needed.
#[must_use]
pub fn host_port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
