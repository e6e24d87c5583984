//! `tailwharf-load NODES…` measures a coordinator with each of these numbers of nodes.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a measurement is what it prints")]

use anyhow::{Context, Result};

#[tokio::main]
async fn main() -> Result<()> {
    for nodes in std::env::args().skip(1) {
        let nodes = nodes.parse().with_context(|| format!("`{nodes}` is not a number of nodes"))?;
        println!("{:#?}", tailwharf_load::measure(nodes).await?);
    }
    Ok(())
}
