//! tailwharf: one binary, several processes. Arguments become settings, settings a running process.

#![forbid(unsafe_code)]

mod args;
mod local;
mod run;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;

/// musl's own allocator is slow under threads; this one also gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // With huge pages the first byte of each arena would cost 2 MiB; many small processes are what we are for.
    // A kernel that cannot is no reason not to start.
    let _ = nix::sys::prctl::set_thp_disable(true);
    run::run(Args::parse())
}
