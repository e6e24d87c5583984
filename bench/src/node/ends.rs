//! The machines of a measurement: a tailnet of ours, and nodes of both kinds in namespaces of their own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tailwharf_testkit::process::Process;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Bridge, Namespace, OfficialClient, Tailnet, workspace};
use tempfile::TempDir;

const POLICY: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// A coordinator with its relay, and room for nodes around it.
pub(super) struct World {
    pub(super) tailnet: Tailnet,
    pub(super) bridge: Bridge,
    pub(super) dir: TempDir,
}

impl World {
    pub(super) fn start() -> Result<Self> {
        Self::with("")
    }

    /// With further tables in the coordinator's configuration.
    pub(super) fn with(more: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tailwharf-bench-").tempdir()?;
        let bridge = Bridge::create()?;
        let tailnet = Tailnet::start_with(bridge.host(), &dir.path().join("coordinator"), POLICY, more)?;
        Ok(Self { tailnet, bridge, dir })
    }

    pub(super) fn auth_key(&self) -> Result<String> {
        self.tailnet.user_key("bench@example.com", "admin")
    }

    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The first address of a node of the tailnet.
    pub(super) fn address(&self, name: &str) -> Result<String> {
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
    pub(super) fn node_here(&self, name: &str, words: &[&str]) -> Result<Ours> {
        self.node(None, name, words)
    }

    /// Our node in a namespace of its own.
    pub(super) fn node_apart(&self, name: &str, words: &[&str]) -> Result<Ours> {
        self.node(Some(self.bridge.join(name)?), name, words)
    }

    fn node(&self, namespace: Option<Namespace>, name: &str, words: &[&str]) -> Result<Ours> {
        let dir = self.folder(name)?;
        let mut command = match &namespace {
            Some(namespace) => namespace.command(workspace::tailwharf()),
            None => std::process::Command::new(workspace::tailwharf()),
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
    pub(super) fn official(
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
pub(super) struct Ours {
    // Dropped first: it lives in the namespace.
    pub(super) process: Process,
    pub(super) namespace: Option<Namespace>,
}

impl Ours {
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Two nodes of one kind with TUN devices, the second of which is sent to.
pub(super) struct Pair {
    // Dropped first, because it lives in a namespace of one of the nodes.
    _server: Process,
    ends: Ends,
    pub(super) pids: Vec<u32>,
    /// Where the server is, through the tunnel.
    pub(super) to: String,
}

enum Ends {
    Ours([Ours; 2]),
    Theirs([OfficialClient; 2]),
}

impl Pair {
    pub(super) fn ours(world: &World, words: &[&str]) -> Result<Self> {
        let words = [&["--tun"], words].concat();
        let near = world.node_apart("our-near", &words)?;
        let far = world.node_apart("our-far", &words)?;
        let pids = vec![near.pid(), far.pid()];
        let server = crate::tools::serve(far.namespace.as_ref(), world.dir.path(), "far-server")?;
        Self::ready(server, Ends::Ours([near, far]), pids, &world.address("our-far")?)
    }

    pub(super) fn theirs(world: &World, variables: &[(&str, &str)]) -> Result<Self> {
        let near = world.official("their-near", true, variables)?;
        let far = world.official("their-far", true, variables)?;
        let pids = vec![near.pid(), far.pid()];
        let server = crate::tools::serve(Some(far.namespace()), world.dir.path(), "far-server")?;
        let address = far.address()?;
        Self::ready(server, Ends::Theirs([near, far]), pids, &address)
    }

    fn ready(server: Process, ends: Ends, pids: Vec<u32>, address: &str) -> Result<Self> {
        let pair = Self {
            _server: server,
            ends,
            pids,
            to: format!("{address}:{}", crate::tools::PORT),
        };
        eventually("the other end answers", || {
            crate::tools::flood(pair.near(), &["answer", &pair.to, "0.1"]).map(drop)
        })?;
        // Time for a direct path, and for buffers to grow.
        crate::tools::flood(pair.near(), &["stream", &pair.to, "to", "1", "2"])?;
        Ok(pair)
    }

    /// Where the sender is.
    pub(super) fn near(&self) -> Option<&Namespace> {
        match &self.ends {
            Ends::Ours([near, _]) => near.namespace.as_ref(),
            Ends::Theirs([near, _]) => Some(near.namespace()),
        }
    }
}

/// The pid of the coordinator of a tailnet, which carries its relay.
pub(super) fn coordinator(tailnet: &Tailnet) -> Result<u32> {
    let record = tailnet.record()?;
    let pid = record.split_whitespace().next().context("an empty record")?;
    Ok(pid.parse()?)
}

/// The private node key in `node.json`, which has the layout of `tailscaled`.
pub(super) fn node_key(dir: &Path) -> Result<String> {
    let text = fs::read_to_string(dir.join("node.json"))?;
    let file: serde_json::Value = serde_json::from_str(&text)?;
    let value = |name: &str| -> Result<Vec<u8>> {
        let encoded = file[name].as_str().with_context(|| format!("no {name}"))?;
        Ok(BASE64_STANDARD.decode(encoded)?)
    };
    let current = String::from_utf8(value("_current-profile")?)?;
    let profile: serde_json::Value = serde_json::from_slice(&value(&current)?)?;
    let key = profile["Config"]["PrivateNodeKey"].as_str();
    Ok(key.context("no node key")?.to_owned())
}
