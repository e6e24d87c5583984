//! The coordinator gets the certificate of its own address from pebble, proved by a page at its port for the authority.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use tailwharf_coordinator::Config;
use tailwharf_nameserver::Settings;
use tailwharf_testkit::pebble::{Pebble, free};
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NAME: &str = "hub.example.com";

fn main() -> ExitCode {
    tailwharf_e2e::run(
        &[Need::Pebble],
        Fixture::start,
        &[
            (
                "it_tries_again_when_refused_and_listens_with_the_certificate_that_it_gets",
                ordered,
            ),
            (
                "it_starts_with_the_certificate_of_before_when_the_authority_is_away",
                kept,
            ),
        ],
    )
}

struct Fixture {
    pebble: Option<Pebble>,
    config: Config,
    running: Option<(CancellationToken, JoinHandle<Result<()>>)>,
    /// The authority's root, as a file.
    root: PathBuf,
    /// What the nameserver knows, nothing at first.
    records: PathBuf,
    nameserver: CancellationToken,
    runtime: Runtime,
    dir: TempDir,
}

impl Fixture {
    fn start() -> Result<Self> {
        let runtime = Runtime::new()?;
        let dir = tempfile::tempdir()?;
        let (dns, pages, listen) = (free()?, free()?, free()?);
        let records = dir.path().join("records.json");
        fs::write(&records, r#"{"version": "v1alpha1", "ip4": {}}"#)?;
        let nameserver = CancellationToken::new();
        let settings = Settings {
            listen: dns,
            records: records.clone(),
        };
        runtime.spawn(tailwharf_nameserver::run(settings, nameserver.clone()));
        let pebble = Pebble::start(dir.path(), dns, pages.port(), &[])?;
        let root = dir.path().join("root.pem");
        fs::write(&root, pebble.root()?)?;
        let config = configuration(dir.path(), listen, pages, &pebble.directory)?;
        Ok(Self {
            pebble: Some(pebble),
            config,
            running: None,
            root,
            records,
            nameserver,
            runtime,
            dir,
        })
    }

    fn run(&mut self) {
        let stop = CancellationToken::new();
        let running = self
            .runtime
            .spawn(tailwharf_funnel::run(self.config.clone(), stop.clone()));
        self.running = Some((stop, running));
    }

    fn stop(&mut self) -> Result<()> {
        let (stop, running) = self.running.take().context("it does not run")?;
        stop.cancel();
        self.runtime.block_on(running)?
    }

    /// Asks the coordinator something at its name, trusting the authority alone.
    fn healthy(&self) -> Result<String> {
        let port = self.config.listen.port();
        eventually("the coordinator answers under its name", || {
            let mut curl = Command::new("curl");
            curl.args([
                "-sSf",
                "--max-time",
                "2",
                "--resolve",
                &format!("{NAME}:{port}:127.0.0.1"),
                "--cacert",
            ])
            .arg(&self.root);
            run(curl.arg(format!("https://{NAME}:{port}/health")))
        })
    }

    fn certificate(&self) -> Result<String> {
        Ok(fs::read_to_string(self.config.acme_file())?)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.nameserver.cancel();
    }
}

fn configuration(dir: &Path, listen: SocketAddr, pages: SocketAddr, directory: &str) -> Result<Config> {
    let data = dir.join("data");
    let shown = dir.join("pebble.crt");
    let text = format!(
        r#"
        server_url = "https://{NAME}:{port}"
        listen = "{listen}"
        data_dir = "{data}"
        magic_dns_suffix = "tail1234.ts.net"
        [acme]
        directory = "{directory}"
        listen = "{pages}"
        ca_file = "{shown}"
        [relay]
        enabled = false
        "#,
        port = listen.port(),
        data = data.display(),
        shown = shown.display(),
    );
    Ok(Config::parse(&text, &dir.join("coordinator.toml"))?)
}

fn ordered(fixture: &mut Fixture) -> Result<()> {
    fixture.run();
    let log = fixture.pebble.as_ref().context("pebble runs")?.log.clone();
    eventually("the authority refuses, as nothing has the name", || {
        let log = fs::read_to_string(&log)?;
        ensure!(log.contains("set INVALID"), "no order failed");
        Ok(())
    })?;
    ensure!(!fixture.config.acme_file().exists(), "a certificate of whom?");
    let known = format!(r#"{{"version": "v1alpha1", "ip4": {{"{NAME}": ["127.0.0.1"]}}}}"#);
    fs::write(&fixture.records, known)?;
    fixture.healthy().with_context(|| {
        let pebble = fixture.pebble.as_ref().map(|pebble| pebble.process.log_end(20));
        format!("pebble: {}", pebble.unwrap_or_default())
    })?;
    fixture.stop()
}

fn kept(fixture: &mut Fixture) -> Result<()> {
    let before = fixture.certificate()?;
    let pebble = fixture.pebble.take().context("pebble runs")?;
    pebble.process.stop()?;
    fixture.run();
    fixture.healthy()?;
    fixture.stop()?;
    ensure!(fixture.certificate()? == before, "another certificate");
    ensure!(
        fixture.dir.path().join("data/acme-account.der").exists(),
        "no account"
    );
    Ok(())
}
