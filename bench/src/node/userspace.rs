//! A node without a TUN device that forwards TCP to a local server, and a client with one.

use anyhow::{Result, ensure};
use tailwharf_testkit::Namespace;
use tailwharf_testkit::process::Process;
use tailwharf_testkit::wait::eventually;

use crate::figures::{Bar, Figures};
use crate::tools::{Carried, PORT, flood, held, high_water, number, said, serve, stream, within};
use crate::world::{Ours, World};

const IDLE: usize = 5_000;

/// Streams of each measurement, and their way as seen by the client.
const STREAMS: [(&str, usize); 4] = [("to", 1), ("to", 4), ("from", 1), ("from", 4)];

struct Measured {
    streams: Vec<Carried>,
    connections: f64,
    hung: f64,
    memory: f64,
}

/// Both ends, as far as they are measured.
struct Ends<'a> {
    client: Option<&'a Namespace>,
    to: String,
    pids: [u32; 2],
}

pub(super) fn measure(figures: &mut Figures, world: &World) -> Result<()> {
    let theirs = theirs(world)?;
    let (client, proxy, _server) = ours_started(world)?;
    let ends = Ends {
        client: client.namespace.as_ref(),
        to: format!("{}:{PORT}", world.address("our-proxy")?),
        pids: [client.pid(), proxy.pid()],
    };
    let ours = look(&ends)?;
    for (((way, count), ours), theirs) in STREAMS.into_iter().zip(&ours.streams).zip(&theirs.streams) {
        let name = format!("node.userspace.tcp_{way}_{count}");
        figures.add(
            &name,
            ours.gbits,
            "Gbit/s",
            Some(theirs.gbits),
            Some(Bar::RatioAtLeast(2.2)),
        );
        figures.add(
            &format!("{name}_cpu"),
            ours.cost,
            "s/GB",
            Some(theirs.cost),
            Some(Bar::RatioAtMost(0.45)),
        );
    }
    figures.add(
        "node.userspace.memory",
        ours.memory,
        "MiB",
        Some(theirs.memory),
        Some(Bar::AtMost(64.0)),
    );
    figures.add(
        "node.userspace.connections",
        ours.connections,
        "1/s",
        Some(theirs.connections),
        Some(Bar::RatioAtLeast(3.0)),
    );
    figures.add(
        "node.userspace.connections_hung",
        ours.hung,
        "",
        Some(theirs.hung),
        Some(Bar::AtMost(0.0)),
    );
    idle(figures, world, &ends, ours.streams[0])
}

fn theirs(world: &World) -> Result<Measured> {
    let client = world.official("their-client", true, &[])?;
    let proxy = world.official("their-proxy", false, &[])?;
    let _server = serve(Some(proxy.namespace()), world.dir.path(), "proxy-server")?;
    let target = format!("tcp://127.0.0.1:{PORT}");
    proxy.run(&["serve", "--bg", "--yes", "--tcp", &PORT.to_string(), &target])?;
    look(&Ends {
        client: Some(client.namespace()),
        to: format!("{}:{PORT}", proxy.address()?),
        pids: [client.pid(), proxy.pid()],
    })
}

fn ours_started(world: &World) -> Result<(Ours, Ours, Process)> {
    let client = world.node_apart("our-client", &["--tun"])?;
    let serves = format!("{PORT}=127.0.0.1:{PORT}");
    let proxy = world.node_apart("our-proxy", &["--serve", &serves])?;
    let server = serve(proxy.namespace.as_ref(), world.dir.path(), "proxy-server")?;
    Ok((client, proxy, server))
}

fn look(ends: &Ends<'_>) -> Result<Measured> {
    eventually("the proxy answers", || {
        flood(ends.client, &["answer", &ends.to, "0.1"]).map(drop)
    })?;
    flood(ends.client, &["stream", &ends.to, "to", "1", "1"])?;
    let mut streams = Vec::new();
    for (way, count) in STREAMS {
        streams.push(stream(ends.client, &ends.to, way, count, &ends.pids)?);
    }
    let memory = high_water(ends.pids[1])?;
    let opened = flood(ends.client, &["connect", &ends.to, "16", "60"])?;
    Ok(Measured {
        streams,
        memory,
        connections: number(&opened, "done")? / number(&opened, "seconds")?,
        hung: number(&opened, "hung")? + number(&opened, "failed")?,
    })
}

/// What open connections cost that carry nothing.
fn idle(figures: &mut Figures, world: &World, ends: &Ends<'_>, alone: Carried) -> Result<()> {
    let before = held(ends.pids[1])?;
    let mut command = within(ends.client, "flood");
    command.args(["idle", &ends.to, &IDLE.to_string()]);
    let open = Process::start("idle", &mut command, &world.dir.path().join("idle.log"))?;
    said(&open, "{}", std::time::Duration::from_secs(60))?;
    let each = (held(ends.pids[1])? - before) * 1024.0 / IDLE as f64;
    figures.add(
        "node.userspace.idle_connection",
        each,
        "KiB",
        None,
        Some(Bar::AtMost(20.0)),
    );
    let beside = stream(ends.client, &ends.to, "to", 1, &ends.pids)?;
    ensure!(beside.gbits > 0.0, "nothing was carried beside idle connections");
    figures.add(
        "node.userspace.flow_beside_idle",
        beside.gbits,
        "Gbit/s",
        Some(alone.gbits),
        Some(Bar::RatioAtLeast(0.9)),
    );
    open.stop()
}
