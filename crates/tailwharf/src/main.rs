//! tailwharf: one binary, several processes. Arguments become settings, settings a running process.

#![forbid(unsafe_code)]

mod args;
mod run;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;

/// musl's own allocator is slow under threads; this one also gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    run::run(Args::parse())
}
