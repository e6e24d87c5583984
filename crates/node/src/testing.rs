//! Values that several tests need.

use rand::SeedableRng;
use rand::rngs::StdRng;
use tailwharf_wire::tailcfg::{RegionId, StableId};

use crate::api::NodeState;

pub(crate) fn sample_state(seed: u64) -> NodeState {
    NodeState {
        stable_id: Some(StableId(format!("n{seed}"))),
        fqdn: Some("node.tail1234.ts.net".into()),
        addresses: vec![
            "100.64.0.9".parse().unwrap(),
            "fd7a:115c:a1e0::9".parse().unwrap(),
        ],
        home_region: Some(RegionId(900)),
        ..NodeState::fresh(&mut StdRng::seed_from_u64(seed))
    }
}
