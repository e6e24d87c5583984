//! How soon a node is there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::wait::eventually;

use crate::figures::{Bar, Figures};
use crate::tools::{PORT, serve};
use crate::world::World;

const STARTS: usize = 5;
const FORWARD: &str = "127.0.0.1:17001";
/// How often is looked for what is awaited: a small part of what is measured.
const LOOK: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn measure(figures: &mut Figures, world: &World) -> Result<()> {
    let target = world.node_here("target", &["--serve", &format!("{PORT}=127.0.0.1:{PORT}")])?;
    let _server = serve(None, world.dir.path(), "server")?;
    world.address("target")?;
    let forward = format!("{FORWARD}=target:{PORT}");
    let (mut online, mut answers) = (Vec::new(), Vec::new());
    for start in 0..=STARTS {
        let began = Instant::now();
        let node = world.node_here("starter", &["--forward", &forward])?;
        let seen = node.process.log().matches(" online").count();
        let at = eventually("the node is online", || {
            let log = node.process.log();
            ensure!(log.matches(" online").count() > seen, "not yet");
            Ok(began.elapsed())
        });
        let at = at.with_context(|| node.process.log_end(5))?;
        let answered = first_byte(began)?;
        // The first start registers the node, and has no state.
        if start > 0 {
            online.push(at.as_secs_f64());
            answers.push(answered.as_secs_f64());
        }
        node.process.stop()?;
    }
    target.process.stop()?;
    for (name, times, bar) in [("to_online", online, 0.4), ("to_first_byte", answers, 0.5)] {
        figures.add(
            &format!("node.start.{name}"),
            median(times),
            "s",
            None,
            Some(Bar::AtMost(bar)),
        );
    }
    Ok(())
}

/// Asks again and again until something comes back through the node.
fn first_byte(began: Instant) -> Result<Duration> {
    let forward: SocketAddr = FORWARD.parse()?;
    while began.elapsed() < PATIENCE {
        let asked = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(forward)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b".")?;
            stream.read_exact(&mut [0])
        };
        if asked().is_ok() {
            return Ok(began.elapsed());
        }
        #[expect(clippy::disallowed_methods, reason = "a thread that measures, in no runtime")]
        std::thread::sleep(LOOK);
    }
    anyhow::bail!("nothing came back")
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
