//! The commands that ask a cluster about an object of it: `tailwharf explain` and `tailwharf logs`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use tailwharf_operator::explain::Target;
use tailwharf_operator::{explain, logs};

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) object: ObjectArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) object: ObjectArgs,
    /// Go on with what comes, also when another pod hosts the device, until the device is gone
    #[arg(long, short = 'f')]
    pub(crate) follow: bool,
    /// Only what is younger than this, such as 30s, 10m or 2h
    #[arg(long, value_parser = period)]
    pub(crate) since: Option<Duration>,
}

/// An object of a cluster that has a device.
#[derive(Debug, clap::Args)]
pub(crate) struct ObjectArgs {
    /// The object: service/NAME or ingress/NAME
    #[arg(value_name = "OBJECT")]
    pub(crate) target: Target,
    /// Its namespace; that of the kubeconfig's context if not given
    #[arg(long, short = 'n')]
    pub(crate) namespace: Option<String>,
    /// Namespace of the operator
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "tailscale")]
    pub(crate) operator_namespace: String,
}

/// Prints the chain from an object of a cluster to its backend. Fails when the chain is broken or not whole yet.
pub(crate) async fn print_chain(args: ExplainArgs) -> Result<ExitCode> {
    let ObjectArgs {
        target,
        namespace,
        operator_namespace,
    } = args.object;
    let chain = explain::explain(&target, namespace.as_deref(), &operator_namespace).await?;
    writeln!(io::stdout().lock(), "{chain}")?;
    Ok(match chain.first_fault() {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    })
}

/// Prints what the host of an object's device logs of it.
pub(crate) async fn print_logs(args: LogsArgs) -> Result<ExitCode> {
    let ObjectArgs {
        target,
        namespace,
        operator_namespace,
    } = args.object;
    let options = logs::Options {
        follow: args.follow,
        since: args.since,
    };
    logs::logs(
        &target,
        namespace.as_deref(),
        &operator_namespace,
        options,
        &mut io::stdout(),
    )
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// A time as kubectl takes it: a number with its unit.
fn period(text: &str) -> Result<Duration, String> {
    let seconds = text.find(|c: char| !c.is_ascii_digit()).and_then(|at| {
        let (number, unit) = text.split_at(at);
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => 24 * 60 * 60,
            _ => return None,
        };
        number.parse::<u32>().ok().map(|number| u64::from(number) * unit)
    });
    let seconds = seconds.ok_or("expected a number with its unit, such as 30s, 10m, 2h or 1d")?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_has_a_unit() {
        assert_eq!(period("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(period("2h"), Ok(Duration::from_secs(7200)));
        for text in ["90", "s", "-1s", "1w", "99999999999s", ""] {
            assert!(period(text).is_err(), "{text}");
        }
    }
}
