//! The API-server proxy: alone on loopback beside haproxy, and over a tailnet beside the Go operator's.

mod loopback;
mod tailnet;

use anyhow::{Result, bail, ensure};
use tailwharf_testkit::requirements::{Need, unmet};

use crate::Area;
use crate::tools::path;

pub(crate) const AREAS: [Area; 2] = [
    ("apiproxy.loopback", |figures| {
        ready(&["gate", "gets"])?;
        loopback::measure(figures)
    }),
    ("apiproxy.tailnet", |figures| {
        ready(&["gets"])?;
        tailnet::measure(figures)
    }),
];

fn ready(tools: &[&str]) -> Result<()> {
    if let Some(reason) = unmet(&[Need::Root]) {
        bail!("this machine cannot run it: {reason}");
    }
    for tool in tools {
        ensure!(
            path(tool).exists(),
            "{} is missing: run `make bench-tools`",
            path(tool).display()
        );
    }
    Ok(())
}
