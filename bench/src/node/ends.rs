//! Pairs of nodes with TUN devices, one kind or the other.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tailwharf_testkit::process::Process;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Namespace, OfficialClient, Tailnet};

use crate::tools::{PORT, flood, serve};
use crate::world::{Ours, World};

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
        let server = serve(far.namespace.as_ref(), world.dir.path(), "far-server")?;
        Self::ready(server, Ends::Ours([near, far]), pids, &world.address("our-far")?)
    }

    pub(super) fn theirs(world: &World, variables: &[(&str, &str)]) -> Result<Self> {
        let near = world.official("their-near", true, variables)?;
        let far = world.official("their-far", true, variables)?;
        let pids = vec![near.pid(), far.pid()];
        let server = serve(Some(far.namespace()), world.dir.path(), "far-server")?;
        let address = far.address()?;
        Self::ready(server, Ends::Theirs([near, far]), pids, &address)
    }

    fn ready(server: Process, ends: Ends, pids: Vec<u32>, address: &str) -> Result<Self> {
        let pair = Self {
            _server: server,
            ends,
            pids,
            to: format!("{address}:{}", PORT),
        };
        eventually("the other end answers", || {
            flood(pair.near(), &["answer", &pair.to, "0.1"]).map(drop)
        })?;
        // Time for a direct path, and for buffers to grow.
        flood(pair.near(), &["stream", &pair.to, "to", "1", "2"])?;
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
