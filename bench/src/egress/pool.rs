//! Hundreds of egress Services in one pool of a real cluster: the memory of its pods, and how soon a new one can be used.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::Lab;
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::wait::{eventually, eventually_within};

use crate::figures::{Bar, Figures};
use crate::tools::resident;

const SERVICES: usize = 500;
/// Services that come when those are there.
const NEW: usize = 50;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);
const TARGET: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, annotations: {tailscale.com/expose: \"true\"}}
spec: {selector: {app: nginx}, ports: [{port: 80}]}
";

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let lab = Lab::start("bench-out", Path::new("/var/lib/tailwharf-bench-egress"), |_| ())?;
    lab.deploy(NGINX, "nginx")?;
    lab.kubectl().apply(TARGET)?;
    lab.reachable("http://default-web/")?;

    let began = Instant::now();
    let manifests: Vec<String> = (0..SERVICES)
        .map(|number| service(&format!("out-{number}")))
        .collect();
    for some in manifests.chunks(100) {
        lab.kubectl().apply(&some.concat())?;
    }
    eventually_within(PATIENCE, "all are ready", || {
        let ready = ready(&lab)?;
        ensure!(ready == SERVICES, "{ready} of {SERVICES} are ready");
        Ok(())
    })
    .with_context(|| lab.cluster.dump(NAMESPACE))?;
    figures.add(
        "egress.pool.all_500_ready",
        began.elapsed().as_secs_f64(),
        "s",
        None,
        None,
    );
    figures.add(
        "egress.pool.rss_of_500",
        memory(&lab)?,
        "MiB",
        None,
        Some(Bar::AtMost(120.0)),
    );

    let mut times = Vec::with_capacity(NEW);
    for number in 0..NEW {
        times.push(usable(&lab, &format!("new-{number}"))?);
    }
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize];
    figures.add("egress.pool.new_one_usable_p50", at(0.5), "s", None, None);
    figures.add(
        "egress.pool.new_one_usable_p99",
        at(0.99),
        "s",
        None,
        Some(Bar::AtMost(2.0)),
    );
    Ok(())
}

fn service(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default, annotations: {{tailscale.com/tailnet-fqdn: default-web}}}}\nspec: {{type: ExternalName, externalName: placeholder, ports: [{{port: 80}}]}}\n"
    )
}

fn ready(lab: &Lab) -> Result<usize> {
    let identities = lab.kubectl().get(&["identities", "-n", NAMESPACE])?;
    let is_ready = |identity: &&Value| {
        let conditions = identity["status"]["conditions"].as_array();
        let mut all = conditions.into_iter().flatten();
        !identity["spec"]["egress"].is_null()
            && all.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let items = identities["items"].as_array().context("no list")?;
    Ok(items.iter().filter(is_ready).count())
}

/// Resident memory of all pods of the pool.
fn memory(lab: &Lab) -> Result<f64> {
    let pods = lab
        .kubectl()
        .get(&["pods", "-n", NAMESPACE, "-l", "tailwharf.dev/pool=default"])?;
    let mut sum = 0.0;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        for pid in lab.cluster.pids(NAMESPACE, name, "proxy")? {
            sum += resident(pid)?;
        }
    }
    ensure!(sum > 0.0, "the pool has no pods");
    Ok(sum)
}

/// Seconds from before a Service is applied until its address leads to the target.
fn usable(lab: &Lab, name: &str) -> Result<f64> {
    let began = Instant::now();
    lab.kubectl().apply(&service(name))?;
    let label = format!("tailscale.com/parent-resource={name}");
    let address = eventually("the Service has an address", || {
        let found = lab.kubectl().get(&["services", "-n", NAMESPACE, "-l", &label])?;
        let address = found["items"][0]["spec"]["clusterIP"].as_str();
        Ok(address.context("no address")?.to_owned())
    })?;
    let url = format!("http://{address}/");
    eventually("the target answers", || {
        lab.cluster
            .exec(&["curl", "--silent", "--fail", "--max-time", "1", &url])
    })?;
    Ok(began.elapsed().as_secs_f64())
}
