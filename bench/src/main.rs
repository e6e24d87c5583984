//! Measures what the project promises, beside a peer in the same run, and writes `bench/results/latest.json`.
//!
//! `tailwharf-bench` runs every area, `tailwharf-bench AREA` one of them, whose figures are merged into the results.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a bench is what it prints")]

mod coordinator;
mod figures;
mod first_light;
mod node;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::figures::Figures;

/// An area and what measures it.
type Area = (&'static str, fn(&mut Figures) -> Result<()>);

const AREAS: &[Area] = &[
    ("first-light", first_light::measure),
    ("node", node::measure),
    ("coordinator", coordinator::measure),
];

fn main() -> ExitCode {
    match run(std::env::args().nth(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("\nA bar was missed.");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("\nThe bench could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every bar of the chosen areas holds.
fn run(area: Option<String>) -> Result<bool> {
    let chosen: Vec<&Area> = AREAS
        .iter()
        .filter(|(name, _)| area.as_deref().is_none_or(|area| area == *name))
        .collect();
    if chosen.is_empty() {
        let known: Vec<&str> = AREAS.iter().map(|(name, _)| *name).collect();
        bail!(
            "there is no area {}; known are: {}",
            area.unwrap_or_default(),
            known.join(", ")
        );
    }
    let mut figures = Figures::load()?;
    let mut holds = true;
    for (name, measure) in chosen {
        println!("{name}");
        figures.clear(name);
        let outcome = measure(&mut figures);
        figures.store()?;
        outcome?;
        holds &= figures.print(name);
    }
    Ok(holds)
}
