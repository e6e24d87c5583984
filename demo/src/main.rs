//! Plays the product's story: each step shows the command and its real output, and checks it.
//!
//! `tailwharf-demo up` plays (and, with `KEEP=1`, leaves everything running); `tailwharf-demo down` removes every trace.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a demo is what it prints")]

mod clusters;
mod ingress;
mod networks;
mod stage;
mod story;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use tailwharf_testkit::Lab;
use tailwharf_testkit::requirements::{Need, unmet};

use crate::stage::Stage;

/// The cluster's name and the place of everything else.
const NAME: &str = "demo";
const DIR: &str = "/var/lib/tailwharf-demo";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let result = match command.as_str() {
        "up" => play(),
        "down" => remove(),
        _ => {
            usage();
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("\nThe demo could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play() -> Result<bool> {
    let needs = [
        Need::Root,
        Need::Cluster,
        Need::Helm,
        Need::OfficialClient,
        Need::Binary,
        Need::Image,
    ];
    if let Some(reason) = unmet(&needs) {
        anyhow::bail!("this machine cannot run it: {reason}");
    }
    let mut stage = Stage::new();
    stage.act("Setting the stage");
    let lab = Lab::without_operator(NAME, Path::new(DIR), &[], |step| stage.progress(step));
    let lab = match lab {
        Ok(lab) => lab,
        Err(error) => {
            remove()?;
            return Err(error);
        }
    };
    let mut played = story::play(&mut stage, &lab);
    if std::env::var_os("KEEP").is_some_and(|keep| keep == "1") {
        if let Ok(second) = &mut played {
            second.keep();
            let kubeconfig = second.kubectl().kubeconfig().display();
            println!("\nLeft running: the second cluster, KUBECONFIG={kubeconfig}");
        }
        println!(
            "\nLeft running: KUBECONFIG={}",
            lab.kubectl().kubeconfig().display()
        );
        let laptop = lab.laptop.namespace().name();
        println!(
            "The laptop:   ip netns exec {laptop} tailscale --socket={DIR}/laptop/tailscaled.sock status"
        );
        println!("Remove it all with `make demo-down`.");
        lab.leave();
    } else {
        drop(lab);
    }
    played?;
    Ok(stage.summary())
}

fn remove() -> Result<bool> {
    Lab::remove(NAME, Path::new(DIR))?;
    Ok(true)
}

fn usage() {
    println!("usage: tailwharf-demo up | down");
}
