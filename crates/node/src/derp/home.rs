//! Which relay region is a node's home: where peers look for it first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tailwharf_wire::tailcfg::{DerpMap, DerpNode, DerpRegion, RegionId};
use tokio::time::Instant;

use super::connect;
use crate::host::Host;
use crate::sync::lock;

/// A measurement serves all nodes of the process for this long.
const FRESH: Duration = Duration::from_secs(300);

/// A region that has not answered by then is not a home.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How many regions are probed at the same time.
const PARALLEL_PROBES: usize = 16;

/// A new home must be at least this much closer: a third, and 10 ms.
const CLOSER_FACTOR: f64 = 2.0 / 3.0;
const CLOSER_BY: Duration = Duration::from_millis(10);

/// The regions that may be a home.
fn candidates(map: &DerpMap) -> impl Iterator<Item = &DerpRegion> {
    let usable =
        |region: &&DerpRegion| !region.no_measure_no_home && region.nodes.iter().any(|node| !node.stun_only);
    let willing = map
        .regions
        .values()
        .any(|region| usable(&region) && !region.avoid);
    map.regions
        .values()
        .filter(usable)
        .filter(move |region| !(willing && region.avoid))
}

/// The home that needs no measurement: the only candidate, or the present home if it is still one.
pub(super) fn obvious(map: &DerpMap, present: Option<RegionId>) -> Option<RegionId> {
    let mut all = candidates(map).map(|region| region.region_id);
    let first = all.next()?;
    match all.next() {
        None => Some(first),
        Some(_) => candidates(map)
            .map(|region| region.region_id)
            .find(|id| Some(*id) == present),
    }
}

/// Whether there is anything to choose from.
pub(super) fn needs_measurement(map: &DerpMap) -> bool {
    candidates(map).nth(1).is_some()
}

/// The best home by latency. The present one stays unless another is clearly closer.
pub(super) fn choose(
    map: &DerpMap,
    latencies: &BTreeMap<RegionId, Duration>,
    present: Option<RegionId>,
) -> Option<RegionId> {
    let score = |id: RegionId| {
        let factor = map
            .home_params
            .as_ref()
            .and_then(|params| params.region_score.get(&id))
            .copied()
            .unwrap_or(1.0);
        latencies
            .get(&id)
            .map(|latency| latency.mul_f64(factor.clamp(0.01, 100.0)))
    };
    let best = candidates(map)
        .filter_map(|region| Some((score(region.region_id)?, region.region_id)))
        .min();
    let Some((best_score, best)) = best else {
        return obvious(map, present);
    };
    let present = candidates(map)
        .map(|region| region.region_id)
        .find(|id| Some(*id) == present);
    match present.and_then(|id| Some((id, score(id)?))) {
        Some((id, score)) if best_score > score.mul_f64(CLOSER_FACTOR) || best_score + CLOSER_BY > score => {
            Some(id)
        }
        _ => Some(best),
    }
}

/// Round trip times to regions, shared by the nodes of a process: they all stand at the same place.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// By the relay that was probed.
    known: Mutex<HashMap<(String, u16), (Instant, Duration)>>,
}

