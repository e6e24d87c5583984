//! What the end-to-end tests in `tests/` share: a suite of trials that run one after the other on one fixture.
//!
//! A fixture (a tailnet, a cluster) is expensive, so a suite starts it once, with its first trial. A trial leaves the
//! fixture as it found it. What the machine cannot run is reported as ignored, with the reason in front of the name.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use tailwharf_testkit::OfficialClient;
use tailwharf_testkit::process::output;
use tailwharf_testkit::requirements::{Need, unmet};

/// A fixture that is started by the first trial that runs.
struct Stage<F> {
    start: fn() -> Result<F>,
    state: State<F>,
}

enum State<F> {
    New,
    Running(F),
    Broken(String),
}

impl<F> Stage<F> {
    fn fixture(&mut self) -> Result<&mut F> {
        if matches!(self.state, State::New) {
            self.state = match (self.start)() {
                Ok(fixture) => State::Running(fixture),
                Err(error) => State::Broken(format!("{error:#}")),
            };
        }
        match &mut self.state {
            State::Running(fixture) => Ok(fixture),
            State::Broken(reason) => bail!("the fixture did not start: {reason}"),
            State::New => bail!("the fixture was not started"),
        }
    }
}

/// One test: its name, and what it does to the fixture.
pub type Case<F> = (&'static str, fn(&mut F) -> Result<()>);

/// Runs `cases` in order on a fixture made by `start`; the exit code is the runner's.
pub fn run<F: Send + 'static>(
    needs: &[Need],
    start: fn() -> Result<F>,
    cases: &[Case<F>],
) -> std::process::ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let reason = unmet(needs);
    let stage = Arc::new(Mutex::new(Stage {
        start,
        state: State::New,
    }));
    let trials = cases.iter().map(|&(name, case)| {
        let stage = Arc::clone(&stage);
        let trial = Trial::test(name, move || {
            let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
            let fixture = stage
                .fixture()
                .map_err(|error| Failed::from(format!("{error:#}")))?;
            let began = Instant::now();
            let outcome = case(fixture).map_err(|error| Failed::from(format!("{error:#}")));
            #[expect(
                clippy::print_stderr,
                reason = "the runner does not tell how long a test took"
            )]
            {
                eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
            }
            outcome
        });
        match &reason {
            Some(reason) => trial
                .with_kind(format!("ignored: {reason}"))
                .with_ignored_flag(true),
            None => trial,
        }
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Ends the fixture's processes before this process ends.
    stage.lock().unwrap_or_else(PoisonError::into_inner).state = State::New;
    conclusion.exit_code()
}

/// The status condition `kind` of an object, as `(status, reason, message)`.
///
/// # Errors
/// When the object has no such condition.
pub fn condition(object: &Value, kind: &str) -> Result<(String, String, String)> {
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind);
    let found = found.ok_or_else(|| anyhow!("no condition {kind}: {}", object["status"]))?;
    let word = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    Ok((word("status"), word("reason"), word("message")))
}

/// What a client saw that connected anew again and again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// How often it tried.
    pub attempts: usize,
    /// How often nothing came in time.
    pub failed: usize,
    /// The longest time from one answer to the next.
    pub longest: Duration,
}

/// Fetches a URL in a loop, each time by a new connection with so much time, while `act` runs.
///
/// # Errors
/// Those of `act`.
pub fn watched(
    client: &OfficialClient,
    url: &str,
    patience: Duration,
    act: impl FnOnce() -> Result<()>,
) -> Result<Seen> {
    let over = AtomicBool::new(false);
    let limit = patience.as_secs_f64().to_string();
    let look = || {
        let (mut seen, mut since) = (Seen::default(), Instant::now());
        while !over.load(Ordering::Relaxed) {
            let mut curl = client.namespace().command("curl");
            curl.args([
                "--silent",
                "--fail",
                "--max-time",
                &limit,
                "--output",
                "/dev/null",
                url,
            ]);
            seen.attempts += 1;
            if output(&mut curl).is_ok_and(|output| output.status.success()) {
                seen.longest = seen.longest.max(since.elapsed());
                since = Instant::now();
            } else {
                seen.failed += 1;
            }
        }
        seen.longest = seen.longest.max(since.elapsed());
        seen
    };
    std::thread::scope(|scope| {
        let looking = scope.spawn(look);
        let outcome = act();
        over.store(true, Ordering::Relaxed);
        let seen = looking.join().map_err(|_| anyhow!("the client panicked"))?;
        outcome.map(|()| seen)
    })
}
