//! Two members of a pool against a real kube-apiserver, with the rights that a pool's Role gives. Their control server
//! does not answer: this is about who hosts what, and what the status says.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bed;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tailwharf_kube_types::{ConditionType, Identity, IdentityReason};
use tailwharf_testkit::requirements::Need;
use tokio::runtime::Runtime;

use crate::bed::{Bed, NAMESPACE, get};

const IDENTITIES: usize = 6;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    // RUST_LOG=tailwharf_proxy=debug shows what the members do.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    tailwharf_e2e::run(
        &[Need::ApiServer],
        start,
        &[
            (
                "identities_are_shared_and_handed_over",
                identities_are_shared_and_handed_over,
            ),
            ("a_member_that_dies_is_replaced", a_member_that_dies_is_replaced),
            (
                "a_secret_that_comes_later_is_found",
                a_secret_that_comes_later_is_found,
            ),
            (
                "an_applied_status_depends_on_its_version",
                an_applied_status_depends_on_its_version,
            ),
        ],
    )
}

fn start() -> Result<Bed> {
    let pools = ["shared", "dying", "later"];
    let secrets: Vec<String> = pools
        .iter()
        .flat_map(|pool| (0..IDENTITIES).map(move |n| format!("ts-{pool}-{n}-0")))
        .collect();
    Bed::start(&secrets)
}

async fn identity(bed: &Bed, name: &str, pool: &str) -> Result<()> {
    let spec =
        json!({ "hostname": name, "tags": ["tag:k8s"], "pool": pool, "loginServer": "http://127.0.0.1:1" });
    bed.identity(name, pool, spec).await
}

async fn secret(bed: &Bed, name: &str) -> Result<()> {
    bed.secret(&format!("{name}-0"), json!({ "auth_key": "tskey-auth-test" }))
        .await
}

