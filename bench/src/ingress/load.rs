//! HTTPS from an official client with a TUN device to our proxy, and to `tailscale serve` of an official node without one. Both have the same server
//! beside them and take turns.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::tailnet::SUFFIX;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Namespace, OfficialClient};

use super::stage::{Control, Stage, endpoints, ingress, service};
use crate::figures::{Bar, Figures};
use crate::tools::{Cost, high_water, number, web_serve, within};
use crate::world::World;

/// Where the servers behind the proxies listen.
const BACKEND: u16 = 7_080;
/// Turns of each side.
const ROUNDS: usize = 4;
const SECONDS: &str = "4";
/// What is asked for, on how many connections.
const SMALL: Work = Work {
    path: "/small",
    connections: "64",
};
const LARGE: Work = Work {
    path: "/large",
    connections: "8",
};
/// Names of the devices.
const OURS: &str = "web";
const THEIRS: &str = "their-web";

#[derive(Clone, Copy)]
struct Work {
    path: &'static str,
    connections: &'static str,
}

/// One side as the client sees it.
struct Side<'a> {
    client: &'a Namespace,
    /// `address:port`, name and root of the server.
    server: [String; 3],
    /// The proxy's process.
    pid: u32,
}

/// What came of all turns of one kind of work.
#[derive(Default)]
struct Sum {
    requests: f64,
    bytes: f64,
    errors: f64,
    seconds: f64,
    /// Processor seconds of the proxy.
    cost: f64,
    /// The worst of all turns, in microseconds.
    p99: f64,
}

impl Side<'_> {
    fn ask(&self, work: Work, seconds: &str) -> Result<Value> {
        let [to, name, root] = &self.server;
        let mut command = within(Some(self.client), "gets");
        command
            .arg(format!("https://{name}{}", work.path))
            .args([to, root, work.connections, seconds]);
        let text = run(&mut command)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Answers, and warm: paths are direct, buffers have grown.
    fn warm(&self) -> Result<()> {
        eventually("the device answers", || self.ask(SMALL, "0.2").map(drop))?;
        self.ask(LARGE, "2").map(drop)
    }

    fn turn(&self, work: Work, sum: &mut Sum) -> Result<()> {
        let cost = Cost::of(&[self.pid])?;
        let result = self.ask(work, SECONDS)?;
        sum.cost += cost.so_far()?;
        sum.requests += number(&result, "requests")?;
        sum.bytes += number(&result, "bytes")?;
        sum.errors += number(&result, "failed")?;
        sum.seconds += number(&result, "seconds")?;
        sum.p99 = sum.p99.max(number(&result, "p99")?);
        ensure!(sum.requests > 0.0, "nothing was answered");
        Ok(())
    }
}

/// Another official node, which serves.
struct Theirs {
    // Dropped first: it lives in the node's namespace.
    _backend: Process,
    node: OfficialClient,
}

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let world = World::start()?;
    let root = world.dir.path().join("root.pem");
    std::fs::write(&root, world.tailnet.root_certificate()?)?;
    let (id, secret) = world.tailnet.oauth_client("tag:k8s-operator")?;
    let control = Control {
        url: world.tailnet.url(),
        client_id: &id,
        client_secret: &secret,
        acme: None,
    };
    let stage = Stage::start(world.dir.path(), world.bridge.host(), &control)?;
    let client = world.official("client", true, &[])?;
    let theirs = theirs(&world, &root)?;
    let place = world.bridge.join("proxy")?;
    let _backend = web_serve(Some(&place), place.address(), BACKEND, "ours", world.dir.path())?;
    let proxy = stage.proxy(Some(&place), place.address(), None)?;
    stage.apply(&[
        service("web"),
        endpoints("web", &[place.address()], BACKEND),
        ingress(OURS, "web"),
    ])?;
    stage.ready(OURS).with_context(|| proxy.log_end(10))?;

    let side = |name: &str, pid| -> Result<Side<'_>> {
        let to = format!("{}:443", world.address(name)?);
        Ok(Side {
            client: client.namespace(),
            server: [to, format!("{name}.{SUFFIX}"), root.display().to_string()],
            pid,
        })
    };
    let (ours, theirs) = (side(OURS, proxy.pid())?, side(THEIRS, theirs.node.pid())?);
    ours.warm()?;
    theirs.warm()?;
    for (work, add) in [(SMALL, small as fn(&mut Figures, &Sum, &Sum)), (LARGE, large)] {
        let (mut us, mut them) = (Sum::default(), Sum::default());
        for _ in 0..ROUNDS {
            theirs.turn(work, &mut them)?;
            ours.turn(work, &mut us)?;
        }
        add(figures, &us, &them);
        let errors = format!("ingress.load.errors{}", work.path.replace('/', "_"));
        figures.add(&errors, us.errors, "", Some(them.errors), Some(Bar::AtMost(0.0)));
    }
    figures.add(
        "ingress.load.memory",
        high_water(ours.pid)?,
        "MiB",
        Some(high_water(theirs.pid)?),
        Some(Bar::AtMost(64.0)),
    );
    proxy.stop()
}

fn theirs(world: &World, root: &Path) -> Result<Theirs> {
    let (directory, root) = (
        format!("{}/acme/directory", world.tailnet.url()),
        root.display().to_string(),
    );
    let variables = [
        ("TS_DEBUG_ACME_DIRECTORY_URL", directory.as_str()),
        ("SSL_CERT_FILE", root.as_str()),
    ];
    let node = world.official(THEIRS, false, &variables)?;
    let place = node.namespace();
    let backend = web_serve(
        Some(place),
        "127.0.0.1".parse()?,
        BACKEND,
        "theirs",
        world.dir.path(),
    )?;
    let target = format!("http://127.0.0.1:{BACKEND}");
    node.run(&["serve", "--bg", "--yes", "--https=443", &target])?;
    Ok(Theirs {
        _backend: backend,
        node,
    })
}

fn small(figures: &mut Figures, ours: &Sum, theirs: &Sum) {
    let rate = |sum: &Sum| sum.requests / sum.seconds;
    figures.add(
        "ingress.load.small_gets",
        rate(ours),
        "1/s",
        Some(rate(theirs)),
        Some(Bar::RatioAtLeast(2.5)),
    );
    let cost = |sum: &Sum| sum.cost / sum.requests * 1e6;
    figures.add(
        "ingress.load.small_gets_cpu",
        cost(ours),
        "us",
        Some(cost(theirs)),
        Some(Bar::RatioAtMost(0.25)),
    );
    figures.add(
        "ingress.load.small_gets_p99",
        ours.p99 / 1e3,
        "ms",
        Some(theirs.p99 / 1e3),
        None,
    );
}

fn large(figures: &mut Figures, ours: &Sum, theirs: &Sum) {
    let rate = |sum: &Sum| sum.bytes * 8.0 / sum.seconds / 1e9;
    figures.add(
        "ingress.load.bodies_1mib",
        rate(ours),
        "Gbit/s",
        Some(rate(theirs)),
        Some(Bar::RatioAtLeast(1.8)),
    );
    let cost = |sum: &Sum| sum.cost / (sum.bytes / 1e9);
    figures.add(
        "ingress.load.bodies_1mib_cpu",
        cost(ours),
        "s/GB",
        Some(cost(theirs)),
        None,
    );
}
