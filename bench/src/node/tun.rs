//! Two nodes with TUN devices and a direct path between them.

use anyhow::{Result, ensure};

use super::ends::Pair;
use crate::figures::{Bar, Figures};
use crate::tools::{Carried, flood, high_water, number, stream};
use crate::world::World;

/// Bytes of a datagram.
const DATAGRAM: &str = "1200";
/// Datagrams a second that the search begins with, and how many steps it takes.
const FIRST_RATE: f64 = 20_000.0;
const STEPS: usize = 9;

/// What a pair can do.
struct Measured {
    one: Carried,
    four: Carried,
    /// Datagrams a second of which less than one percent is lost.
    datagrams: f64,
    idle_p50: f64,
    loaded_p50: f64,
    loaded_p99: f64,
    /// MiB of the larger end.
    memory: f64,
}

pub(super) fn measure(figures: &mut Figures, world: &World) -> Result<()> {
    let theirs = look(&Pair::theirs(world, &[])?)?;
    let ours = look(&Pair::ours(world, &[])?)?;
    let mut add = |name: &str, value: f64, unit: &str, peer: Option<f64>, bar: Bar| {
        figures.add(&format!("node.tun.{name}"), value, unit, peer, Some(bar));
    };
    for (name, ours, theirs) in [("tcp_1", ours.one, theirs.one), ("tcp_4", ours.four, theirs.four)] {
        add(
            name,
            ours.gbits,
            "Gbit/s",
            Some(theirs.gbits),
            Bar::RatioAtLeast(2.2),
        );
        let cost = format!("{name}_cpu");
        add(
            &cost,
            ours.cost,
            "s/GB",
            Some(theirs.cost),
            Bar::RatioAtMost(0.45),
        );
    }
    add(
        "udp_1200",
        ours.datagrams / 1e3,
        "k/s",
        Some(theirs.datagrams / 1e3),
        Bar::RatioAtLeast(5.0),
    );
    add(
        "rtt_loaded_p50",
        ours.loaded_p50 / 1e3,
        "ms",
        Some(theirs.loaded_p50 / 1e3),
        Bar::AtMost(2.0),
    );
    add(
        "rtt_loaded_p99",
        ours.loaded_p99 / 1e3,
        "ms",
        Some(theirs.loaded_p99 / 1e3),
        Bar::AtMost(5.0),
    );
    add(
        "rtt_idle_p50",
        ours.idle_p50,
        "us",
        Some(theirs.idle_p50),
        Bar::RatioAtMost(0.6),
    );
    add(
        "memory",
        ours.memory,
        "MiB",
        Some(theirs.memory),
        Bar::AtMost(25.0),
    );
    let plain = {
        let pair = Pair::ours(world, &["--no-offload", "all"])?;
        stream(pair.near(), &pair.to, "to", 1, &pair.pids)?
    };
    add(
        "tcp_1_no_offloads",
        plain.gbits,
        "Gbit/s",
        Some(theirs.one.gbits),
        Bar::RatioAtLeast(0.9),
    );
    Ok(())
}

fn look(pair: &Pair) -> Result<Measured> {
    let near = pair.near();
    let idle = flood(near, &["answer", &pair.to, "2"])?;
    let one = stream(near, &pair.to, "to", 1, &pair.pids)?;
    let four = stream(near, &pair.to, "to", 4, &pair.pids)?;
    let loaded = under_load(pair)?;
    let mut memory: f64 = 0.0;
    for pid in &pair.pids {
        memory = memory.max(high_water(*pid)?);
    }
    Ok(Measured {
        one,
        four,
        datagrams: datagrams(pair)?,
        idle_p50: number(&idle, "p50")?,
        loaded_p50: number(&loaded, "p50")?,
        loaded_p99: number(&loaded, "p99")?,
        memory,
    })
}

/// Round trips while one stream takes all it can.
fn under_load(pair: &Pair) -> Result<serde_json::Value> {
    std::thread::scope(|scope| {
        let load = scope.spawn(|| flood(pair.near(), &["stream", &pair.to, "to", "1", "3"]));
        let trips = flood(pair.near(), &["answer", &pair.to, "2.5"]);
        let carried = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        ensure!(number(&carried, "bytes")? > 0.0, "there was no load");
        trips
    })
}

/// The highest rate of datagrams with less than one percent lost: doubled until it fails, then halved in between.
fn datagrams(pair: &Pair) -> Result<f64> {
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut rate = FIRST_RATE;
    for _ in 0..STEPS {
        let result = flood(
            pair.near(),
            &["datagrams", &pair.to, DATAGRAM, &rate.to_string(), "0.8"],
        )?;
        let (sent, received) = (number(&result, "sent")?, number(&result, "received")?);
        let seconds = number(&result, "seconds")?;
        // A sender that cannot keep up proves nothing about a higher rate.
        if received > 0.99 * sent && sent > 0.9 * rate * seconds {
            low = rate;
        } else {
            high = rate;
        }
        rate = if high.is_finite() {
            (low + high) / 2.0
        } else {
            rate * 2.0
        };
        if high - low < 0.1 * high {
            break;
        }
    }
    Ok(low)
}
