//! What the Helm chart renders, and what it says to values that it does not take. Needs no cluster.
//!
//! Each `cases/chart/NAME.yaml` is a file of values, and `NAME.golden` beside it what becomes of it, without the custom resource definitions.
//! `UPDATE_GOLDEN=1 cargo test -p tailwharf-e2e --test chart` writes the goldens; read the difference before you commit it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use tailwharf_testkit::helm::{CHART, template};
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::workspace;

fn main() -> ExitCode {
    tailwharf_e2e::run(
        &[Need::Helm],
        || Ok(()),
        &[
            ("helm_has_nothing_against_the_chart", lint),
            ("values_become_the_objects_of_the_goldens", goldens),
            ("values_that_are_not_taken_are_named", refusals),
        ],
    )
}

/// The files of values, in order.
fn cases() -> Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/chart");
    let files = fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let mut cases = files
        .map(|file| Ok(file?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    cases.sort();
    ensure!(!cases.is_empty(), "{} has no cases", folder.display());
    Ok(cases)
}

fn lint(_: &mut ()) -> Result<()> {
    for case in cases()? {
        let mut command = Command::new(workspace::helm());
        command
            .args([
                "lint",
                "--strict",
                "--kube-version",
                workspace::KUBERNETES_VERSION,
            ])
            .args([CHART, "--values"])
            .arg(&case)
            .current_dir(workspace::root());
        run(&mut command)?;
    }
    Ok(())
}

fn goldens(_: &mut ()) -> Result<()> {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for case in cases()? {
        let rendered = template(&["--values", &case.display().to_string()])?;
        let objects: Vec<&str> = rendered
            .split("---\n")
            .filter(|object| !object.contains("\nkind: CustomResourceDefinition\n"))
            .collect();
        let rendered = objects.join("---\n");
        let golden = case.with_extension("golden");
        if update {
            fs::write(&golden, rendered)?;
            continue;
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        let differs = |(line, (is, was)): (usize, (&str, &str))| {
            (is != was).then(|| (line + 1, is.to_owned(), was.to_owned()))
        };
        let pairs = rendered.lines().chain([""]).zip(expected.lines().chain([""]));
        if let Some((line, is, was)) = pairs.enumerate().find_map(differs) {
            bail!("{}:{line}: rendered {is:?}, expected {was:?}", golden.display());
        }
        ensure!(rendered == expected, "{} has another length", golden.display());
    }
    Ok(())
}

/// Options that are not taken, and what the answer has to say.
const REFUSALS: [(&[&str], &str); 9] = [
    (&["--set", "oauth.clientID=id"], "clientID"),
    (&["--set", "oauth.clientId=id"], "oauth.clientSecret is needed"),
    (&["--set", "oauth.audience=aud"], "oauth.clientId is needed"),
    (
        &["--set-string", "operatorConfig.defaultTags[0]=k8s"],
        "defaultTags",
    ),
    (&["--set", "proxyConfig.defaultTags=k8s"], "defaultTags"),
    (&["--set", "apiServerProxyConfig.mode=on"], "mode"),
    (&["--set", "loginServer=control.example.com"], "loginServer"),
    (&["--set", "pool.replicas=0"], "replicas"),
    (
        &[
            "--set",
            "operatorConfig.extraEnv[0].name=TS_EXPERIMENTAL_KUBE_API_EVENTS",
            "--set-string",
            "operatorConfig.extraEnv[0].value=true",
        ],
        "enableEvents",
    ),
];

fn refusals(_: &mut ()) -> Result<()> {
    for (options, word) in REFUSALS {
        let Err(error) = template(options) else {
            bail!("{options:?} were taken");
        };
        let message = format!("{error:#}");
        ensure!(
            message.contains(word),
            "{options:?}: {message:?} does not say {word:?}"
        );
    }
    Ok(())
}
