//! The node and the relay: what packets, connections, identities and peers cost, beside the official ones in the same run.

mod crowd;
mod ends;
mod relay;
mod starting;
mod tools;
mod tun;
mod userspace;

use anyhow::{Result, bail, ensure};
use tailwharf_testkit::requirements::{Need, unmet};

use self::ends::World;
use crate::figures::Figures;

/// One thing after the other; what fails does not keep the rest from being measured.
const PARTS: &[(&str, Part)] = &[
    ("relay", relay::measure),
    ("start", starting::measure),
    ("tun", tun::measure),
    ("userspace", userspace::measure),
    ("crowd", crowd::measure),
];

type Part = fn(&mut Figures, &World) -> Result<()>;

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let needs = [Need::Root, Need::OfficialClient, Need::Binary];
    if let Some(reason) = unmet(&needs) {
        bail!("this machine cannot run it: {reason}");
    }
    for tool in ["flood", "crowd"] {
        ensure!(
            tools::path(tool).exists(),
            "{} is missing: run `make bench-tools`",
            tools::path(tool).display()
        );
    }
    let mut failed = Vec::new();
    for (name, part) in PARTS {
        println!("  … {name}");
        let outcome = World::start().and_then(|world| part(figures, &world));
        if let Err(error) = outcome {
            println!("  {name} could not be measured: {error:#}");
            failed.push(*name);
        }
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}
