//! Certificates of devices that serve HTTP, from pebble, the ACME server by which Let's Encrypt lets clients be tested: proofs by DNS that the coordinator's
//! records answer, refusals, limits, and one account for all.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bed;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use serde_json::{Value, json};
use tailwharf_coordinator::model::Actor;
use tailwharf_coordinator::ops::NewAuthKey;
use tailwharf_coordinator::{Config, Coordinator, Handle, Operations};
use tailwharf_kube_types::names::account_secret_name;
use tailwharf_kube_types::{ConditionStatus, ConditionType, IdentityReason};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::{Pebble, txt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::bed::{Bed, Member, NAMESPACE, get};

const POOL: &str = "acme";
const SUFFIX: &str = "tail1234.ts.net";
/// Devices that get what they ask for.
const GOOD: [&str; 5] = ["web-0", "web-1", "web-2", "web-3", "web-4"];
/// The authority issues nothing for it.
const REFUSED: &str = "refused";
/// The authority does not see its record.
const UNSEEN: &str = "unseen";
/// Their authority wants fewer orders.
const LIMITED: [&str; 2] = ["limited-0", "limited-1"];
/// Of another cluster, with the name of a device that is there.
const TWIN: &str = "twin";
/// The tailnet gives it no certificates.
const PLAIN: &str = "plain";
/// Its authority does not answer.
const GONE: &str = "gone";
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    // RUST_LOG=tailwharf_proxy=debug shows what the members do.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    tailwharf_e2e::run(
        &[Need::ApiServer, Need::Pebble],
        Fixture::start,
        &[
            ("one_account_makes_one_order_for_each_name", one_account),
            ("what_the_authority_refuses_is_told_in_its_words", refusals),
            ("a_pause_that_the_authority_wants_is_kept", limits),
            ("a_name_that_another_device_has_gets_a_number", same_name),
            ("a_tailnet_without_certificates_is_told", disabled),
            ("a_device_that_goes_takes_its_order_along", gone_meanwhile),
        ],
    )
}

struct Fixture {
    member: Member,
    pebble: Pebble,
    control: String,
    auth_key: String,
    tailnet: Handle,
    bed: Bed,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let devices = GOOD
            .iter()
            .chain(&[REFUSED, UNSEEN, TWIN, PLAIN, GONE])
            .chain(&LIMITED);
        let mut secrets: Vec<String> = devices.map(|name| format!("ts-{name}-0")).collect();
        secrets.push(account_secret_name(POOL));
        let bed = Bed::start(&secrets)?;
        let (tailnet, control, auth_key) = bed.runtime.block_on(async {
            bed.secret(&account_secret_name(POOL), json!({})).await?;
            let (tailnet, control) = coordinator(dir.path()).await?;
            let auth_key = auth_key(tailnet.operations()).await?;
            anyhow::Ok((tailnet, control, auth_key))
        })?;
        let records = tailnet.operations().clone();
        let dns = txt::serve(move |name| records.dns_txt(name).filter(|_| !name.contains(UNSEEN)))?;
        let pebble = Pebble::start(dir.path(), dns, 5002, &[format!("{REFUSED}.{SUFFIX}")])?;
        let member = bed
            .runtime
            .block_on(bed.member(POOL, "acme-0", Some(&pebble.trust)))?;
        Ok(Self {
            member,
            pebble,
            control,
            auth_key,
            tailnet,
            bed,
            _dir: dir,
        })
    }

    /// Makes a device that serves HTTPS with a certificate from `directory`.
    async fn device(&self, name: &str, directory: &str) -> Result<()> {
        self.device_named(name, name, directory).await
    }

    /// Makes one that asks for any name.
    async fn device_named(&self, name: &str, hostname: &str, directory: &str) -> Result<()> {
        let identity = format!("ts-{name}");
        self.bed
            .secret(&format!("{identity}-0"), json!({"auth_key": self.auth_key}))
            .await?;
        let spec = json!({
            "hostname": hostname,
            "tags": ["tag:k8s"],
            "pool": POOL,
            "loginServer": self.control,
            "web": {"hosts": [{"name": "@"}], "acmeDirectory": directory},
        });
        self.bed.identity(&identity, POOL, spec).await
    }

    /// Waits until the certificate of a device is as far as this; the condition's message.
    async fn becomes(&self, name: &str, status: ConditionStatus, reason: IdentityReason) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let identity = self.bed.identities().get(&format!("ts-{name}")).await?;
            let known = identity.status.unwrap_or_default();
            if known.step(ConditionType::CertificateReady) == (status, Some(reason)) {
                let condition = known.condition(ConditionType::CertificateReady);
                return Ok(condition
                    .map(|condition| condition.message.clone())
                    .unwrap_or_default());
            }
            ensure!(
                Instant::now() < deadline,
                "{name}: {:?}, want {reason}; pebble: {}",
                known.conditions,
                self.pebble.process.log_end(20)
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn secret(&self, name: &str) -> Result<Secret> {
        let secrets: Api<Secret> = Api::namespaced(self.bed.admin.clone(), NAMESPACE);
        Ok(secrets.get(&format!("ts-{name}-0")).await?)
    }
}

