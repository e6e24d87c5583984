//! The coordinator under 2,000 nodes with real control sessions, and what a change costs by the number of nodes.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::{Need, unmet};
use tailwharf_testkit::workspace;

use crate::figures::{Bar, Figures};

/// Numbers of nodes at which the cost of a change is measured; the bars are for the last.
const SIZES: [u32; 3] = [100, 500, 2_000];
/// What the bars promise at the last size: name of the figure, field of the report, unit, bar.
const PROMISES: [(&str, &str, &str, Bar); 7] = [
    ("endpoint_change_p99", "endpoint_p99", "ms", Bar::AtMost(500.0)),
    ("policy_change_reaches_all", "policy", "s", Bar::AtMost(3.0)),
    ("all_reconnect", "reconnect", "s", Bar::AtMost(10.0)),
    ("rss", "resident", "MiB", Bar::AtMost(400.0)),
    ("idle_cpu", "idle", "% core", Bar::AtMost(3.0)),
    ("keys_minted", "keys", "1/s", Bar::AtLeast(500.0)),
    ("registrations", "registrations", "1/s", Bar::AtLeast(200.0)),
];

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    if let Some(reason) = unmet(&[Need::Binary]) {
        anyhow::bail!("this machine cannot run it: {reason}");
    }
    let compile = load("policy")?;
    let bar = Some(Bar::AtMost(200.0));
    figures.add(
        "coordinator.policy_of_5000_rules",
        number(&compile, "compile")?,
        "ms",
        None,
        bar,
    );
    for nodes in SIZES {
        let report = load(&nodes.to_string())?;
        let told = format!("coordinator.told_of_a_change_{nodes}_nodes");
        figures.add(&told, number(&report, "told")?, "nodes", None, None);
        let cost = format!("coordinator.cpu_per_change_{nodes}_nodes");
        figures.add(&cost, number(&report, "endpoint_cost")?, "ms", None, None);
        if SIZES.last() == Some(&nodes) {
            for (name, field, unit, bar) in PROMISES {
                figures.add(
                    &format!("coordinator.{name}"),
                    number(&report, field)?,
                    unit,
                    None,
                    Some(bar),
                );
            }
        }
    }
    Ok(())
}

/// Runs the load beside the coordinator that it starts.
fn load(what: &str) -> Result<Value> {
    let program = workspace::root().join("target/x86_64-unknown-linux-musl/perf/tailwharf-load");
    let text = run(Command::new(program).arg(what))?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

fn number(report: &Value, field: &str) -> Result<f64> {
    report[field]
        .as_f64()
        .with_context(|| format!("no {field} in {report}"))
}
