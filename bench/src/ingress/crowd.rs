//! Two hundred Ingresses whose certificates come from pebble, and what a hundred of them take.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tailwharf_coordinator::model::Actor;
use tailwharf_coordinator::ops::NewOauthClient;
use tailwharf_coordinator::{Config, Coordinator, Handle};
use tailwharf_testkit::apiserver::free_port;
use tailwharf_testkit::lab::NAMESPACE;
use tailwharf_testkit::process::Process;
use tailwharf_testkit::tailnet::SUFFIX;
use tailwharf_testkit::wait::eventually_within;
use tailwharf_testkit::{Bridge, Pebble, txt};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::stage::{Control, Stage, endpoints, ingress, service};
use crate::figures::{Bar, Figures};
use crate::tools::{highest_when_idle, resident, web_serve};

const INGRESSES: usize = 200;
/// Those that stay for the look at memory.
const STAY: usize = 100;
const BACKEND: u16 = 7_080;
/// Pebble looks for no pages, since proofs are records.
const NO_PAGES: u16 = 5_002;
const PATIENCE: Duration = Duration::from_secs(240);

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("tailwharf-bench-").tempdir()?;
    let dir = dir.path();
    let bridge = Bridge::create()?;
    let host = bridge.host();
    let runtime = Runtime::new()?;
    let tailnet = runtime.block_on(coordinator(dir, host))?;
    let (client_id, client_secret) = runtime.block_on(credentials(&tailnet))?;
    let records = tailnet.operations().clone();
    let dns = txt::serve(move |name| records.dns_txt(name))?;
    let pebble = Pebble::start(dir, dns, NO_PAGES, &[])?;
    let roots = dir.join("roots.pem");
    fs::write(&roots, &pebble.trust)?;
    let control = Control {
        url: &format!("http://{}", tailnet.local_addr()),
        client_id: &client_id,
        client_secret: &client_secret,
        acme: Some(&pebble.directory),
    };
    let stage = Stage::start(dir, host, &control)?;
    let _backend = web_serve(None, host, BACKEND, "one", dir)?;
    let mut proxy = stage.proxy(None, host, Some(&roots))?;
    stage.apply(&[service("web"), endpoints("web", &[host], BACKEND)])?;

    let names: Vec<String> = (0..INGRESSES).map(|number| format!("web-{number}")).collect();
    let all: Vec<_> = names.iter().map(|name| ingress(name, "web")).collect();
    let manifest = json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string();
    let began = Instant::now();
    stage.kubectl().feed(&["create", "-f", "-"], &manifest)?;
    ready(&stage, &mut proxy, INGRESSES)?;
    let took = began.elapsed().as_secs_f64();
    figures.add(
        "ingress.crowd.ready_200",
        took,
        "s",
        None,
        Some(Bar::AtMost(60.0)),
    );
    let full = resident(proxy.pid())?;
    figures.add("ingress.crowd.memory_200_when_ready", full, "MiB", None, None);
    counts(figures, &pebble);

    let gone: Vec<&str> = names[STAY..].iter().map(String::as_str).collect();
    let words = [&["delete", "ingress", "--wait=true", "--timeout=120s"], &gone[..]].concat();
    stage.kubectl().run(&words)?;
    proxy.stop()?;
    let mut proxy = stage.proxy(None, host, Some(&roots))?;
    ready(&stage, &mut proxy, STAY)?;
    let memory = highest_when_idle(|| resident(proxy.pid()))?;
    figures.add(
        "ingress.crowd.memory_100",
        memory,
        "MiB",
        None,
        Some(Bar::AtMost(80.0)),
    );
    let orders = pebble.count("orders");
    ensure!(
        orders == INGRESSES,
        "a restart has ordered again: {orders} orders"
    );
    proxy.stop()?;
    drop(stage);
    runtime.block_on(tailnet.stop());
    Ok(())
}

/// One account, and one order for each name.
fn counts(figures: &mut Figures, pebble: &Pebble) {
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let [accounts, orders] = ["accounts", "orders"].map(|things| pebble.count(things) as f64);
    figures.add(
        "ingress.crowd.accounts",
        accounts,
        "",
        None,
        Some(Bar::AtMost(1.0)),
    );
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let each = orders / INGRESSES as f64;
    figures.add(
        "ingress.crowd.orders_per_name",
        each,
        "",
        None,
        Some(Bar::AtMost(1.0)),
    );
}

/// Waits until so many Ingresses have an address, which they have once their certificate is there, and their Identities are ready.
fn ready(stage: &Stage, proxy: &mut Process, count: usize) -> Result<()> {
    const ADDRESSES: &str =
        "jsonpath={range .items[*]}{.status.loadBalancer.ingress[0].hostname}{\"\\n\"}{end}";
    let wait = || -> Result<Result<()>> {
        // One that has ended will not come back, as it would in a cluster.
        if let Err(ended) = proxy.alive() {
            return Ok(Err(ended));
        }
        let words = ["get", "ingresses", "-n", "default", "-o", ADDRESSES];
        let addresses = stage.kubectl().run(&words)?;
        let have = addresses.lines().filter(|line| line.ends_with(SUFFIX)).count();
        ensure!(have == count, "{have} of {count} have an address");
        Ok(Ok(()))
    };
    eventually_within(PATIENCE, "all Ingresses have an address", wait)
        .with_context(|| format!("{}\n{}", stage.log_end(), proxy.log_end(10)))??;
    let label = "tailscale.com/parent-resource-type=ingress";
    let words = [
        "wait",
        "--for=condition=Ready",
        "identities",
        "-n",
        NAMESPACE,
        "-l",
        label,
        "--timeout=60s",
    ];
    stage.kubectl().run(&words).map(drop)
}

/// A coordinator without an authority of its own.
async fn coordinator(dir: &Path, address: Ipv4Addr) -> Result<Handle> {
    let (control, relay, stun) = (free_port()?, free_port()?, free_port()?);
    let policy = dir.join("policy.hujson");
    fs::write(
        &policy,
        r#"{"tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"]}}"#,
    )?;
    let text = format!(
        "server_url = \"http://{address}:{control}\"\nlisten = \"{address}:{control}\"\ndata_dir = {data:?}\nmagic_dns_suffix = \"{SUFFIX}\"\n\
         policy_file = {policy:?}\n[ca]\nenabled = false\n[relay]\nlisten = \"{address}:{relay}\"\nstun_listen = \"{address}:{stun}\"\n\
         hostname = \"{address}\"\n",
        data = dir.join("data"),
    );
    let config = Config::parse(&text, &policy)?;
    Ok(Coordinator::start(config, CancellationToken::new()).await?)
}

/// What the operator signs in with.
async fn credentials(tailnet: &Handle) -> Result<(String, String)> {
    let client = NewOauthClient {
        creator: Actor::Administrator,
        description: String::new(),
        scopes: ["auth_keys", "devices:core", "services"]
            .map(str::to_owned)
            .into(),
        tags: BTreeSet::from(["tag:k8s-operator".parse()?]),
    };
    let minted = tailnet.operations().create_oauth_client(client).await?;
    Ok((minted.record.id.to_string(), minted.secret.reveal().to_owned()))
}
