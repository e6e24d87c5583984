//! Network namespaces joined by a bridge: several machines on one.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};

use crate::process::run;

/// The private ranges that a bridge may take: 192.168.N.0/24.
const RANGES: std::ops::Range<u8> = 234..250;

/// A bridge of the host with a private IPv4 range; the host is `.1`.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    range: u8,
    next: AtomicU8,
    owned: bool,
}

impl Bridge {
    /// Makes a bridge with a range that no other run uses.
    ///
    /// # Errors
    /// When there is no free range, or without root.
    pub fn create() -> Result<Self> {
        for range in RANGES {
            let name = format!("twl{range}");
            let made = run(Command::new("ip").args(["link", "add", &name, "type", "bridge"]));
            if made.is_ok() {
                let bridge = Self {
                    name,
                    range,
                    next: AtomicU8::new(10),
                    owned: true,
                };
                ip(&format!("addr add {}/24 dev {}", bridge.host(), bridge.name))?;
                ip(&format!("link set {} up", bridge.name))?;
                return Ok(bridge);
            }
        }
        anyhow::bail!(
            "no bridge could be made: it needs root, and one free range of 192.168.234.0/24 to 192.168.249.0/24"
        )
    }

    /// The bridge of the clusters, 192.168.233.0/24; namespaces join it from `.200` on.
    ///
    /// # Errors
    /// When no cluster is up.
    pub fn of_clusters() -> Result<Self> {
        ip("link show twh0").context("no cluster is up")?;
        Ok(Self {
            name: "twh0".to_owned(),
            range: 233,
            next: AtomicU8::new(200),
            owned: false,
        })
    }

    /// The host's address on the bridge.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.range, 1)
    }

    /// Makes a namespace with an address on the bridge and a default route to the host.
    ///
    /// # Errors
    /// When an `ip` command fails.
    pub fn join(&self, role: &str) -> Result<Namespace> {
        let octet = self.next.fetch_add(1, Ordering::Relaxed);
        ensure!(octet < 250, "too many namespaces on {}", self.name);
        let name = format!("tw{}-{role}", self.range);
        let namespace = Namespace {
            link: format!("twv{}-{octet}", self.range),
            address: Ipv4Addr::new(192, 168, self.range, octet),
            name,
        };
        namespace.join(self)?;
        Ok(namespace)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if self.owned {
            let _ = ip(&format!("link del {}", self.name));
        }
    }
}

/// A network namespace: one machine of a test. Dropping it removes its interfaces; its processes must have ended.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    link: String,
    address: Ipv4Addr,
}

impl Namespace {
    /// One without interfaces, not made yet.
    pub(crate) fn inner(name: String, address: Ipv4Addr) -> Self {
        Self {
            name,
            link: String::new(),
            address,
        }
    }

    /// Makes it, with a resolver configuration of its own.
    pub(crate) fn create(&self) -> Result<()> {
        let name = &self.name;
        // What a killed run left under our name is ours to remove.
        let _ = ip(&format!("netns del {name}"));
        fs::create_dir_all(self.etc())?;
        fs::write(
            self.etc().join("resolv.conf"),
            "# no resolver beyond the tailnet\n",
        )?;
        ip(&format!("netns add {name}"))
    }

    fn join(&self, bridge: &Bridge) -> Result<()> {
        let (name, link, address) = (&self.name, &self.link, self.address);
        let _ = ip(&format!("link del {link}"));
        self.create()?;
        ip(&format!("link add {link} type veth peer name eth0 netns {name}"))?;
        ip(&format!("link set {link} master {} up", bridge.name))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} route add default via {}", bridge.host()))
    }

    /// The address on the bridge.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The name by which `ip netns exec` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `program` inside, with a resolver configuration of its own.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Lets programs inside trust the certificate authority with this root, and no other.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn trust(&self, root: &str) -> Result<()> {
        let certificates = self.etc().join("ssl/certs");
        fs::create_dir_all(&certificates)?;
        fs::write(certificates.join("ca-certificates.crt"), root)
            .with_context(|| format!("{}", certificates.display()))
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.link.is_empty() {
            let _ = ip(&format!("link del {}", self.link));
        }
        let _ = ip(&format!("netns del {}", self.name));
        let _ = fs::remove_dir_all(self.etc());
    }
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split_whitespace())).map(drop)
}