fn one_account(fixture: &mut Fixture) -> Result<()> {
    let runtime = fixture.bed.runtime.handle().clone();
    runtime.block_on(async {
        for name in GOOD {
            fixture.device(name, &fixture.pebble.directory).await?;
        }
        for name in GOOD {
            fixture
                .becomes(name, ConditionStatus::True, IdentityReason::Done)
                .await?;
            let data = fixture.secret(name).await?.data.unwrap_or_default();
            for half in ["crt", "key"] {
                let key = format!("{name}.{SUFFIX}.{half}");
                ensure!(
                    data.contains_key(&key),
                    "the Secret lacks {key}: {:?}",
                    data.keys()
                );
            }
        }
        ensure!(
            fixture.pebble.count("accounts") == 1,
            "{} accounts",
            fixture.pebble.count("accounts")
        );
        ensure!(
            fixture.pebble.count("orders") == GOOD.len(),
            "{} orders",
            fixture.pebble.count("orders")
        );
        let metrics = get(fixture.member.address, "/metrics").await?;
        let issued = format!(
            "tailwharf_proxy_certificate_orders_total{{outcome=\"issued\"}} {}\n",
            GOOD.len()
        );
        ensure!(metrics.contains(&issued), "{metrics}");

        // Another pod takes over, and has the certificates without an order.
        let next = fixture
            .bed
            .member(POOL, "acme-1", Some(&fixture.pebble.trust))
            .await?;
        let first = std::mem::replace(&mut fixture.member, next);
        first.stop.cancel();
        first.task.await?.context("the first member did not end well")?;
        let served = format!("tailwharf_proxy_certificate_devices {}\n", GOOD.len());
        let deadline = Instant::now() + PATIENCE;
        while !get(fixture.member.address, "/metrics").await?.contains(&served) {
            ensure!(Instant::now() < deadline, "the second pod does not serve all");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(
            fixture.pebble.count("orders") == GOOD.len(),
            "{} orders",
            fixture.pebble.count("orders")
        );
        Ok(())
    })
}

fn refusals(fixture: &mut Fixture) -> Result<()> {
    fixture.bed.runtime.block_on(async {
        fixture.device(REFUSED, &fixture.pebble.directory).await?;
        fixture.device(UNSEEN, &fixture.pebble.directory).await?;
        let (status, reason) = (ConditionStatus::False, IdentityReason::CertificateRefused);
        let told = fixture.becomes(REFUSED, status, reason).await?;
        ensure!(told.contains("refused.tail1234.ts.net"), "{told}");
        ensure!(told.to_lowercase().contains("policy"), "{told}");
        let told = fixture.becomes(UNSEEN, status, reason).await?;
        ensure!(told.contains("No TXT records"), "{told}");
        Ok(())
    })
}

fn limits(fixture: &mut Fixture) -> Result<()> {
    fixture.bed.runtime.block_on(async {
        let seen = Seen::default();
        let directory = authority(Answer::TooMany, seen.clone()).await?;
        let (status, reason) = (ConditionStatus::False, IdentityReason::CertificateRateLimited);
        fixture.device(LIMITED[0], &directory).await?;
        let told = fixture.becomes(LIMITED[0], status, reason).await?;
        ensure!(
            told.contains("3600 s") && told.contains("too many certificates"),
            "{told}"
        );
        let data = fixture.secret(LIMITED[0]).await?.data.unwrap_or_default();
        ensure!(
            data.contains_key("tailwharf-certificate.json"),
            "a restart would order at once"
        );
        fixture.device(LIMITED[1], &directory).await?;
        let told = fixture.becomes(LIMITED[1], status, reason).await?;
        ensure!(told.contains("ordered after it"), "{told}");
        ensure!(seen.orders() == 1, "{} orders in the pause", seen.orders());
        Ok(())
    })
}

fn same_name(fixture: &mut Fixture) -> Result<()> {
    fixture.bed.runtime.block_on(async {
        fixture
            .device_named(TWIN, GOOD[0], &fixture.pebble.directory)
            .await?;
        fixture
            .becomes(TWIN, ConditionStatus::True, IdentityReason::Done)
            .await?;
        let identity = fixture.bed.identities().get(&format!("ts-{TWIN}")).await?;
        let status = identity.status.unwrap_or_default();
        let name = status.fqdn.clone().unwrap_or_default();
        ensure!(name == format!("{}-1.{SUFFIX}", GOOD[0]), "it is {name}");
        let told = status
            .condition(ConditionType::Registered)
            .context("no condition")?;
        ensure!(
            told.message.contains("another device of the tailnet"),
            "{}",
            told.message
        );
        let data = fixture.secret(TWIN).await?.data.unwrap_or_default();
        ensure!(data.contains_key(&format!("{name}.crt")), "{:?}", data.keys());
        Ok(())
    })
}

fn disabled(fixture: &mut Fixture) -> Result<()> {
    fixture.bed.runtime.block_on(async {
        let https = async |on: bool| {
            let operations = fixture.tailnet.operations();
            operations
                .edit_settings(Actor::Administrator, move |settings| settings.https = on)
                .await
        };
        https(false).await?;
        fixture.device(PLAIN, &fixture.pebble.directory).await?;
        let (status, reason) = (ConditionStatus::False, IdentityReason::CertificatesDisabled);
        let told = fixture.becomes(PLAIN, status, reason).await?;
        ensure!(told.contains("Turn on HTTPS certificates"), "{told}");
        https(true).await?;
        Ok(())
    })
}

fn gone_meanwhile(fixture: &mut Fixture) -> Result<()> {
    fixture.bed.runtime.block_on(async {
        let hosted = async || -> Result<usize> {
            let metrics = get(fixture.member.address, "/metrics").await?;
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix("tailwharf_proxy_identities "));
            Ok(line.context("no such metric")?.parse()?)
        };
        let before = hosted().await?;
        let seen = Seen::default();
        let directory = authority(Answer::None, seen.clone()).await?;
        fixture.device(GONE, &directory).await?;
        until("it is ordered", async || Ok(seen.open() == 1)).await?;
        let name = format!("ts-{GONE}");
        fixture
            .bed
            .identities()
            .delete(&name, &Default::default())
            .await?;
        until("the order is given up", async || Ok(seen.open() == 0)).await?;
        until("it is hosted no more", async || Ok(hosted().await? == before)).await?;
        ensure!(seen.orders() == 1, "{} orders", seen.orders());
        Ok(())
    })
}

