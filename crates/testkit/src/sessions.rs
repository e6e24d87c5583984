//! What a person does with a pod by kubectl, wherever that runs: exec, attach, cp, logs, port-forward, over each protocol.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{output, run};
use crate::wait::eventually;

/// The protocols of sessions, by what switches kubectl to them.
pub const PROTOCOLS: [(&str, &str); 2] = [("WebSocket", "true"), ("SPDY", "false")];

/// Somebody with a kubectl and a pod of the test's nginx.
pub struct Person<'a> {
    /// Makes a kubectl with arguments.
    pub kubectl: &'a dyn Fn(&[&str]) -> Command,
    /// Makes a curl on the same machine.
    pub curl: &'a dyn Fn(&[&str]) -> Command,
    /// Name of the pod, in the namespace `default`.
    pub pod: &'a str,
}

impl Person<'_> {
    fn with(&self, websockets: &str, arguments: &[&str]) -> Command {
        let mut command = (self.kubectl)(arguments);
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
        command
    }

    /// Output, error output and exit code of a command, with and without input.
    ///
    /// # Errors
    /// When one is another than in the container.
    pub fn exec(&self) -> Result<()> {
        for (protocol, websockets) in PROTOCOLS {
            let script = "echo out; echo err >&2; exit 7";
            let ended =
                output(&mut self.with(websockets, &["exec", self.pod, "--", "/bin/sh", "-c", script]))?;
            ensure!(ended.stdout == b"out\n", "{protocol}: {ended:?}");
            ensure!(ended.stderr.starts_with(b"err\n"), "{protocol}: {ended:?}");
            ensure!(ended.status.code() == Some(7), "{protocol}: {ended:?}");
            let script = "cat; echo end";
            let mut command = self.with(
                websockets,
                &["exec", "-i", self.pod, "--", "/bin/sh", "-c", script],
            );
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut input = child.stdin.take().context("no input")?;
            input.write_all(b"typed\n")?;
            drop(input);
            let ended = child.wait_with_output()?;
            ensure!(ended.stdout == b"typed\nend\n", "{protocol}: {ended:?}");
        }
        Ok(())
    }

    /// The same in a terminal, which the container sees with its size.
    ///
    /// # Errors
    /// When what the terminal shows is something else.
    pub fn terminal(&self) -> Result<()> {
        for (protocol, websockets) in PROTOCOLS {
            let kubectl = self.with(
                websockets,
                &[
                    "exec",
                    "-it",
                    self.pod,
                    "--",
                    "/bin/sh",
                    "-c",
                    "test -t 0 && echo a terminal",
                ],
            );
            let shown = output(&mut in_terminal(&kubectl))?;
            let text = String::from_utf8_lossy(&shown.stdout).into_owned();
            ensure!(text.contains("a terminal\r\n"), "{protocol}: {shown:?}");
        }
        Ok(())
    }

    /// A file goes into the container and comes back as it was. `dir`: where to put it.
    ///
    /// # Errors
    /// When the copy is another one.
    pub fn copy(&self, dir: &Path) -> Result<()> {
        let (here, back) = (dir.join("data"), dir.join("back"));
        let bytes: Vec<u8> = (0..8_u32 << 20)
            .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        fs::write(&here, &bytes)?;
        let there = format!("default/{}:/tmp/data", self.pod);
        for (protocol, websockets) in PROTOCOLS {
            run(&mut self.with(websockets, &["cp", &here.display().to_string(), &there]))?;
            run(&mut self.with(websockets, &["cp", &there, &back.display().to_string()]))?;
            ensure!(fs::read(&back)? == bytes, "{protocol}: the copy is another one");
            fs::remove_file(&back)?;
        }
        Ok(())
    }

    /// Followed logs and attached sessions tell what comes later, and forwarded ports lead to the pod.
    ///
    /// # Errors
    /// When one ends before.
    pub fn follow(&self) -> Result<()> {
        for (protocol, websockets) in PROTOCOLS {
            let patient = |arguments: &[&str]| {
                let words = [arguments, &["--request-timeout=0", self.pod]].concat();
                self.with(websockets, &words)
            };
            let mut forward = Running::start(&mut {
                let mut command = patient(&["port-forward"]);
                command.arg(":80");
                command
            })?;
            let line = forward.line("Forwarding from 127.0.0.1")?;
            let port = line
                .split_once("127.0.0.1:")
                .and_then(|(_, rest)| rest.split_once(' '))
                .context("no port")?
                .0
                .to_owned();
            let mut logs = Running::start(&mut patient(&["logs", "-f"]))?;
            let mut attached = Running::start(&mut patient(&["attach"]))?;
            // Whoever attaches sees what is printed from then on, and kubectl does not say when that begins.
            let mark = format!("through-the-forward-{protocol}");
            let url = format!("http://127.0.0.1:{port}/?{mark}");
            let seen = std::thread::spawn(move || attached.line(&mark).map(drop));
            eventually("the attached session shows a request", || {
                let page = run(&mut (self.curl)(&["-sf", "--max-time", "5", &url]))?;
                ensure!(page.contains("nginx"), "{protocol}: {page}");
                ensure!(seen.is_finished(), "{protocol}: nothing yet");
                Ok(())
            })?;
            match seen.join() {
                Ok(shown) => shown.with_context(|| format!("attach over {protocol}"))?,
                Err(_) => bail!("the reader of the attached session has panicked"),
            }
            logs.line(&format!("through-the-forward-{protocol}"))?;
        }
        Ok(())
    }
}

/// The same command under a terminal of its own.
#[must_use]
pub fn in_terminal(command: &Command) -> Command {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
        .collect();
    let mut wrapped = Command::new("script");
    wrapped
        .args(["-qefc", &words.join(" "), "/dev/null"])
        .stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// A kubectl that goes on, and what it prints.
pub struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().context("no output")?;
        Ok(Self {
            child,
            lines: BufReader::new(out).lines(),
        })
    }

    /// Reads until a line has `text`, and returns that line.
    ///
    /// # Errors
    /// When it ends before.
    pub fn line(&mut self, text: &str) -> Result<String> {
        for line in self.lines.by_ref() {
            let line = line?;
            if line.contains(text) {
                return Ok(line);
            }
        }
        bail!("it ended before it printed {text:?}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
