//! Measures what the project promises, beside a peer in the same run, and writes `bench/results/latest.json`.
//!
//! `tailwharf-bench` runs every area, `tailwharf-bench AREA` one of them, or all whose names begin with `AREA.`; their figures are merged into the results.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a bench is what it prints")]

mod apiproxy;
mod coordinator;
mod egress;
mod figures;
mod first_light;
mod ingress;
mod install;
mod node;
mod tools;
mod world;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};

use crate::figures::Figures;

/// An area, by whose name its figures begin, and what measures it.
type Area = (&'static str, fn(&mut Figures) -> Result<()>);

const AREAS: [Area; 3] = [
    ("first-light", first_light::measure),
    ("coordinator", coordinator::measure),
    ("install", install::measure),
];

fn main() -> ExitCode {
    match run(std::env::args().nth(1).as_deref()) {
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

/// Whether every bar of the chosen areas holds. An area that cannot be measured does not keep the others from it.
fn run(asked: Option<&str>) -> Result<bool> {
    let areas = || {
        AREAS
            .iter()
            .chain(&node::AREAS)
            .chain(&apiproxy::AREAS)
            .chain(&ingress::AREAS)
            .chain(&egress::AREAS)
    };
    let chosen: Vec<&Area> = areas()
        .filter(|(name, _)| asked.is_none_or(|asked| is_within(name, asked)))
        .collect();
    if chosen.is_empty() {
        let known: Vec<&str> = areas().map(|(name, _)| *name).collect();
        bail!(
            "there is no area {}; known are: {}",
            asked.unwrap_or_default(),
            known.join(", ")
        );
    }
    let mut holds = true;
    let mut failed = Vec::new();
    for (name, measure) in chosen {
        println!("{name}");
        let mut figures = Figures::load()?;
        figures.clear(name);
        let outcome = measure(&mut figures);
        figures.store()?;
        holds &= figures.print(name);
        if let Err(error) = outcome {
            println!("{name} could not be measured: {error:#}");
            failed.push(*name);
        }
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(holds)
}

/// Whether an area is the one that was asked for, or a part of that.
fn is_within(name: &str, asked: &str) -> bool {
    name.strip_prefix(asked)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
