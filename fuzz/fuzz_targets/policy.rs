#![no_main]

use std::sync::{Arc, LazyLock};

use tailwharf_policy::{Graph, Policy, Tailnet};

static TAILNET: LazyLock<Tailnet> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../crates/policy/verdicts/tailnet.json")).expect("the tailnet of the cases")
});

libfuzzer_sys::fuzz_target!(|input: &str| {
    let Ok(policy) = Policy::parse(input) else {
        return;
    };
    // Failures of the policy's own tests are no failures of ours.
    let _ = policy.check(&TAILNET);
    let graph = Graph::new(Arc::new(policy), &TAILNET);
    for node in &TAILNET.nodes {
        graph.rules_for(node.id);
        graph.peers_of(node.id);
        graph.ssh_policy_for(node.id, None);
    }
});
