//! Where things are: the checkout, what was built of it, and the cached peers.

use std::env;
use std::path::{Path, PathBuf};

/// The release of the official client and operator that tests run against.
pub const OFFICIAL_VERSION: &str = "1.102.5";
/// The Helm release that installs the chart in tests.
pub const HELM_VERSION: &str = "3.22.0";
/// The Kubernetes release that tests run against.
pub const KUBERNETES_VERSION: &str = "1.36.3";
/// The release of Let's Encrypt's small ACME server that tests run against.
pub const PEBBLE_VERSION: &str = "2.10.3";

/// The root of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// The static release binary that goes into the image, or the one that `TAILWHARF_BINARY` names.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "to try out a build that is quicker to make; there is no settings module here"
)]
pub fn tailwharf() -> PathBuf {
    let release = || root().join("target/x86_64-unknown-linux-musl/release/tailwharf");
    env::var("TAILWHARF_BINARY").map_or_else(|_| release(), PathBuf::from)
}

/// The image archive of the release binary.
#[must_use]
pub fn image() -> PathBuf {
    root().join("build/tailwharf.tar")
}

/// The image archive of a server that tests expose: `nginx` or `echo`.
#[must_use]
pub fn test_image(name: &str) -> PathBuf {
    root().join("build").join(format!("{name}.tar"))
}

/// Helm.
#[must_use]
pub fn helm() -> PathBuf {
    cache()
        .join("peers")
        .join(format!("helm-{HELM_VERSION}"))
        .join("helm")
}

/// A program of the official peers.
#[must_use]
pub fn official(program: &str) -> PathBuf {
    cache()
        .join("peers")
        .join(OFFICIAL_VERSION)
        .join("bin")
        .join(program)
}

/// The ACME server `pebble`.
#[must_use]
pub fn pebble() -> PathBuf {
    cache()
        .join("peers")
        .join(format!("pebble-{PEBBLE_VERSION}"))
        .join("bin/pebble")
}

/// The custom resource definitions of the official operator.
#[must_use]
pub fn official_crds() -> PathBuf {
    cache().join("peers").join(OFFICIAL_VERSION).join("crds")
}

/// A program of the Kubernetes release.
#[must_use]
pub fn kubernetes(program: &str) -> PathBuf {
    cache()
        .join("kube")
        .join(KUBERNETES_VERSION)
        .join("bin")
        .join(program)
}

#[expect(
    clippy::disallowed_methods,
    reason = "where the build scripts put things; there is no settings module here"
)]
fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var("HOME").unwrap_or_default()).join(".cache");
    env::var("XDG_CACHE_HOME")
        .map_or_else(|_| home(), PathBuf::from)
        .join("tailwharf")
}
