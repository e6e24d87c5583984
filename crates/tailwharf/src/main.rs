//! tailwharf: one binary, several processes. Arguments become settings, settings a running process.

mod access;
mod apiproxy;
mod args;
mod cluster;
mod kubeconfig;
mod local;
mod memory;
mod migrate;
mod objects;
mod recorder;
mod run;
mod settings;

use std::process::ExitCode;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::args::Args;

fn main() -> ExitCode {
    // With huge pages the first byte of each arena would cost 2 MiB; many small processes are what we are for.
    // A kernel that cannot is no reason not to start.
    let _ = nix::sys::prctl::set_thp_disable(true);
    allow_all_files();
    run::run(Args::parse())
}

/// Every connection is a file or two. The soft limit is low for the sake of programs that use `select`; none of ours does.
fn allow_all_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Where it is refused, the limit of before holds.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
