//! Checks and generators of this workspace.
//!
//! - `cargo xtask generate`: writes the generated files. With `--check` it only says which ones are not up to date.
//! - `cargo xtask purity`: proves that the pure crates have no clock, randomness, runtime, socket or file.
#![forbid(unsafe_code)]

mod chart;
mod generate;
mod purity;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

const USAGE: &str = "use: cargo xtask generate [--check] | cargo xtask purity";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["generate"] => workspace().and_then(|root| generate::write(&root)),
        ["generate", "--check"] => workspace().and_then(|root| generate::check(&root)),
        ["purity"] => workspace().and_then(|root| purity::check(&root)),
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match result {
        Ok(summary) => {
            say(&summary);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The root of the workspace, above this crate.
fn workspace() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?;
    if !root.join("Cargo.lock").exists() {
        bail!(
            "{} is not the workspace; run this from the sources it was built from",
            root.display()
        );
    }
    Ok(root.to_path_buf())
}
