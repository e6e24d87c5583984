//! Golden cases: `cases/<name>/policy.hujson` against `cases/tailnet.json`, or the case's own `tailnet.json`, and
//! `errors/<name>.hujson`. Each has its expectation beside it. `INSTA_UPDATE=always cargo test` writes them anew.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test program")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use tailwharf_policy::{Graph, Policy, Tailnet};
use tailwharf_wire::tailcfg::{FilterRule, PortRange};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let list: io::Result<Vec<PathBuf>> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| Ok(entry?.path()))
        .collect();
    let mut list = list.unwrap();
    list.sort();
    list
}

fn assert_golden(folder: &Path, name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn compiled_policies() {
    let cases: Vec<PathBuf> = entries(&folder("cases"))
        .into_iter()
        .filter(|path| path.is_dir())
        .collect();
    assert!(cases.len() >= 30, "only {} cases were found", cases.len());
    for case in cases {
        let text = fs::read_to_string(case.join("policy.hujson")).unwrap();
        let own = case.join("tailnet.json");
        let tailnet = if own.exists() {
            own
        } else {
            folder("cases/tailnet.json")
        };
        let tailnet: Tailnet = serde_json::from_str(&fs::read_to_string(tailnet).unwrap()).unwrap();
        let policy = Policy::parse(&text).unwrap_or_else(|errors| panic!("{}: {errors:#?}", case.display()));
        assert_golden(&case, "expected", &describe(&policy, &tailnet));
    }
}

#[test]
fn refused_policies() {
    let cases = entries(&folder("errors"));
    let cases: Vec<&PathBuf> = cases
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "hujson"))
        .collect();
    assert!(cases.len() >= 30, "only {} cases were found", cases.len());
    for case in cases {
        let errors =
            Policy::parse(&fs::read_to_string(case).unwrap()).expect_err(&case.display().to_string());
        let text: String = errors.iter().map(|error| format!("{error}\n")).collect();
        assert_golden(
            &folder("errors"),
            case.file_stem().unwrap().to_str().unwrap(),
            &text,
        );
    }
}

/// Everything that a policy says for a tailnet, node by node.
fn describe(policy: &Policy, tailnet: &Tailnet) -> String {
    let graph = Graph::new(Arc::new(policy.clone()), tailnet);
    let mut text = String::new();
    for node in &tailnet.nodes {
        writeln!(text, "node {}", node.id).unwrap();
        for rule in graph.rules_for(node.id) {
            describe_rule(&mut text, &rule);
        }
        let peers: Vec<String> = graph.peers_of(node.id).iter().map(ToString::to_string).collect();
        writeln!(text, "  peers: {}", peers.join(" ")).unwrap();
        for (name, values) in graph.cap_map_for(node.id) {
            writeln!(text, "  has {name} {}", serde_json::to_string(&values).unwrap()).unwrap();
        }
        for rule in graph
            .ssh_policy_for(node.id, Some("check"))
            .into_iter()
            .flat_map(|policy| policy.rules)
        {
            writeln!(text, "  ssh {}", serde_json::to_string(&rule).unwrap()).unwrap();
        }
        assert_peers_agree(&graph, tailnet, node.id);
    }
    match policy.check(tailnet) {
        Ok(()) => writeln!(text, "tests: ok").unwrap(),
        Err(failures) => failures
            .iter()
            .for_each(|failure| writeln!(text, "tests: {failure}").unwrap()),
    }
    for warning in policy.warnings() {
        writeln!(text, "warning: {warning}").unwrap();
    }
    text
}

fn describe_rule(text: &mut String, rule: &FilterRule) {
    writeln!(text, "  from {}", rule.src_ips.join(" ")).unwrap();
    for target in &rule.dst_ports {
        let ports = match target.ports {
            PortRange::ANY => "*".to_owned(),
            PortRange { first, last } if first == last => first.to_string(),
            PortRange { first, last } => format!("{first}-{last}"),
        };
        let protocols: String = rule
            .ip_proto
            .iter()
            .map(|number| format!(" ip-protocol {number}"))
            .collect();
        writeln!(text, "    to {} port {ports}{protocols}", target.ip).unwrap();
    }
    for grant in &rule.cap_grant {
        let destinations: Vec<String> = grant.dsts.iter().map(ToString::to_string).collect();
        for (name, values) in &grant.cap_map {
            let values = serde_json::to_string(values).unwrap();
            writeln!(text, "    at {} may {name} {values}", destinations.join(" ")).unwrap();
        }
    }
}

/// The list of peers and the question about two nodes give the same answer.
fn assert_peers_agree(graph: &Graph, tailnet: &Tailnet, node: tailwharf_wire::tailcfg::NodeId) {
    let peers = graph.peers_of(node);
    for other in &tailnet.nodes {
        assert_eq!(
            peers.contains(&other.id),
            graph.can_see(node, other.id),
            "{node} and {}",
            other.id
        );
    }
}
