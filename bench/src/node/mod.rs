//! The node and the relay: what packets, connections, identities and peers cost, beside the official ones in the same run.

mod crowd;
mod ends;
mod relay;
mod starting;
mod tun;
mod userspace;

use anyhow::{Result, bail, ensure};
use tailwharf_testkit::requirements::{Need, unmet};

use crate::Area;
use crate::figures::Figures;
use crate::world::World;

/// Each in a tailnet of its own.
pub(crate) const AREAS: [Area; 5] = [
    ("node.relay", |figures| measure(figures, relay::measure)),
    ("node.start", |figures| measure(figures, starting::measure)),
    ("node.tun", |figures| measure(figures, tun::measure)),
    ("node.userspace", |figures| measure(figures, userspace::measure)),
    ("node.crowd", |figures| measure(figures, crowd::measure)),
];

fn measure(figures: &mut Figures, area: impl Fn(&mut Figures, &World) -> Result<()>) -> Result<()> {
    let needs = [Need::Root, Need::OfficialClient, Need::Binary];
    if let Some(reason) = unmet(&needs) {
        bail!("this machine cannot run it: {reason}");
    }
    for tool in ["flood", "crowd"] {
        ensure!(
            crate::tools::path(tool).exists(),
            "{} is missing: run `make bench-tools`",
            crate::tools::path(tool).display()
        );
    }
    area(figures, &World::start()?)
}
