//! The machines of a measurement: a tailnet of ours, and nodes of both kinds in namespaces of their own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::process::Process;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Bridge, Namespace, OfficialClient, Tailnet, workspace};
use tempfile::TempDir;

/// Everybody reaches everything, and the operator may give its tag.
const POLICY: &str = r#"{
  "tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"]},
  "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
}"#;

/// A coordinator with its relay, and room for nodes around it.
pub(crate) struct World {
    pub(crate) tailnet: Tailnet,
    pub(crate) bridge: Bridge,
    pub(crate) dir: TempDir,
}

impl World {
    pub(crate) fn start() -> Result<Self> {
        Self::with("")
    }

    /// With further tables in the coordinator's configuration.
    pub(crate) fn with(more: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tailwharf-bench-").tempdir()?;
        let bridge = Bridge::create()?;
        let tailnet = Tailnet::start_with(bridge.host(), &dir.path().join("coordinator"), POLICY, more)?;
        Ok(Self { tailnet, bridge, dir })
    }

    pub(crate) fn auth_key(&self) -> Result<String> {
        self.tailnet.user_key("bench@example.com", "admin")
    }

    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The first address of a node of the tailnet.
    pub(crate) fn address(&self, name: &str) -> Result<String> {
        eventually("the node has an address", || {
            let nodes = self.tailnet.nodes()?;
            let node = nodes.iter().find(|node| {
                node["name"]
                    .as_str()
                    .is_some_and(|found| found == name || found.starts_with(&format!("{name}.")))
            });
            let node = node.with_context(|| format!("no node {name}"))?;
            ensure!(node["connectedToControl"] == true, "{name} is not connected");
            Ok(node["addresses"][0].as_str().context("no address")?.to_owned())
        })
    }

    /// Our node on this machine, outside of all namespaces.
    pub(crate) fn node_here(&self, name: &str, words: &[&str]) -> Result<Ours> {
        self.node(None, name, words)
    }

    /// Our node in a namespace of its own.
    pub(crate) fn node_apart(&self, name: &str, words: &[&str]) -> Result<Ours> {
        self.node(Some(self.bridge.join(name)?), name, words)
    }

    fn node(&self, namespace: Option<Namespace>, name: &str, words: &[&str]) -> Result<Ours> {
        let dir = self.folder(name)?;
        let mut command = match &namespace {
            Some(namespace) => namespace.command(workspace::tailwharf()),
            None => Command::new(workspace::tailwharf()),
        };
        command
            .args([
                "node",
                "--login-server",
                self.tailnet.url(),
                "--hostname",
                name,
                "--state",
            ])
            .arg(dir.join("node.json"))
            .args(words)
            .env("TS_AUTHKEY", self.auth_key()?);
        let process = Process::start(name, &mut command, &dir.join("node.log"))?;
        Ok(Ours { process, namespace })
    }

    /// An official node in a namespace of its own, with a TUN device or without.
    pub(crate) fn official(
        &self,
        name: &str,
        tun: bool,
        variables: &[(&str, &str)],
    ) -> Result<OfficialClient> {
        let (namespace, dir) = (self.bridge.join(name)?, self.folder(name)?);
        let client = match tun {
            true => OfficialClient::start_with(namespace, &dir, variables)?,
            false => OfficialClient::start_userspace(namespace, &dir, variables)?,
        };
        client.join(self.tailnet.url(), &self.auth_key()?, name)?;
        Ok(client)
    }
}

/// Our node as a process.
pub(crate) struct Ours {
    // Dropped first: it lives in the namespace.
    pub(crate) process: Process,
    pub(crate) namespace: Option<Namespace>,
}

impl Ours {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}
