//! Which clusters this machine's node knows: those that the tailnet publishes to it, and the proxies among its peers.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use tailwharf_node::local::{LocalError, ask_status};
use tailwharf_wire::cluster::{CAPABILITY, ClusterDefinition};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::target::Target;
use crate::args::KubeconfigArgs;
use crate::settings;

/// Longest answer of Tailscale's client.
const MAX_ANSWER: u64 = 64 << 20;

/// What the node of this machine knows.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What the tailnet publishes, as it is written.
    published: Vec<Value>,
    devices: Vec<Device>,
}

#[derive(Debug)]
struct Device {
    fqdn: String,
    addresses: Vec<IpAddr>,
    tags: Vec<String>,
}

/// What Tailscale's client tells of its state.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    backend_state: String,
    #[serde(rename = "Self")]
    own: Option<Peer>,
    #[serde(default)]
    peer: Option<HashMap<String, Peer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Peer {
    #[serde(rename = "DNSName", default)]
    dns_name: String,
    #[serde(rename = "TailscaleIPs", default)]
    addresses: Option<Vec<IpAddr>>,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    cap_map: Option<HashMap<String, Option<Vec<Value>>>>,
}

impl Known {
    /// Asks our node, and where none answers, Tailscale's client.
    ///
    /// # Errors
    /// When neither answers.
    pub(super) async fn ask(args: &KubeconfigArgs) -> Result<Self> {
        let ours = match ask_status(&settings::socket(args.socket.socket.as_deref())).await {
            Ok(report) => {
                let peers = report.peers.into_iter().map(|peer| Device {
                    fqdn: peer.fqdn,
                    addresses: peer.addresses,
                    tags: peer.tags,
                });
                let own = report.fqdn.map(|fqdn| Device {
                    fqdn,
                    addresses: report.addresses,
                    tags: Vec::new(),
                });
                return Ok(Self {
                    published: report.clusters,
                    devices: peers.chain(own).collect(),
                });
            }
            Err(error) => error,
        };
        let is_absent = matches!(ours, LocalError::Connect { .. }) && args.socket.socket.is_none();
        if is_absent && args.tailscaled_socket.exists() {
            return Self::of_tailscaled(&args.tailscaled_socket).await;
        }
        Err(ours.into())
    }

    async fn of_tailscaled(socket: &Path) -> Result<Self> {
        let asking = || format!("asking Tailscale's client at {}", socket.display());
        let mut stream = UnixStream::connect(socket).await.with_context(asking)?;
        // By HTTP/1.0 the answer ends with the connection, and comes in one piece.
        let question = "GET /localapi/v0/status HTTP/1.0\r\nHost: local-tailscaled.sock\r\n\r\n";
        stream.write_all(question.as_bytes()).await.with_context(asking)?;
        let mut answer = Vec::new();
        stream
            .take(MAX_ANSWER)
            .read_to_end(&mut answer)
            .await
            .with_context(asking)?;
        Self::read(&answer).with_context(asking)
    }

    /// Reads an answer of Tailscale's client.
    fn read(answer: &[u8]) -> Result<Self> {
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let (head, body) = answer.split_at(end.context("it does not answer in HTTP")? + 4);
        let code = head.split(|byte| *byte == b' ').nth(1);
        ensure!(
            code == Some(b"200"),
            "it answers: {}",
            String::from_utf8_lossy(body).trim()
        );
        let status: Status = serde_json::from_slice(body).context("its answer cannot be read")?;
        if status.backend_state != "Running" {
            bail!(
                "Tailscale is not running: it is in state {}",
                status.backend_state
            );
        }
        let mut known = Self::default();
        if let Some(map) = status.own.as_ref().and_then(|own| own.cap_map.as_ref()) {
            known.published = map.get(CAPABILITY).cloned().flatten().unwrap_or_default();
        }
        let peers = status.peer.unwrap_or_default().into_values().chain(status.own);
        known.devices = peers
            .map(|peer| Device {
                fqdn: peer.dns_name.trim_end_matches('.').to_owned(),
                addresses: peer.addresses.unwrap_or_default(),
                tags: peer.tags.unwrap_or_default(),
            })
            .collect();
        known.devices.sort_by(|one, other| one.fqdn.cmp(&other.fqdn));
        Ok(known)
    }