/// Waits until the identities of the pool are hosted by exactly these pods.
async fn hosted_by(bed: &Bed, pool: &str, pods: &[&str]) -> Result<()> {
    let wanted: BTreeSet<&str> = pods.iter().copied().collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = bed.identities().list(&Default::default()).await?;
        let of_pool = all.items.iter().filter(|identity| identity.spec.pool == pool);
        let hosts: Vec<Option<&str>> = of_pool
            .map(|identity| identity.status.as_ref().and_then(|status| status.host.as_deref()))
            .collect();
        if hosts.iter().all(Option::is_some)
            && hosts.iter().flatten().copied().collect::<BTreeSet<_>>() == wanted
        {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "hosts are {hosts:?}, want {wanted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until an identity is registering, or blocked, for this reason.
async fn reason(bed: &Bed, name: &str, reason: IdentityReason) -> Result<Identity> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let identity = bed.identities().get(name).await?;
        let step = identity
            .status
            .as_ref()
            .map(|status| status.step(ConditionType::Registered));
        if step.is_some_and(|(_, known)| known == Some(reason)) {
            return Ok(identity);
        }
        ensure!(Instant::now() < deadline, "{:?}, want {reason}", identity.status);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn identities_are_shared_and_handed_over(bed: &mut Bed) -> Result<()> {
    bed.runtime.block_on(async {
        for n in 0..IDENTITIES {
            let name = format!("ts-shared-{n}");
            secret(bed, &name).await?;
            identity(bed, &name, "shared").await?;
        }
        let first = bed.member("shared", "shared-0", None).await?;
        hosted_by(bed, "shared", &["shared-0"]).await?;
        let ready = get(first.address, "/readyz").await?;
        ensure!(
            ready.starts_with("HTTP/1.1 200") && ready.contains("ts-shared-0 is not ready"),
            "{ready}"
        );

        let second = bed.member("shared", "shared-1", None).await?;
        hosted_by(bed, "shared", &["shared-0", "shared-1"]).await?;

        first.stop.cancel();
        first.task.await?.context("the first member did not end well")?;
        hosted_by(bed, "shared", &["shared-1"]).await?;
        let leases: Api<Lease> = Api::namespaced(bed.admin.clone(), NAMESPACE);
        let holder = leases
            .get("shared-0")
            .await?
            .spec
            .and_then(|spec| spec.holder_identity);
        ensure!(holder.is_none(), "the Lease was not given back: {holder:?}");
        let metrics = get(second.address, "/metrics").await?;
        ensure!(
            metrics.contains(&format!("tailwharf_proxy_identities {IDENTITIES}\n")),
            "{metrics}"
        );

        second.stop.cancel();
        second.task.await?.context("the second member did not end well")?;
        for identity in bed.identities().list(&Default::default()).await?.items {
            let host = identity.status.as_ref().and_then(|status| status.host.as_deref());
            ensure!(host.is_none(), "{} still names {host:?}", identity.name_any());
        }
        Ok(())
    })
}

fn a_member_that_dies_is_replaced(bed: &mut Bed) -> Result<()> {
    bed.runtime.block_on(async {
        for n in 0..IDENTITIES {
            let name = format!("ts-dying-{n}");
            secret(bed, &name).await?;
            identity(bed, &name, "dying").await?;
        }
        let runtime = Runtime::new()?;
        let first = {
            let _inside = runtime.enter();
            bed.member("dying", "dying-0", None).await?
        };
        let second = bed.member("dying", "dying-1", None).await?;
        hosted_by(bed, "dying", &["dying-0", "dying-1"]).await?;
        drop(first.task);
        // Everything of the first member stops where it is, as after SIGKILL.
        runtime.shutdown_background();
        let died = Instant::now();
        hosted_by(bed, "dying", &["dying-1"]).await?;
        ensure!(
            died.elapsed() >= Duration::from_secs(1),
            "taken over before the Lease could have ended"
        );
        second.stop.cancel();
        second.task.await?.context("the second member did not end well")
    })
}

fn a_secret_that_comes_later_is_found(bed: &mut Bed) -> Result<()> {
    bed.runtime.block_on(async {
        identity(bed, "ts-later-0", "later").await?;
        let member = bed.member("later", "later-0", None).await?;
        reason(bed, "ts-later-0", IdentityReason::SecretUnavailable).await?;
        secret(bed, "ts-later-0").await?;
        let identity = reason(bed, "ts-later-0", IdentityReason::ControlServerUnreachable).await?;
        let status = identity.status.context("the identity has no status")?;
        if status.host.as_deref() != Some("later-0") || status.claim.is_none() {
            bail!("{status:?}");
        }
        let secrets: Api<Secret> = Api::namespaced(bed.admin.clone(), NAMESPACE);
        let data = secrets.get("ts-later-0-0").await?.data.unwrap_or_default();
        for key in ["_machinekey", "_current-profile", "auth_key", "pod_uid"] {
            ensure!(
                data.contains_key(key),
                "the Secret lacks {key}: {:?}",
                data.keys()
            );
        }
        member.stop.cancel();
        member.task.await?.context("the member did not end well")
    })
}

/// What claims rely on: of two that depend on the same version, the API server takes one, forced or not.
fn an_applied_status_depends_on_its_version(bed: &mut Bed) -> Result<()> {
    bed.runtime.block_on(async {
        identity(bed, "ts-version-0", "version").await?;
        let version = bed.identities().get("ts-version-0").await?.resource_version();
        let claim = async |pod: &str| {
            let document = json!({
                "apiVersion": "tailwharf.dev/v1alpha1",
                "kind": "Identity",
                "metadata": { "name": "ts-version-0", "resourceVersion": version },
                "status": { "host": pod, "claim": "1.1" },
            });
            let params = PatchParams::apply(pod).force();
            bed.identities()
                .patch_status("ts-version-0", &params, &Patch::Apply(document))
                .await
        };
        claim("pod-0").await?;
        match claim("pod-1").await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => bail!("the later claim was answered with {other:?}"),
        }
    })
}
