//! The official client, in a namespace of its own: the judge of compatibility.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::network::Namespace;
use crate::process::{self, Process, output, run};
use crate::wait::eventually;
use crate::workspace;

/// An official `tailscaled` with a TUN device, and the `tailscale` command that drives it.
#[derive(Debug)]
pub struct OfficialClient {
    daemon: Process,
    socket: PathBuf,
    // Dropped after the daemon, which lives in it.
    namespace: Namespace,
}

impl OfficialClient {
    /// Starts `tailscaled` in `namespace` with its state under `dir`.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn start(namespace: Namespace, dir: &Path) -> Result<Self> {
        Self::start_with(namespace, dir, &[])
    }

    /// The same with variables for the daemon.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn start_with(namespace: Namespace, dir: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        Self::launch(namespace, dir, "tailscale0", variables)
    }

    /// The same without a TUN device.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn start_userspace(namespace: Namespace, dir: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        Self::launch(namespace, dir, "userspace-networking", variables)
    }

    fn launch(namespace: Namespace, dir: &Path, tun: &str, variables: &[(&str, &str)]) -> Result<Self> {
        let socket = dir.join("tailscaled.sock");
        let mut command = namespace.command(workspace::official("tailscaled"));
        command
            .args(["--no-logs-no-support", "--verbose=1"])
            .arg(format!("--tun={tun}"))
            .arg(format!("--statedir={}", dir.display()))
            .arg(format!("--socket={}", socket.display()))
            .envs(variables.iter().copied());
        let daemon = Process::start("tailscaled", &mut command, &dir.join("tailscaled.log"))?;
        let mut client = Self {
            daemon,
            socket,
            namespace,
        };
        eventually("tailscaled answers", || {
            client.daemon.alive()?;
            client.json(&["status", "--json"]).map(drop)
        })?;
        Ok(client)
    }

    /// Joins a tailnet by auth key.
    ///
    /// # Errors
    /// What the client printed, when it does not join.
    pub fn join(&self, login_server: &str, auth_key: &str, hostname: &str) -> Result<()> {
        let server = format!("--login-server={login_server}");
        let key = format!("--auth-key={auth_key}");
        let name = format!("--hostname={hostname}");
        self.run(&["up", &server, &key, &name, "--accept-routes", "--timeout=60s"])
            .map(drop)
    }

    /// What the daemon says of itself: `Running`, `NeedsLogin`, `NeedsMachineAuth`, …
    ///
    /// # Errors
    /// When it does not answer.
    pub fn state(&self) -> Result<String> {
        let status = self.json(&["status", "--json"])?;
        Ok(status["BackendState"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the daemon is in `state`.
    ///
    /// # Errors
    /// When it is not in time; the message has the end of its log.
    pub fn becomes(&self, state: &str) -> Result<()> {
        eventually(&format!("the client is {state}"), || {
            let found = self.state()?;
            anyhow::ensure!(found == state, "it is {found}");
            Ok(())
        })
        .with_context(|| self.log_end(20))
    }

    /// A `tailscale` command for this daemon.
    #[must_use]
    pub fn tailscale(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(workspace::official("tailscale"));
        command
            .arg(format!("--socket={}", self.socket.display()))
            .args(arguments);
        command
    }

    /// Runs a `tailscale` command and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.tailscale(arguments))
    }

    /// Runs a `tailscale` command that prints JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Runs any program in the client's namespace, whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        output(self.namespace.command(program).args(arguments))
    }

    /// Fetches a URL from inside; the body on success.
    ///
    /// # Errors
    /// curl's own words.
    pub fn curl(&self, url: &str) -> Result<String> {
        run(self.namespace.command("curl").args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "10",
            url,
        ]))
    }

    /// The peers of `tailscale status --json`, by host name of the MagicDNS name.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn peers(&self) -> Result<Vec<Value>> {
        let status = self.json(&["status", "--json"])?;
        Ok(status["Peer"]
            .as_object()
            .map(|peers| peers.values().cloned().collect())
            .unwrap_or_default())
    }

    /// The peer whose MagicDNS name begins with `name.`.
    ///
    /// # Errors
    /// When there is none.
    pub fn peer(&self, name: &str) -> Result<Value> {
        let prefix = format!("{name}.");
        let peers = self.peers()?;
        peers
            .into_iter()
            .find(|peer| {
                peer["DNSName"]
                    .as_str()
                    .is_some_and(|found| found.starts_with(&prefix))
            })
            .with_context(|| format!("no peer {name}"))
    }

    /// The first tailnet IPv4 address of this client.
    ///
    /// # Errors
    /// When it has none yet.
    pub fn address(&self) -> Result<String> {
        Ok(self.run(&["ip", "-4"])?.trim().to_owned())
    }

    /// The namespace it lives in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What the daemon logged, for a failing test.
    #[must_use]
    pub fn log_end(&self, lines: usize) -> String {
        self.daemon.log_end(lines)
    }

    /// The line by which [`process::end_recorded`] finds the daemon later.
    ///
    /// # Errors
    /// When it has ended.
    pub fn record(&self) -> Result<String> {
        self.daemon.record()
    }

    /// The process id of the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Resident memory of the daemon in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident(&self) -> Result<u64> {
        process::resident(self.daemon.pid())
    }
}
