//! Runs what the arguments ask for, until it ends or the process is told to.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use tailwharf_coordinator::Config;
use tailwharf_coordinator::admin::cli;
use tailwharf_node::all_ports::AllPorts;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::args::{
    Args, Command, ConfigureArgs, ConfigureCommand, CoordinatorArgs, LogArgs, LogFormat, NameserverArgs,
    SetUpArgs,
};
use crate::{cluster, kubeconfig, local, memory, migrate, objects, recorder, settings};

/// Worker threads of a process: more than two bring nothing to what waits for sockets.
const THREADS: usize = 2;

pub(crate) fn run(args: Args) -> ExitCode {
    match start(args) {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last words of the process")]
            {
                eprintln!("tailwharf: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    let command = match args.command {
        Command::Coordinator(CoordinatorArgs {
            config,
            command: Some(command),
        }) => {
            let config = Config::load(&config)?;
            return runtime.block_on(cli::run(&config, command));
        }
        command => command,
    };
    log(&args.log)?;
    let stop = stop_on_signal(&runtime)?;
    runtime.spawn(memory::give_back_code_at_intervals());
    runtime.block_on(async {
        match command {
            Command::Operator(operator) => {
                let deployment = operator.release_all.clone();
                let settings = settings::operator(operator, &args.log.log)?;
                match deployment {
                    None => Box::pin(tailwharf_operator::run(settings, stop)).await,
                    Some(deployment) => {
                        Box::pin(tailwharf_operator::release_all(settings, &deployment, stop)).await
                    }
                }
            }
            Command::Proxy(proxy) => {
                Box::pin(tailwharf_proxy::run(settings::proxy(proxy)?, None, stop)).await
            }
            Command::SetUp(SetUpArgs {
                to,
                keep_tcp,
                keep_udp,
            }) => {
                let all = AllPorts {
                    to,
                    keep_tcp,
                    keep_udp,
                };
                all.set_up().map_err(Into::into)
            }
            Command::ApiserverProxy(proxy) => {
                let (member, service) = settings::api_server_proxy(proxy)?;
                Box::pin(tailwharf_proxy::run(member, Some(Arc::new(service)), stop)).await
            }
            Command::Node(node) => Box::pin(tailwharf_node::run::run(settings::node(node)?, stop)).await,
            Command::Coordinator(coordinator) => {
                let config = Config::load(&coordinator.config)?;
                Box::pin(tailwharf_funnel::run(config, stop)).await
            }
            Command::Nameserver(NameserverArgs { listen, records }) => {
                tailwharf_nameserver::run(tailwharf_nameserver::Settings { listen, records }, stop).await
            }
            Command::Recorder(recorder) => return Box::pin(recorder::run(*recorder, stop)).await,
            Command::Access(args) => return Box::pin(crate::access::access(args)).await,
            Command::Explain(explain) => return objects::print_chain(explain).await,
            Command::Logs(logs) => {
                let printed = stop.run_until_cancelled(objects::print_logs(logs)).await;
                return printed.unwrap_or(Ok(ExitCode::SUCCESS));
            }
            Command::Status(status) if status.cluster => return cluster::status(status, stop).await,
            Command::Status(status) => return local::status(status).await,
            Command::Doctor(args) => return cluster::doctor(args).await,
            Command::Ping(ping) => return local::ping(ping).await,
            Command::Migrate(args) => return migrate::migrate(args).await,
            Command::Configure(ConfigureArgs {
                command: ConfigureCommand::Kubeconfig(args),
            }) => return kubeconfig::configure(args).await,
        }?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Logs go to standard error, so that standard output is free for results.
fn log(args: &LogArgs) -> Result<()> {
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|error| anyhow!("--log {:?} is neither a level nor a filter: {error}", args.log))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A token that SIGTERM and SIGINT cancel.
fn stop_on_signal(runtime: &Runtime) -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let _context = runtime.enter();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    runtime.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
