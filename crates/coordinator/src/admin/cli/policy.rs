//! The policy.

use std::fs;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use http::Method;
use serde::Deserialize;

use super::super::args::PolicyCommand;
use super::super::client::Client;
use super::super::output::{Format, Printer};

/// What a check of a policy found.
#[derive(Default, Deserialize, serde::Serialize)]
#[serde(default)]
struct Verdict {
    message: String,
    data: Vec<Findings>,
}

#[derive(Deserialize, serde::Serialize)]
struct Findings {
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

pub(super) async fn policy(
    client: &Client,
    command: PolicyCommand,
    mut print: Printer<impl Write>,
) -> Result<ExitCode> {
    const ACL: [&str; 3] = ["tailnet", "-", "acl"];
    match command {
        PolicyCommand::Get => {
            let text = client.read(&ACL).await?;
            match print.format {
                Format::Table => print.to.write_all(&text)?,
                Format::Json => {
                    let text = String::from_utf8_lossy(&text);
                    serde_json::to_writer_pretty(&mut print.to, &tailwharf_policy::to_json(&text)?)?;
                    writeln!(print.to)?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Set { file } => {
            let text = read(&file)?;
            let verdict = check(client, &text).await?;
            if report(&verdict, &file, &mut print)? == ExitCode::SUCCESS {
                client.send(Method::POST, &ACL, text.into()).await?;
                print.done("the policy is in force")?;
                return Ok(ExitCode::SUCCESS);
            }
            print.done("the policy in force is the former one")?;
            Ok(ExitCode::FAILURE)
        }
        PolicyCommand::Check { file } => {
            let verdict = check(client, &read(&file)?).await?;
            let code = report(&verdict, &file, &mut print)?;
            if code == ExitCode::SUCCESS {
                print.done("the policy is valid")?;
            }
            Ok(code)
        }
    }
}

async fn check(client: &Client, text: &str) -> Result<Verdict> {
    let answer = client
        .send(
            Method::POST,
            &["tailnet", "-", "acl", "validate"],
            text.to_owned().into(),
        )
        .await?;
    serde_json::from_slice(&answer)
        .context("the coordinator's answer is not understood: is it another version?")
}

/// Prints what a check found. Fails if there is an error among it.
fn report(verdict: &Verdict, file: &Path, print: &mut Printer<impl Write>) -> Result<ExitCode> {
    let errors = || verdict.data.iter().flat_map(|findings| &findings.errors);
    match print.format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut print.to, verdict)?;
            writeln!(print.to)?;
        }
        Format::Table => {
            for error in errors() {
                writeln!(print.to, "{}: {error}", file.display())?;
            }
            for warning in verdict.data.iter().flat_map(|findings| &findings.warnings) {
                writeln!(print.to, "{}: warning: {warning}", file.display())?;
            }
        }
    }
    Ok(if errors().next().is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The text of a file, or of standard input.
pub(super) fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .lock()
            .read_to_string(&mut text)
            .context("standard input cannot be read")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
}
