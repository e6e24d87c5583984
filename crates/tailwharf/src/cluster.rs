//! The commands about an installation in a cluster: `tailwharf status --cluster` and `tailwharf doctor`.

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tailwharf_control_api::{ClientConfig, Credentials};
use tailwharf_operator::doctor::{Doctor, Granted, ask};
use tailwharf_operator::overview::Observer;
use tailwharf_plan::doctor::{Control, Grade, diagnose};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::args::{DoctorArgs, StatusArgs};
use crate::settings;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Clears a terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";
/// What the operator's account is given, with its comments.
const MANIFEST: &str = include_str!("../../../deploy/operator.yaml");

/// Prints pools and devices as a tree, once or at each change. Fails when something is not ready.
pub(crate) async fn status(args: StatusArgs, stop: CancellationToken) -> Result<ExitCode> {
    let observer = Observer::new(&args.operator_namespace).await?;
    let mut shown = String::new();
    loop {
        let overview = observer.look().await?;
        let text = overview.to_string();
        if text != shown {
            let mut out = io::stdout().lock();
            let clear = if args.watch && out.is_terminal() {
                CLEAR
            } else {
                ""
            };
            write!(out, "{clear}{text}")?;
            if args.watch && clear.is_empty() {
                writeln!(out)?;
            }
            out.flush()?;
            shown = text;
        }
        if !args.watch {
            return Ok(code(overview.is_whole()));
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return Ok(code(overview.is_whole())),
        }
    }
}

/// Prints what was found and what to do. Fails when somebody has to do something.
pub(crate) async fn doctor(args: DoctorArgs) -> Result<ExitCode> {
    let doctor = Doctor::new(&args.operator_namespace).await?;
    let mut facts = doctor.examine(&granted()?).await;
    if args.credentials {
        facts.control = Some(control(&doctor).await);
    }
    let diagnosis = diagnose(&facts);
    write!(io::stdout().lock(), "{diagnosis}")?;
    Ok(code(diagnosis.worst() < Grade::Fault))
}

const fn code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What the control server says to the operator's credentials.
async fn control(doctor: &Doctor) -> Control {
    let outcome = async {
        let found = doctor.credentials().await?;
        let server = Url::parse(&found.login_server).context("OPERATOR_LOGIN_SERVER")?;
        let given = found.api_url.as_deref().map(Url::parse).transpose()?;
        let credentials = Credentials::OAuthClient {
            id: found.id,
            secret: found.secret,
        };
        let config = ClientConfig::new(settings::api_of(&server, given)?, credentials);
        anyhow::Ok(ask(config, &found.tags).await)
    };
    outcome.await.unwrap_or_else(|error| Control::NoCredentials {
        message: format!("{error:#}"),
    })
}

/// The rights that the manifest gives to the operator.
fn granted() -> Result<Granted> {
    let mut granted = Granted::default();
    for document in MANIFEST.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).context("the manifest of this version")?;
        let rules = || serde_json::from_value(object["rules"].clone()).context("the rules of this version");
        match (object["kind"].as_str(), object["metadata"]["name"].as_str()) {
            (Some("ClusterRole"), Some("tailscale-operator")) => granted.served = rules()?,
            (Some("ClusterRole"), Some("tailscale-operator-cluster")) => granted.cluster = rules()?,
            (Some("Role"), Some("operator")) => granted.namespace = rules()?,
            _ => {}
        }
    }
    Ok(granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_tells_what_the_operator_may() {
        let granted = granted().expect("rules");
        assert!(
            granted.served.len() > 3 && granted.cluster.len() > 3 && granted.namespace.len() > 5,
            "{granted:?}"
        );
    }
}
