//! Proof that the pure crates are pure: nothing in their dependency tree and sources reads a clock, draws randomness, runs tasks or does I/O, but
//! for the exceptions named here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// The pure crates, as folders below `crates/`.
const PURE: &[&str] = &["wire", "policy", "node-core", "kube-types", "plan"];

/// Crates that run tasks, open sockets or files, or draw randomness from the system. Generators that are handed their seed are none of these.
const IMPURE: &[&str] = &[
    "async-io",
    "async-std",
    "futures-executor",
    "getrandom",
    "hyper",
    "hyper-util",
    "mio",
    "polling",
    "rand",
    "reqwest",
    "rusqlite",
    "signal-hook",
    "smol",
    "socket2",
    "tempfile",
    "tokio",
    "tokio-util",
    "ureq",
];

/// A dependency that a pure crate may have although it is in [`IMPURE`].
struct Exception {
    krate: &'static str,
    dependency: &'static str,
    #[expect(dead_code, reason = "for the reader")]
    reason: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        krate: "wire",
        dependency: "getrandom",
        reason: "ring links it for its SystemRandom, which the sources may not name",
    },
    Exception {
        krate: "policy",
        dependency: "getrandom",
        reason: "comes with wire",
    },
    Exception {
        krate: "node-core",
        dependency: "getrandom",
        reason: "comes with wire; and boringtun draws the ephemeral keys of its handshakes itself",
    },
];

/// What sources of pure crates may not contain, outside of tests and comments.
const FORBIDDEN: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "UNIX_EPOCH",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "std::io::stdin",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "ToSocketAddrs",
    "thread_rng",
    "rand::rng",
    "rand::random",
    "OsRng",
    "SystemRandom",
    "getrandom",
    "tokio",
];

/// A line of a source that may contain what [`FORBIDDEN`] lists.
struct Allowed {
    file: &'static str,
    text: &'static str,
    #[expect(dead_code, reason = "for the reader")]
    reason: &'static str,
}

const ALLOWED: &[Allowed] = &[];

/// Checks trees and sources, and lists everything that is not pure.
pub(crate) fn check(root: &Path) -> anyhow::Result<String> {
    let mut found = Vec::new();
    for krate in PURE {
        found.extend(impure_dependencies(root, krate)?);
        for file in sources(&root.join("crates").join(krate).join("src"))? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            found.extend(impure_lines(&name, &text));
        }
    }
    if !found.is_empty() {
        bail!("not pure:\n  {}", found.join("\n  "));
    }
    Ok(format!("pure: {}", PURE.join(", ")))
}

fn impure_dependencies(root: &Path, krate: &str) -> anyhow::Result<Vec<String>> {
    let package = format!("tailwharf-{krate}");
    let output = Command::new(option_env!("CARGO").unwrap_or("cargo"))
        .args([
            "tree",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--package",
            &package,
        ])
        .current_dir(root)
        .output()
        .context("cannot run cargo tree")?;
    if !output.status.success() {
        bail!(
            "cargo tree failed for {package}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let tree = String::from_utf8(output.stdout).context("cargo tree wrote no UTF-8")?;
    Ok(listed_as_impure(krate, &tree)
        .into_iter()
        .map(|name| format!("{package} depends on {name}"))
        .collect())
}

/// Names in the output of `cargo tree` that a pure crate may not depend on.
fn listed_as_impure<'a>(krate: &str, tree: &'a str) -> Vec<&'a str> {
    let excepted = |name: &str| {
        EXCEPTIONS
            .iter()
            .any(|exception| exception.krate == krate && exception.dependency == name)
    };
    let mut names: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| IMPURE.contains(name) && !excepted(name));
    names
}

/// Lines before the module of tests that contain something forbidden, with their number.
fn impure_lines(file: &str, text: &str) -> Vec<String> {
    let code = text
        .lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("mod tests {"));
    code.filter_map(|(number, line)| {
        let line = line.split("//").next().unwrap_or_default();
        let word = FORBIDDEN.iter().find(|word| contains_word(line, word))?;
        let allowed = ALLOWED
            .iter()
            .any(|allowed| allowed.file == file && line.contains(allowed.text));
        (!allowed).then(|| format!("{file}:{}: {word}", number + 1))
    })
    .collect()
}

/// Whether `line` has `word`, not as part of a longer name.
fn contains_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(part_of_name) && !line[at + word.len()..].starts_with(part_of_name)
    })
}

fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", folder.display()))?
            .path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pure_crates_are_pure() {
        check(&crate::workspace().unwrap()).unwrap();
    }

    #[test]
    fn finds_clocks_sockets_and_randomness_in_sources() {
        let text = "let a = Instant::now();\n// Instant::now\nlet b = my_tokio();\nuse tokio::net;\nlet c = OsRng;\n";
        assert_eq!(
            impure_lines("x.rs", text),
            ["x.rs:1: Instant::now", "x.rs:4: tokio", "x.rs:5: OsRng"]
        );
    }

    #[test]
    fn tests_may_do_as_they_like() {
        assert!(impure_lines("x.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; }\n").is_empty());
    }

    #[test]
    fn finds_impure_dependencies_in_a_tree() {
        assert_eq!(
            listed_as_impure(
                "plan",
                "tailwharf-plan v0.1.0 (/x)\nserde v1.0.0\ntokio v1.0.0\ntokio v1.0.0 (*)\n"
            ),
            ["tokio"]
        );
    }
}
