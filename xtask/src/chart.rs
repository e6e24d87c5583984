//! What the Helm chart shares with the manifests of `deploy/`: custom resource definitions and the rules of roles. The manifests are the source.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

const CHART: &str = "charts/tailwharf-operator";
/// The manifests whose roles the chart has, too.
const MANIFESTS: [&str; 2] = ["deploy/operator.yaml", "deploy/apiserver-proxy.yaml"];

/// Where the chart has its copy of a definition.
pub(crate) fn copy_of(definition: &str) -> Option<String> {
    let name = definition.strip_prefix("deploy/crds/")?;
    Some(format!("{CHART}/files/crds/{name}"))
}

/// Path and content of the template that has the rules of each role under `tailwharf.rules.NAME`.
pub(crate) fn rules(root: &Path) -> anyhow::Result<(String, String)> {
    let mut text =
        "{{/* Generated from the manifests in deploy/ by `cargo xtask generate`: change the rules there. */}}\n"
            .to_owned();
    for manifest in MANIFESTS {
        let content =
            fs::read_to_string(root.join(manifest)).with_context(|| format!("cannot read {manifest}"))?;
        let roles: Vec<Role> = content.split("\n---\n").filter_map(role).collect();
        ensure!(!roles.is_empty(), "{manifest} has no roles");
        for Role { name, rules } in roles {
            write!(
                text,
                "\n{{{{- define \"tailwharf.rules.{name}\" -}}}}\n{rules}{{{{- end }}}}\n"
            )?;
        }
    }
    Ok((format!("{CHART}/templates/_rules.tpl"), text))
}

/// A Role or ClusterRole of a manifest.
struct Role<'a> {
    name: &'a str,
    /// The list under `rules` with its comments, one element a line at least.
    rules: String,
}

/// The role that a document is, if it is one. The text is taken as it stands, with its comments.
fn role(document: &str) -> Option<Role<'_>> {
    let field = |name: &str| document.lines().find_map(|line| line.strip_prefix(name));
    let kind = field("kind: ")?;
    if !matches!(kind, "Role" | "ClusterRole") {
        return None;
    }
    let name = field("  name: ")?;
    let lines = document.lines().skip_while(|line| *line != "rules:").skip(1);
    let indented = lines.map_while(|line| line.strip_prefix("  "));
    let rules = indented.fold(String::new(), |text, line| text + line + "\n");
    Some(Role { name, rules })
}

#[cfg(test)]
mod tests {
    #[test]
    fn takes_the_rules_of_a_role_with_their_comments() {
        let text = "# What it may.\nkind: Role\nmetadata:\n  name: reader\nrules:\n  # Pods.\n  - resources: [pods]\n    verbs: [get]\n";
        let role = super::role(text).unwrap();
        assert_eq!(role.name, "reader");
        assert_eq!(role.rules, "# Pods.\n- resources: [pods]\n  verbs: [get]\n");
        assert!(super::role("kind: RoleBinding\nmetadata:\n  name: reader\n").is_none());
    }
}
