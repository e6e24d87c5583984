//! What a test needs of the machine, and the reason to give when it is not there.

use std::path::{Path, PathBuf};

use crate::workspace;

/// Something that a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Root, for network namespaces and clusters.
    Root,
    /// kube-apiserver, etcd and kubectl.
    ApiServer,
    /// A whole cluster: containerd, runc, CNI plugins.
    Cluster,
    /// The official client's programs.
    OfficialClient,
    /// The official operator and its custom resource definitions.
    OfficialOperator,
    /// The ACME server `pebble`.
    Pebble,
    /// Helm.
    Helm,
    /// The static release binary.
    Binary,
    /// The image archive.
    Image,
    /// The image archives of the official proxy and operator.
    OfficialImages,
    /// Somebody who asks for it: the test was not seen to pass yet. To be removed once it was.
    Asking,
}

/// The first need that this machine does not meet, as a sentence that says what to do.
#[must_use]
pub fn unmet(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Root if !nix::unistd::geteuid().is_root() => Some("needs root".to_owned()),
        Need::Root => None,
        Need::ApiServer => missing(
            &[
                workspace::kubernetes("kube-apiserver"),
                workspace::kubernetes("kubectl"),
                "/usr/bin/etcd".into(),
            ],
            "run `make setup`",
        ),
        Need::Cluster => missing(
            &[
                workspace::kubernetes("kubelet"),
                "/usr/bin/containerd".into(),
                "/usr/lib/cni/bridge".into(),
            ],
            "run `make setup`",
        ),
        Need::OfficialClient => missing(
            &[
                workspace::official("tailscaled"),
                workspace::official("tailscale"),
            ],
            "run `make setup`",
        ),
        Need::OfficialOperator => missing(
            &[workspace::official("k8s-operator"), workspace::official_crds()],
            "run `make setup`",
        ),
        Need::Pebble => missing(&[workspace::pebble()], "run `make setup`"),
        Need::Helm => missing(&[workspace::helm()], "run `make setup`"),
        Need::Binary => missing(&[workspace::tailwharf()], "run `make build`"),
        Need::Image => missing(&[workspace::image()], "run `make image`"),
        Need::Asking if !is_asked_for() => {
            Some("was not seen to pass yet: TAILWHARF_UNSEEN=1 runs it".to_owned())
        }
        Need::Asking => None,
        Need::OfficialImages => missing(
            &[
                workspace::test_image("official-proxy"),
                workspace::test_image("official-operator"),
            ],
            "run `make images`",
        ),
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "to run what is not part of every run; there is no settings module here"
)]
fn is_asked_for() -> bool {
    std::env::var("TAILWHARF_UNSEEN").is_ok_and(|value| value == "1")
}

fn missing(files: &[PathBuf], remedy: &str) -> Option<String> {
    let absent = files.iter().find(|file| !file.exists())?;
    let name = absent.file_name().unwrap_or_default().to_string_lossy();
    Some(format!(
        "{name} is missing in {}: {remedy}",
        absent.parent().unwrap_or_else(|| Path::new("/")).display()
    ))
}
