//! pebble, the ACME server by which Let's Encrypt lets clients be tested.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use crate::process::{Process, run};
use crate::wait::eventually;
use crate::workspace;

/// A running pebble.
#[derive(Debug)]
pub struct Pebble {
    /// The server.
    pub process: Process,
    /// Its log.
    pub log: PathBuf,
    /// The URL of its directory.
    pub directory: String,
    /// The certificate that its own server shows, as PEM.
    pub trust: String,
    /// Where its root is, below `/roots/0`.
    pub management: SocketAddr,
}

impl Pebble {
    /// Starts one that asks `dns` for names and proofs, looks for pages at `http_port`, and issues nothing for the `refused`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path, dns: SocketAddr, http_port: u16, refused: &[String]) -> Result<Self> {
        let shown = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let (certificate, key) = (dir.join("pebble.crt"), dir.join("pebble.key"));
        fs::write(&certificate, shown.cert.pem())?;
        fs::write(&key, shown.signing_key.serialize_pem())?;
        let (listen, management) = (free()?, free()?);
        let config = json!({"pebble": {
            "listenAddress": listen,
            "managementListenAddress": management,
            "certificate": certificate,
            "privateKey": key,
            "httpPort": http_port,
            "tlsPort": 5001,
            "domainBlocklist": refused,
            "keyAlgorithm": "ecdsa",
            "profiles": {"default": {"description": "The one", "validityPeriod": 7_776_000}},
        }});
        let (file, log) = (dir.join("pebble.json"), dir.join("pebble.log"));
        fs::write(&file, config.to_string())?;
        let mut command = Command::new(workspace::pebble());
        command
            .arg("-config")
            .arg(&file)
            .args(["-dnsserver", &dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            // Clients have to bear it: one nonce of ten is refused.
            .env("PEBBLE_WFE_NONCEREJECT", "10");
        let mut process = Process::start("pebble", &mut command, &log)?;
        let directory = format!("https://localhost:{}/dir", listen.port());
        eventually("pebble answers", || {
            process.alive()?;
            let mut curl = Command::new("curl");
            curl.args(["-sSf", "--max-time", "2", "--cacert"])
                .arg(&certificate);
            run(curl.arg(&directory)).map(drop)
        })?;
        Ok(Self {
            process,
            log,
            directory,
            trust: shown.cert.pem(),
            management,
        })
    }

    /// The largest number that it has told of as "There are now N <things> in the db": accounts, orders.
    #[must_use]
    pub fn count(&self, things: &str) -> usize {
        let log = self.process.log();
        let numbers = log.lines().filter_map(|line| {
            let (number, rest) = line.split_once("There are now ")?.1.split_once(' ')?;
            rest.starts_with(things).then(|| number.parse().ok())?
        });
        numbers.max().unwrap_or_default()
    }

    /// The root of the certificates that it issues, as PEM.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn root(&self) -> Result<String> {
        let url = format!("https://{}/roots/0", self.management);
        run(Command::new("curl").args(["-sSfk", "--max-time", "5", &url]))
    }
}

/// An address of loopback that nobody listens on.
///
/// # Errors
/// When the system gives none.
pub fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