    /// The clusters that the tailnet publishes, and why others cannot be used.
    pub(super) fn published(&self) -> (Vec<Target>, Vec<String>) {
        let (mut good, mut bad) = (Vec::<Target>::new(), Vec::new());
        for value in &self.published {
            let read = serde_json::from_value::<ClusterDefinition>(value.clone());
            let checked = match read {
                Ok(definition) => definition
                    .check()
                    .map(|()| Target::defined(definition))
                    .map_err(|flaw| flaw.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match checked {
                Ok(target) if good.iter().any(|known| known.name == target.name) => {
                    bad.push(format!(
                        "{} is published twice; the first one counts",
                        target.name
                    ));
                }
                Ok(target) => good.push(target),
                Err(why) => {
                    let name = value["name"].as_str().unwrap_or_default();
                    bad.push(format!("the definition {name:?} cannot be used: {why}"));
                }
            }
        }
        (good, bad)
    }

    /// Published clusters, then the proxies among the peers that are none of those.
    pub(super) fn all(&self, proxy_tag: &str, http: bool) -> (Vec<Target>, Vec<String>) {
        let (mut all, bad) = self.published();
        let proxies = self
            .devices
            .iter()
            .filter(|device| device.tags.iter().any(|tag| tag == proxy_tag));
        for proxy in proxies {
            let target = Target::proxy(&proxy.fqdn, http);
            if !all.iter().any(|known| known.is_at(&proxy.fqdn)) {
                all.push(target);
            }
        }
        (all, bad)
    }

    /// The full name of a device, which is named by it, its first label, or an address.
    pub(super) fn device(&self, name: &str) -> Option<&str> {
        let address = name.parse().ok();
        let is_meant = |device: &&Device| {
            let short = device.fqdn.split('.').next().unwrap_or_default();
            short.eq_ignore_ascii_case(name)
                || device.fqdn.eq_ignore_ascii_case(name)
                || address.is_some_and(|address| device.addresses.contains(&address))
        };
        self.devices
            .iter()
            .find(is_meant)
            .map(|device| device.fqdn.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"HTTP/1.0 200 OK
Content-Type: application/json

{"BackendState": "Running",
 "Self": {"DNSName": "laptop.tail1234.ts.net.", "TailscaleIPs": ["100.64.0.2"], "CapMap": {
   "funnel": null,
   "tailwharf.dev/cap/cluster": [
     {"name": "edge", "server": "https://edge.tail1234.ts.net", "namespace": "shop", "user": {"exec": {"command": "kubelogin"}}},
     {"name": "bad", "server": "https://bad", "user": {"token": "t"}},
     {"name": "main", "server": "https://tailscale-operator.tail1234.ts.net:443"}
   ]}},
 "Peer": {
   "nodekey:1": {"DNSName": "tailscale-operator.tail1234.ts.net.", "TailscaleIPs": ["100.64.0.3"], "Tags": ["tag:k8s-operator"]},
   "nodekey:2": {"DNSName": "tailscale-operator-1.tail1234.ts.net.", "TailscaleIPs": ["100.64.0.4"], "Tags": ["tag:k8s-operator"]},
   "nodekey:3": {"DNSName": "web.tail1234.ts.net.", "TailscaleIPs": null}
 }}"#;

    #[test]
    fn clusters_are_those_that_are_published_and_the_proxies_among_the_peers() {
        let known = Known::read(ANSWER.replacen("\n\n", "\r\n\r\n", 1).as_bytes()).unwrap();
        let (all, bad) = known.all("tag:k8s-operator", false);
        let names: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(names, ["edge", "main", "tailscale-operator-1.tail1234.ts.net"]);
        assert!(bad.len() == 1 && bad[0].contains("token"), "{bad:?}");
        assert_eq!(
            known.device("100.64.0.4"),
            Some("tailscale-operator-1.tail1234.ts.net")
        );
        assert_eq!(known.device("WEB"), Some("web.tail1234.ts.net"));
        assert_eq!(known.device("tail1234"), None);
    }

    #[test]
    fn a_client_that_does_not_run_is_no_tailnet() {
        let stopped = "HTTP/1.0 200 OK\r\n\r\n{\"BackendState\": \"Stopped\"}";
        let error = Known::read(stopped.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("not running"), "{error}");
        let refused = "HTTP/1.0 403 Forbidden\r\n\r\nstatus access denied\n";
        let error = Known::read(refused.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("access denied"), "{error}");
        assert!(Known::read(b"junk").is_err());
    }
}