/// The round trip time to each region that answers.
pub(super) async fn measure(host: &Host, map: &DerpMap) -> BTreeMap<RegionId, Duration> {
    let regions: Vec<_> = candidates(map).cloned().collect();
    let probes = regions
        .into_iter()
        .map(|region| async move { Some((region.region_id, latency_of(host, &region).await?)) });
    stream::iter(probes)
        .buffer_unordered(PARALLEL_PROBES)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// The round trip time to the first relay of a region that answers.
async fn latency_of(host: &Host, region: &DerpRegion) -> Option<Duration> {
    for node in region.nodes.iter().filter(|node| !node.stun_only) {
        if let Some(latency) = latency(host, node).await {
            return Some(latency);
        }
    }
    None
}

async fn latency(host: &Host, node: &DerpNode) -> Option<Duration> {
    let relay = (node.host_name.clone(), node.tcp_port());
    let known = lock(&host.latencies().known).get(&relay).copied();
    if let Some((at, latency)) = known
        && at.elapsed() < FRESH
    {
        return Some(latency);
    }
    match tokio::time::timeout(PROBE_TIMEOUT, connect::probe(host, node)).await {
        Ok(Ok(latency)) => {
            let mut known = lock(&host.latencies().known);
            known.retain(|_, (at, _)| at.elapsed() < FRESH);
            known.insert(relay, (Instant::now(), latency));
            Some(latency)
        }
        Ok(Err(error)) => {
            tracing::debug!(
                relay = node.name,
                error = &error as &dyn std::error::Error,
                "relay does not answer"
            );
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use tailwharf_wire::tailcfg::DerpHomeParams;

    use super::*;

    fn region(id: i32) -> DerpRegion {
        let node = DerpNode {
            name: format!("{id}a"),
            region_id: RegionId(id),
            ..DerpNode::default()
        };
        DerpRegion {
            region_id: RegionId(id),
            nodes: vec![node],
            ..DerpRegion::default()
        }
    }

    fn map(regions: impl IntoIterator<Item = DerpRegion>) -> DerpMap {
        let regions = regions
            .into_iter()
            .map(|region| (region.region_id, region))
            .collect();
        DerpMap {
            regions,
            ..DerpMap::default()
        }
    }

    fn latencies<const N: usize>(all: [(i32, u64); N]) -> BTreeMap<RegionId, Duration> {
        all.into_iter()
            .map(|(id, millis)| (RegionId(id), Duration::from_millis(millis)))
            .collect()
    }

    #[test]
    fn what_needs_no_measurement() {
        assert_eq!(obvious(&map([]), None), None);
        assert_eq!(obvious(&map([region(900)]), None), Some(RegionId(900)));
        assert_eq!(
            obvious(&map([region(900)]), Some(RegionId(1))),
            Some(RegionId(900)),
            "the old home is gone"
        );
        assert_eq!(obvious(&map([region(1), region(2)]), None), None);
        assert_eq!(
            obvious(&map([region(1), region(2)]), Some(RegionId(2))),
            Some(RegionId(2))
        );
    }

    #[test]
    fn regions_that_cannot_be_a_home() {
        let stun_only = DerpRegion {
            nodes: vec![DerpNode {
                stun_only: true,
                ..DerpNode::default()
            }],
            ..region(2)
        };
        let forbidden = DerpRegion {
            no_measure_no_home: true,
            ..region(3)
        };
        let avoided = DerpRegion {
            avoid: true,
            ..region(4)
        };
        let map_with = |rest: &[&DerpRegion]| map(rest.iter().map(|region| (*region).clone()));
        let all = map_with(&[&region(1), &stun_only, &forbidden, &avoided]);
        assert_eq!(obvious(&all, None), Some(RegionId(1)));
        assert_eq!(obvious(&map_with(&[&stun_only, &forbidden]), None), None);
        assert_eq!(
            obvious(&map_with(&[&avoided]), None),
            Some(RegionId(4)),
            "better than none"
        );
    }

    #[test]
    fn the_closest_wins_but_not_by_a_hair() {
        let map = map([region(1), region(2), region(3)]);
        let measured = latencies([(1, 50), (2, 40)]);
        assert_eq!(choose(&map, &measured, None), Some(RegionId(2)));
        assert_eq!(
            choose(&map, &measured, Some(RegionId(1))),
            Some(RegionId(1)),
            "not a third closer"
        );
        assert_eq!(
            choose(&map, &latencies([(1, 50), (2, 20)]), Some(RegionId(1))),
            Some(RegionId(2))
        );
        assert_eq!(
            choose(&map, &latencies([(1, 9), (2, 1)]), Some(RegionId(1))),
            Some(RegionId(1)),
            "less than 10 ms"
        );
        assert_eq!(
            choose(&map, &measured, Some(RegionId(3))),
            Some(RegionId(2)),
            "the present home is silent"
        );
        assert_eq!(
            choose(&map, &latencies([]), Some(RegionId(3))),
            Some(RegionId(3)),
            "nothing answers"
        );
    }

    #[test]
    fn scores_of_the_map_count() {
        let mut map = map([region(1), region(2)]);
        map.home_params = Some(DerpHomeParams {
            region_score: [(RegionId(2), 0.5)].into(),
        });
        assert_eq!(
            choose(&map, &latencies([(1, 50), (2, 80)]), None),
            Some(RegionId(2))
        );
    }
}
