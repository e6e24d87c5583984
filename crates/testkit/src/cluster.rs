//! A real cluster of one or more nodes, by `cluster/cluster.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::kubectl::Kubectl;
use crate::process::run;
use crate::workspace;

/// A running cluster. Dropping it removes every trace, unless [`Cluster::keep`] was called.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    kubectl: Kubectl,
    keep: bool,
}

impl Cluster {
    /// Starts a cluster, or takes the running one of that name.
    ///
    /// # Errors
    /// When a part does not come up; the message has the end of its log.
    pub fn up(name: &str) -> Result<Self> {
        Self::up_tuned(name, &[])
    }

    /// The same with variables of `cluster.sh`, which its head explains.
    ///
    /// # Errors
    /// When a part does not come up; the message has the end of its log.
    pub fn up_tuned(name: &str, variables: &[(&str, &str)]) -> Result<Self> {
        Self::up_nodes(name, 1, variables)
    }

    /// The same with this many nodes; the first has the control plane and the cluster's name, the others are called `NAME-2`, `NAME-3` and so on.
    ///
    /// # Errors
    /// When a part does not come up; the message has the end of its log.
    pub fn up_nodes(name: &str, nodes: u8, variables: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(workspace::root().join("cluster/cluster.sh"));
        run(command
            .args(["up", name, &nodes.to_string()])
            .envs(variables.iter().copied()))?;
        let path = script(&["kubeconfig", name])?;
        Ok(Self {
            name: name.to_owned(),
            kubectl: Kubectl::new(Path::new(path.trim())),
            keep: false,
        })
    }

    /// Removes a cluster of that name, if there is one.
    ///
    /// # Errors
    /// When its processes do not end.
    pub fn down(name: &str) -> Result<()> {
        script(&["down", name]).map(drop)
    }

    /// Leaves the cluster running when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Loads an image archive into the node.
    ///
    /// # Errors
    /// When it cannot be imported.
    pub fn load(&self, archive: &Path) -> Result<()> {
        script(&["load", &self.name, &archive.display().to_string()]).map(drop)
    }

    /// Ends a node at once, as a power failure does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_node(&self, node: &str) -> Result<()> {
        script(&["kill", &format!("{}/{node}", self.name)]).map(drop)
    }

    /// Starts a node again with what its disk holds, and returns when it is ready.
    ///
    /// # Errors
    /// When it runs, or does not come up.
    pub fn start_node(&self, node: &str) -> Result<()> {
        script(&["start", &format!("{}/{node}", self.name)]).map(drop)
    }

    /// Runs a program inside the node and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        script(&[&["exec", self.name.as_str()], words].concat())
    }

    /// kubectl as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The process ids, on this machine, of the containers named `container` of a pod.
    ///
    /// # Errors
    /// When the pod or its container is not there.
    pub fn pids(&self, namespace: &str, pod: &str, container: &str) -> Result<Vec<u32>> {
        let found = self.kubectl.get(&["pod", pod, "-n", namespace])?;
        let statuses = found["status"]["containerStatuses"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let status = statuses
            .into_iter()
            .find(|status| status["name"] == container)
            .context("no such container")?;
        let id = status["containerID"]
            .as_str()
            .unwrap_or_default()
            .trim_start_matches("containerd://")
            .to_owned();
        anyhow::ensure!(!id.is_empty(), "{pod}/{container} does not run");
        // The cgroup of a container is named by its id, and lists processes by their number on this machine.
        let folder = format!("*/{id}");
        let mut find = Command::new("find");
        find.args([
            "/sys/fs/cgroup",
            "-type",
            "d",
            "-path",
            &folder,
            "-exec",
            "cat",
            "{}/cgroup.procs",
            ";",
        ]);
        let text = run(&mut find)?;
        let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        pids.sort_unstable();
        pids.dedup();
        anyhow::ensure!(!pids.is_empty(), "no process of {pod}/{container}");
        Ok(pids)
    }

    /// The process id, on this machine, of a program of the first node, such as `kube-apiserver`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn program(&self, name: &str) -> Result<u32> {
        let init = self.kubectl.kubeconfig().with_file_name("nodes/1/init.pid");
        let text = fs::read_to_string(&init).with_context(|| format!("{}", init.display()))?;
        let init = text.split_whitespace().next().context("an empty record")?;
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid"));
        let home = namespace(init)?;
        for entry in fs::read_dir("/proc")? {
            let pid = entry?.file_name().into_string().unwrap_or_default();
            let is = |command: String| command.trim_end() == name;
            let named = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(is);
            if named && namespace(&pid).is_ok_and(|found| found == home) {
                return Ok(pid.parse()?);
            }
        }
        anyhow::bail!("{name} does not run in {}", self.name)
    }

    /// What a person needs to see of a namespace when a test fails: objects, events and logs.
    #[must_use]
    pub fn dump(&self, namespace: &str) -> String {
        let mut text = String::new();
        for words in [
            vec![
                "get",
                "pods,services,identities,leases",
                "-n",
                namespace,
                "-o",
                "wide",
            ],
            vec!["get", "services", "-A", "-o", "wide"],
            vec!["get", "events", "-A", "--sort-by=.lastTimestamp"],
            vec!["get", "identities", "-n", namespace, "-o", "yaml"],
        ] {
            let output = self
                .kubectl
                .run(&words)
                .unwrap_or_else(|error| format!("{error:#}"));
            text += &format!("--- kubectl {}\n{output}\n", words.join(" "));
        }
        for pod in self.pods(namespace).unwrap_or_default() {
            let log = self.kubectl.run(&["logs", "-n", namespace, &pod, "--tail=60"]);
            text += &format!(
                "--- logs {pod}\n{}\n",
                log.unwrap_or_else(|error| format!("{error:#}"))
            );
        }
        text
    }

    fn pods(&self, namespace: &str) -> Result<Vec<String>> {
        let list = self.kubectl.get(&["pods", "-n", namespace])?;
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Ok(list["items"]
            .as_array()
            .map(|items| items.iter().map(name).collect())
            .unwrap_or_default())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.keep {
            let _ = Self::down(&self.name);
        }
    }
}

fn script(words: &[&str]) -> Result<String> {
    let script: PathBuf = workspace::root().join("cluster/cluster.sh");
    run(Command::new(script).args(words))
}
