//! What the audience sees: acts, commands with their real output, and checks.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use tailwharf_testkit::process::{describe, output};

/// Lines of one command's output that are shown.
const SHOWN: usize = 16;

/// What stands before a secret in a command.
const SECRET: &str = "oauth.clientSecret=";

/// Prints the play and counts its checks.
#[derive(Debug)]
pub(crate) struct Stage {
    began: Instant,
    passed: u32,
    failed: u32,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            passed: 0,
            failed: 0,
        }
    }

    /// Begins a part of the story.
    pub(crate) fn act(&self, title: &str) {
        println!("\n\x1b[1m{title}\x1b[0m");
    }

    /// Says what is being made, while it is made.
    pub(crate) fn progress(&self, step: &str) {
        println!("  [{:>3} s] {step}", self.began.elapsed().as_secs());
    }

    /// Shows a command and what it prints; its standard output.
    pub(crate) fn show(&self, who: &str, command: &mut Command) -> Result<String> {
        println!("\n  {who}$ {}", plain(command));
        let result = output(command)?;
        let text = String::from_utf8_lossy(&result.stdout).into_owned();
        let errors = String::from_utf8_lossy(&result.stderr).into_owned();
        let lines: Vec<&str> = text
            .lines()
            .chain(errors.lines())
            .filter(|line| !line.trim().is_empty())
            .collect();
        for line in lines.iter().take(SHOWN) {
            println!("    {line}");
        }
        if lines.len() > SHOWN {
            println!("    … {} more lines", lines.len() - SHOWN);
        }
        ensure!(
            result.status.success(),
            "{} ended with {}",
            plain(command),
            result.status
        );
        Ok(text)
    }

    /// Prints and counts the outcome of a check.
    pub(crate) fn check(&mut self, what: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("  \x1b[32m✓\x1b[0m {what}");
            }
            Err(error) => {
                self.failed += 1;
                println!("  \x1b[31m✗\x1b[0m {what}: {error:#}");
            }
        }
    }

    /// Prints the totals; whether all checks passed.
    pub(crate) fn summary(&self) -> bool {
        println!("\nThe story took {} s.", self.began.elapsed().as_secs());
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}

/// The command as the person of the story types it: without the namespace, socket and kubeconfig of this machine.
fn plain(command: &Command) -> String {
    let text = describe(command);
    let text = match text.split_once(SECRET) {
        None => text,
        Some((before, rest)) => {
            let after = rest.split_once(' ').map_or("", |(_, after)| after);
            format!("{before}{SECRET}… {after}")
        }
    };
    let hidden = ["--socket=", "--request-timeout="];
    let words = text
        .split_whitespace()
        .filter(|word| !hidden.iter().any(|option| word.starts_with(option)));
    let mut words: Vec<&str> = words.collect();
    if words.starts_with(&["ip", "netns", "exec"]) {
        words.drain(..4);
    }
    if let Some(at) = words.iter().position(|word| *word == "--kubeconfig") {
        words.drain(at..(at + 2).min(words.len()));
    }
    let program = words
        .first()
        .map(|word| word.rsplit('/').next().unwrap_or(word))
        .unwrap_or_default();
    let rest = words.get(1..).unwrap_or_default();
    std::iter::once(program)
        .chain(rest.iter().copied())
        .collect::<Vec<_>>()
        .join(" ")
}
