//! `tailwharf migrate`: takes a namespace over from Tailscale's operator, or gives it back.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use tailwharf_operator::migrate::{Direction, Options, plan, run};

use crate::args::{MigrateArgs, MigrateCommand};

/// Prints the plan, or carries it out and prints what is done. Fails when something has to be solved before.
pub(crate) async fn migrate(args: MigrateArgs) -> Result<ExitCode> {
    let MigrateArgs {
        command,
        operator_namespace,
        parallel,
    } = args;
    let (direction, leave_unserved, keep_old) = match command {
        MigrateCommand::Plan { back: false } => (Direction::Forward, false, false),
        MigrateCommand::Plan { back: true } | MigrateCommand::Back => (Direction::Back, false, false),
        MigrateCommand::Go {
            leave_unserved,
            keep_old,
        } => (Direction::Forward, leave_unserved, keep_old),
    };
    let options = Options {
        namespace: operator_namespace,
        direction,
        leave_unserved,
        keep_old,
        parallel,
    };
    if let MigrateCommand::Plan { .. } = command {
        let migration = plan(&options).await?;
        write!(io::stdout().lock(), "{migration}")?;
        return Ok(match migration.obstacles.as_slice() {
            [] => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        });
    }
    // Nobody who reads this is a reason to stop half-way.
    let tell = |line: &str| drop(writeln!(io::stdout().lock(), "{line}"));
    run(&options, &tell).await?;
    Ok(ExitCode::SUCCESS)
}
