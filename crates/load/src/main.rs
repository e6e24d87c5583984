//! `tailwharf-load NODES…` measures a coordinator with each of these numbers of nodes, and prints a line of JSON for each.
//! `tailwharf-load policy` measures how long a policy of 5,000 rules takes to compile.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a measurement is what it prints")]

use anyhow::{Context, Result};

#[tokio::main]
async fn main() -> Result<()> {
    for nodes in std::env::args().skip(1) {
        if nodes == "policy" {
            println!("{}", serde_json::json!({"compile": tailwharf_load::compile()?}));
            continue;
        }
        let nodes = nodes
            .parse()
            .with_context(|| format!("`{nodes}` is not a number of nodes"))?;
        println!(
            "{}",
            serde_json::to_string(&tailwharf_load::measure(nodes).await?)?
        );
    }
    Ok(())
}
