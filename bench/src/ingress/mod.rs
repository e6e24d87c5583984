//! Ingresses: what HTTPS through the tailnet costs beside `tailscale serve`, how soon a change counts, and many of them.

mod crowd;
mod endpoints;
mod load;
mod stage;

use anyhow::{Result, bail, ensure};
use tailwharf_testkit::requirements::{Need, unmet};

use crate::figures::Figures;
use crate::{Area, tools};

pub(crate) const AREAS: [Area; 3] = [
    ("ingress.load", |figures| measure(figures, load::measure)),
    ("ingress.endpoints", |figures| {
        measure(figures, endpoints::measure)
    }),
    ("ingress.crowd", |figures| measure(figures, crowd::measure)),
];

fn measure(figures: &mut Figures, area: fn(&mut Figures) -> Result<()>) -> Result<()> {
    let needs = [
        Need::Root,
        Need::ApiServer,
        Need::OfficialClient,
        Need::Pebble,
        Need::Binary,
    ];
    if let Some(reason) = unmet(&needs) {
        bail!("this machine cannot run it: {reason}");
    }
    for tool in ["flood", "gets"].map(tools::path) {
        ensure!(
            tool.exists(),
            "{} is missing: run `make bench-tools`",
            tool.display()
        );
    }
    area(figures)
}
