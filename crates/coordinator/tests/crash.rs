//! What a coordinator acknowledged survives that it is killed.

#![expect(clippy::unwrap_used, reason = "helpers of the test, which fails by panic")]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tailwharf_coordinator::{Config, Coordinator, model::{Actor, Role}, ops::NewUser};
use tokio_util::sync::CancellationToken;

const ROLE: &str = "TAILWHARF_TEST_CRASH_DIR";
const ROUNDS: usize = 3;
const CHANGES: usize = 60;

fn config(dir: &Path) -> Config {
    let text = format!(
        "server_url = \"http://127.0.0.1:1\"\nlisten = \"127.0.0.1:0\"\ndata_dir = {dir:?}\nmagic_dns_suffix = \"t.example.net\"\n[relay]\nenabled = false\n"
    );
    Config::parse(&text, dir).unwrap()
}

/// Creates users until killed, and prints each one once it is acknowledged.
async fn write_until_killed(dir: &Path) {
    let handle = Coordinator::start(config(dir), CancellationToken::new())
        .await
        .unwrap();
    let mut out = std::io::stdout();
    loop {
        let login = format!("user{}@example.com", handle.operations().world().users().count());
        let new = NewUser {
            login,
            display_name: String::new(),
            role: Role::Member,
        };
        let user = handle.operations().create_user(Actor::Administrator, new).await.unwrap();
        writeln!(out, "acknowledged {} {}", user.id, user.login).unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test starts itself a second time, and tells it so"
)]
async fn acknowledged_changes_survive_kill() {
    if let Ok(dir) = std::env::var(ROLE) {
        return write_until_killed(&PathBuf::from(dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for _ in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "acknowledged_changes_survive_kill", "--nocapture"])
            .env(ROLE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut seen = 0;
        for line in lines {
            if let Some(user) = line.strip_prefix("acknowledged ") {
                acknowledged.push(user.to_owned());
                seen += 1;
                if seen == CHANGES {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(seen >= CHANGES, "the child ended early, after {seen} changes");
    }
    let handle = Coordinator::start(config(dir.path()), CancellationToken::new())
        .await
        .unwrap();
    let world = handle.operations().world();
    let stored: Vec<String> = world
        .users()
        .map(|user| format!("{} {}", user.id, user.login))
        .collect();
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|user| !stored.contains(user))
        .collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    handle.stop().await;
}