async fn until(what: &str, done: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done().await? {
        ensure!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A coordinator without an authority of its own, and its URL.
async fn coordinator(dir: &Path) -> Result<(Handle, String)> {
    let port = || -> Result<SocketAddr> { Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?) };
    let (control, relay, stun) = (port()?, port()?, port()?);
    let policy = dir.join("policy.hujson");
    fs::write(&policy, "{\"tagOwners\": {\"tag:k8s\": []}}")?;
    let url = format!("http://{control}");
    let text = format!(
        "server_url = \"{url}\"\nlisten = \"{control}\"\ndata_dir = {data:?}\nmagic_dns_suffix = \"{SUFFIX}\"\npolicy_file = {policy:?}\n\
         [ca]\nenabled = false\n[relay]\nlisten = \"{relay}\"\nstun_listen = \"{stun}\"\nhostname = \"127.0.0.1\"\n",
        data = dir.join("data"),
    );
    let config = Config::parse(&text, &policy)?;
    Ok((Coordinator::start(config, CancellationToken::new()).await?, url))
}

async fn auth_key(operations: &Operations) -> Result<String> {
    let key = NewAuthKey {
        creator: Actor::Administrator,
        owner: None,
        description: String::new(),
        reusable: true,
        ephemeral: false,
        preauthorized: true,
        tags: BTreeSet::from(["tag:k8s".parse()?]),
        lifetime: None,
    };
    Ok(operations.create_auth_key(key).await?.secret.reveal().to_owned())
}

/// What an authority does with an order.
#[derive(Clone, Copy)]
enum Answer {
    /// It has issued enough.
    TooMany,
    /// It says nothing.
    None,
}

/// The orders that an authority was asked for, and those of them that somebody waits for.
#[derive(Clone, Default)]
struct Seen(Arc<[AtomicUsize; 2]>);

/// An order that somebody waits for.
struct Open(Seen);

impl Seen {
    fn orders(&self) -> usize {
        self.0[0].load(Ordering::Relaxed)
    }

    fn open(&self) -> usize {
        self.0[1].load(Ordering::Relaxed)
    }

    fn order(&self) -> Open {
        for count in &*self.0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Open(self.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0[1].fetch_sub(1, Ordering::Relaxed);
    }
}

/// An authority that issues nothing; the URL of its directory.
async fn authority(answer: Answer, seen: Seen) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let url = format!("{base}/directory");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (base, seen) = (base.clone(), seen.clone());
            let service = service_fn(move |request| respond(base.clone(), answer, seen.clone(), request));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Ok(url)
}

async fn respond(
    base: String,
    answer: Answer,
    seen: Seen,
    request: Request<Incoming>,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let _ = request.into_body().collect().await;
    let mut response = Response::builder().header("replay-nonce", "a-nonce");
    let body: Value = match path.as_str() {
        "/directory" => json!({
            "newNonce": format!("{base}/nonce"),
            "newAccount": format!("{base}/account"),
            "newOrder": format!("{base}/order"),
        }),
        "/account" => {
            response = response
                .status(201)
                .header("location", format!("{base}/account/1"));
            json!({"status": "valid"})
        }
        "/order" => {
            let _open = seen.order();
            if matches!(answer, Answer::None) {
                std::future::pending::<()>().await;
            }
            response = response.status(429).header("retry-after", "3600");
            json!({
                "type": "urn:ietf:params:acme:error:rateLimited",
                "detail": "too many certificates (50) already issued",
            })
        }
        _ => json!({}),
    };
    Ok(response.body(Full::from(body.to_string())).unwrap())
}
