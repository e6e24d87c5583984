//! Files that are derived: custom resource definitions from types, parts of the chart from those and from manifests, the schema of the
//! coordinator's configuration.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use kube_core::CustomResourceExt;
use tailwharf_coordinator::Config;
use tailwharf_kube_types::dns_config::DNSConfig;
use tailwharf_kube_types::schema::definition;
use tailwharf_kube_types::{Connector, Identity, ProxyClass};

use crate::chart;

const NOTE: &str = "# Generated from crates/kube-types by `cargo xtask generate`.\n";

/// Path and content of each generated file.
fn files(root: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut files = vec![chart::rules(root)?, configuration_schema()?];
    for (path, content) in definitions()? {
        files.extend(chart::copy_of(path).map(|copy| (copy, content.clone())));
        files.push((path.to_owned(), content));
    }
    Ok(files)
}

/// The same of the custom resource definitions.
fn definitions() -> anyhow::Result<Vec<(&'static str, String)>> {
    Ok(vec![
        file::<DNSConfig>("deploy/crds/dnsconfigs.tailscale.com.yaml")?,
        file::<Identity>("deploy/crds/identities.tailwharf.dev.yaml")?,
        file::<Connector>("deploy/crds/connectors.tailscale.com.yaml")?,
        file::<ProxyClass>("deploy/crds/proxyclasses.tailscale.com.yaml")?,
    ])
}

/// What editors check `coordinator.toml` by.
fn configuration_schema() -> anyhow::Result<(String, String)> {
    let text = serde_json::to_string_pretty(&Config::schema())?;
    Ok(("deploy/coordinator.schema.json".to_owned(), format!("{text}\n")))
}

/// The definition of a custom resource.
fn file<K: CustomResourceExt>(path: &'static str) -> anyhow::Result<(&'static str, String)> {
    let write = || anyhow::Ok(serde_saphyr::to_string(&definition::<K>()?)?);
    let text = write().with_context(|| format!("{path} cannot be written"))?;
    Ok((path, format!("{NOTE}{}\n", text.trim_end())))
}

/// Writes the files.
pub(crate) fn write(root: &Path) -> anyhow::Result<String> {
    let mut written = Vec::new();
    for (path, content) in files(root)? {
        let full = root.join(&path);
        if let Some(folder) = full.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(&full, content).with_context(|| format!("cannot write {}", full.display()))?;
        written.push(path);
    }
    Ok(format!("generated {}", written.join(", ")))
}

/// Compares the files with what would be written.
pub(crate) fn check(root: &Path) -> anyhow::Result<String> {
    let files = files(root)?;
    let current =
        |path: &str, content: &str| fs::read_to_string(root.join(path)).is_ok_and(|text| text == content);
    let stale: Vec<&str> = files
        .iter()
        .filter(|(path, content)| !current(path, content))
        .map(|(path, _)| path.as_str())
        .collect();
    if !stale.is_empty() {
        bail!(
            "not up to date: {}; run `cargo xtask generate` and commit the result",
            stale.join(", ")
        );
    }
    Ok(format!("generated files are up to date: {}", files.len()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_generated_files_are_committed() {
        super::check(&crate::workspace().unwrap()).unwrap();
    }
}
