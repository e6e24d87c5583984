//! How long a large policy takes.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use anyhow::{Result, anyhow};
use tailwharf_policy::{Graph, Node, Owner, Policy, Tailnet, User};
use tailwharf_wire::tailcfg::{NodeId, UserId};

use crate::tailnet::{self, GROUPS, TAGS};

const RULES: usize = 5_000;
const NODES: u32 = 2_000;
const RUNS: usize = 9;

/// Milliseconds from the text of a policy of 5,000 rules until it can be asked about 2,000 nodes, the median of nine.
///
/// # Errors
/// When the policy is refused.
pub fn compile() -> Result<f64> {
    let text = tailnet::policy(RULES, None);
    let tailnet = company()?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = Instant::now();
        let policy = Policy::parse(&text).map_err(|errors| anyhow!("the policy is refused: {errors:?}"))?;
        let graph = Graph::new(Arc::new(policy), &tailnet);
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        drop(graph);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

/// Two thousand nodes, by turns of people and of tags.
fn company() -> Result<Tailnet> {
    let mut tailnet = Tailnet {
        prefixes: vec!["100.64.0.0/10".parse()?],
        ..Tailnet::default()
    };
    for user in 0..GROUPS {
        tailnet.users.push(User {
            id: UserId(i64::try_from(user)? + 1),
            login: tailnet::login(user),
            role: tailwharf_policy::Role::Member,
        });
    }
    for number in 0..NODES {
        let index = usize::try_from(number / 2)?;
        let owner = if number % 2 == 0 {
            Owner::User(UserId(i64::try_from(index % GROUPS)? + 1))
        } else {
            Owner::Tags([format!("tag:t{}", index % TAGS).parse()?].into())
        };
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 1, 0).to_bits() + number);
        tailnet.nodes.push(Node {
            id: NodeId(i64::from(number) + 1),
            owner,
            addresses: vec![IpAddr::V4(address)],
            routes: Vec::new(),
            services: std::collections::BTreeSet::new(),
            attributes: tailwharf_policy::Attributes::default(),
        });
    }
    Ok(tailnet)
}
