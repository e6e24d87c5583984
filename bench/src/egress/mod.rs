//! Out of the cluster: the nameserver for pods, and egress Services.

mod nameserver;
mod pool;

use anyhow::{Result, bail};
use tailwharf_testkit::requirements::{Need, unmet};

use crate::Area;
use crate::figures::Figures;

pub(crate) const AREAS: [Area; 2] = [
    ("egress.nameserver", |figures| {
        measure(figures, &[Need::Binary], nameserver::measure)
    }),
    ("egress.pool", |figures| {
        let needs = [
            Need::Root,
            Need::Cluster,
            Need::OfficialClient,
            Need::Binary,
            Need::Image,
        ];
        measure(figures, &needs, pool::measure)
    }),
];

fn measure(figures: &mut Figures, needs: &[Need], area: fn(&mut Figures) -> Result<()>) -> Result<()> {
    if let Some(reason) = unmet(needs) {
        bail!("this machine cannot run it: {reason}");
    }
    area(figures)
}
