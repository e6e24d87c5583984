//! Helm, and the chart of this checkout.

use std::process::Command;

use anyhow::Result;

use crate::kubectl::Kubectl;
use crate::lab::NAMESPACE;
use crate::process::run;
use crate::tailnet::Tailnet;
use crate::workspace;

/// The release that tests install.
const RELEASE: &str = "tailscale-operator";

/// The chart, in the checkout.
pub const CHART: &str = "charts/tailwharf-operator";

/// The options of Helm that say which tailnet the chart is for, with which credentials, and with which image.
///
/// # Errors
/// When the coordinator does not make the credentials.
pub fn options(tailnet: &Tailnet) -> Result<Vec<String>> {
    let (id, secret) = tailnet.oauth_client("tag:k8s-operator")?;
    let values = [
        ("oauth.clientId", id.as_str()),
        ("oauth.clientSecret", &secret),
        ("loginServer", tailnet.url()),
        ("operatorConfig.image.repository", "tailwharf.test/tailwharf"),
        ("operatorConfig.image.tag", "dev"),
    ];
    let option = |(name, value): (&str, &str)| format!("--set-string={name}={value}");
    Ok(values.into_iter().map(option).collect())
}

/// What the chart renders with these options of `helm template`.
///
/// # Errors
/// Helm's own words, if it does not take the options.
pub fn template(options: &[&str]) -> Result<String> {
    let mut command = Command::new(workspace::helm());
    command
        .args(["template", RELEASE, CHART])
        .current_dir(workspace::root())
        .args([
            "--namespace",
            NAMESPACE,
            "--kube-version",
            workspace::KUBERNETES_VERSION,
        ])
        .args(options);
    run(&mut command)
}

/// The release in one cluster.
#[derive(Clone, Debug)]
pub struct Release(Kubectl);

impl Release {
    /// The release in the cluster of this kubectl.
    #[must_use]
    pub fn of(kubectl: &Kubectl) -> Self {
        Self(kubectl.clone())
    }

    /// The command that installs the chart, or upgrades it, with these options, and waits until the operator is ready.
    #[must_use]
    pub fn upgrade(&self, options: &[impl AsRef<str>]) -> Command {
        let mut command = self.command("upgrade");
        command
            .args(["--install", RELEASE, CHART, "--wait", "--timeout=2m"])
            .args(options.iter().map(AsRef::as_ref))
            .current_dir(workspace::root());
        command
    }

    /// Goes back to what an earlier revision said.
    ///
    /// # Errors
    /// Helm's own words.
    pub fn roll_back(&self, revision: &str) -> Result<String> {
        run(self
            .command("rollback")
            .args([RELEASE, revision, "--wait", "--timeout=2m"]))
    }

    /// Removes the release.
    ///
    /// # Errors
    /// Helm's own words.
    pub fn uninstall(&self) -> Result<String> {
        run(self
            .command("uninstall")
            .args([RELEASE, "--wait", "--timeout=3m"]))
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(workspace::helm());
        command
            .arg(verb)
            .arg("--kubeconfig")
            .arg(self.0.kubeconfig())
            .args(["--namespace", NAMESPACE]);
        command
    }
}
