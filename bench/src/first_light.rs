//! First light: how soon a Service answers at an official client, and what an identity costs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::Lab;
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::{Process, resident, run};
use tailwharf_testkit::requirements::{Need, unmet};
use tailwharf_testkit::wait::{eventually, eventually_within};
use tailwharf_testkit::workspace;

use crate::figures::{Bar, Figures};
use crate::tools::highest_when_idle;

/// What the image holds beside the binary.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const MIB: f64 = 1024.0 * 1024.0;
/// Services that are timed, one after the other.
const TIMED: usize = 50;
/// Above it, what the client saw is printed.
const SLOW: Duration = Duration::from_secs(3);
const NAME: &str = "bench";
const DIR: &str = "/var/lib/tailwharf-bench";
const POOL: &str = "statefulset/tailwharf-default";

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let needs = [
        Need::Root,
        Need::Cluster,
        Need::OfficialClient,
        Need::Binary,
        Need::Image,
    ];
    if let Some(reason) = unmet(&needs) {
        anyhow::bail!("this machine cannot run it: {reason}");
    }
    sizes(figures)?;
    let lab = lab(&[])?;
    let pod = operator_pod(&lab)?;
    let operator = highest_when_idle(|| rss_of_pod(&lab, &pod, "operator"))?;
    figures.add(
        "first-light.operator_rss_empty",
        operator,
        "MiB",
        None,
        Some(Bar::AtMost(20.0)),
    );
    memory(figures, &lab)?;
    let times = first_answers(&lab, TIMED)?;
    let (p50, p99) = (share(&times, 0.5), share(&times, 0.99));
    figures.add(
        "first-light.service_to_first_answer_p50",
        p50,
        "s",
        None,
        Some(Bar::AtMost(1.0)),
    );
    figures.add(
        "first-light.service_to_first_answer_p99",
        p99,
        "s",
        None,
        Some(Bar::AtMost(3.0)),
    );
    drop(lab);
    // A new ClusterIP answers only when kube-proxy has seen its endpoints, which by default is a second after the Service:
    // nearly all of the time above.
    let lab = self::lab(&[("TAILWHARF_PROXY_SYNC", "100ms")])?;
    let times = first_answers(&lab, TIMED)?;
    let p50 = share(&times, 0.5);
    figures.add(
        "first-light.service_to_first_answer_quick_kube_proxy_p50",
        p50,
        "s",
        None,
        None,
    );
    Ok(())
}

fn lab(variables: &[(&str, &str)]) -> Result<Lab> {
    let lab = Lab::start_tuned(NAME, Path::new(DIR), variables, |step| println!("  … {step}"))?;
    lab.deploy(NGINX, "nginx")?;
    Ok(lab)
}

fn sizes(figures: &mut Figures) -> Result<()> {
    let archive = fs::metadata(workspace::image())?.len();
    let unpacked = fs::metadata(workspace::tailwharf())?.len() + fs::metadata(CA_BUNDLE)?.len();
    figures.add(
        "first-light.image_unpacked",
        megabytes(unpacked),
        "MB",
        None,
        Some(Bar::AtMost(25.0)),
    );
    figures.add("first-light.image_archive", megabytes(archive), "MB", None, None);
    for (name, file) in [
        ("make_test_cold", "test-seconds.cold"),
        ("make_test_warm", "test-seconds.warm"),
    ] {
        if let Ok(text) = fs::read_to_string(workspace::root().join("build").join(file)) {
            figures.add(
                &format!("first-light.{name}"),
                text.trim().parse()?,
                "s",
                None,
                None,
            );
        }
    }
    Ok(())
}

/// RSS of one proxy pod that hosts 1, 10 and 100 idle identities, beside one pair of the peer.
fn memory(figures: &mut Figures, lab: &Lab) -> Result<()> {
    let pair = peer_pair(lab)?;
    let mut measured = Vec::new();
    for identities in [1, 10, 100] {
        // The operator's own device is the first.
        for number in 1..identities {
            lab.kubectl().apply(&service(&format!("idle-{number}")))?;
        }
        let value = rss_with_one_pod(lab, identities)?;
        let bar = (identities == 1).then_some(Bar::AtMost(15.0));
        figures.add(
            &format!("first-light.proxy_rss_{identities}"),
            value,
            "MiB",
            Some(pair),
            bar,
        );
        measured.push(value);
    }
    let further = (measured[2] - measured[0]) / 99.0;
    figures.add(
        "first-light.proxy_rss_each_further",
        further,
        "MiB",
        Some(pair),
        Some(Bar::AtMost(0.5)),
    );
    restart_writes(figures, lab)?;
    let names: Vec<String> = (1..100).map(|number| format!("service/idle-{number}")).collect();
    let words: Vec<&str> = ["delete", "--wait=true", "--timeout=120s"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    run(&mut lab.kubectl().command(&words)).map(drop)
}

/// Moves every identity to one pod and reads what it takes. The operator is away, so that it does not scale back.
fn rss_with_one_pod(lab: &Lab, identities: usize) -> Result<f64> {
    ready_identities(lab, identities)?;
    let operator = format!("pod/{}", operator_pod(lab)?);
    scale(lab, "deployment/operator", 0)?;
    // Until it has ended it would scale the pool back.
    lab.kubectl().run(&[
        "-n",
        NAMESPACE,
        "wait",
        "--for=delete",
        &operator,
        "--timeout=60s",
    ])?;
    scale(lab, POOL, 1)?;
    let pod = "tailwharf-default-0";
    eventually_within(Duration::from_secs(120), "one pod hosts everything", || {
        let hosts = hosts(lab)?;
        ensure!(
            hosts.len() >= identities && hosts.iter().all(|host| host == pod),
            "{} identities, hosts {hosts:?}",
            hosts.len()
        );
        Ok(())
    })?;
    ready_identities(lab, identities)?;
    let value = highest_when_idle(|| rss_of_pod(lab, pod, "proxy"))?;
    scale(lab, POOL, 2)?;
    scale(lab, "deployment/operator", 1)?;
    lab.ready()?;
    Ok(value)
}

/// The operator's writes when it starts again on what is there, Leases aside.
fn restart_writes(figures: &mut Figures, lab: &Lab) -> Result<()> {
    let versions = || {
        lab.kubectl().run(&["get", "services,identities,secrets,roles,statefulsets,serviceaccounts,rolebindings", "-A", "-o", "jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}"])
    };
    let stable = settled_text(versions)?;
    lab.kubectl()
        .run(&["-n", NAMESPACE, "rollout", "restart", "deployment/operator"])?;
    lab.ready()?;
    let pod = operator_pod(lab)?;
    eventually("the new operator has looked at every Service", || {
        let metrics = lab.kubectl().run(&[
            "get",
            "--raw",
            &format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9001/proxy/metrics"),
        ])?;
        ensure!(metrics.contains("tailwharf"), "no metrics yet");
        Ok(())
    })?;
    let after = settled_text(versions)?;
    let before: std::collections::BTreeSet<&str> = stable.lines().collect();
    let changed: Vec<&str> = after.lines().filter(|line| !before.contains(line)).collect();
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    figures.add(
        "first-light.operator_restart_writes",
        changed.len() as f64,
        "writes",
        None,
        Some(Bar::AtMost(0.0)),
    );
    for line in changed {
        println!("    changed: {line}");
    }
    Ok(())
}

/// Times from `kubectl create` to the first answer at the laptop, one Service after the other, sorted.
fn first_answers(lab: &Lab, count: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("timed-{number}");
        let began = Instant::now();
        lab.kubectl().feed(&["create", "-f", "-"], &service(&name))?;
        let mut failure = String::new();
        eventually(&format!("{name} answers at the laptop"), || {
            let answer = probe(lab, &format!("http://default-{name}/"));
            if let Err(error) = &answer {
                failure = format!("{error:#}");
            }
            answer
        })?;
        let time = began.elapsed();
        if time > SLOW {
            println!(
                "    {name} took {time:?}, last: {failure}\n{}",
                lab.laptop.log_end(40)
            );
        }
        times.push(time.as_secs_f64());
        lab.kubectl().run(&["delete", "service", &name, "--wait=false"])?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// One try for an answer, of a second at most: the official client answers a name some milliseconds before it has the route to it, and
/// a connection that begins in between leaves by another interface and never comes through.
fn probe(lab: &Lab, url: &str) -> Result<String> {
    run(lab.laptop.namespace().command("curl").args([
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "1",
        url,
    ]))
}

/// The value that `share` of the sorted values do not exceed.
fn share(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a short list"
    )]
    let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1;
    sorted[index]
}

/// RSS in MiB of one `containerboot` and the `tailscaled` that it starts, joined to the same tailnet and idle.
fn peer_pair(lab: &Lab) -> Result<f64> {
    let dir = lab.dir().join("peer");
    fs::create_dir_all(&dir)?;
    let key = lab.tailnet.user_key("alice@example.com", "admin")?;
    let namespace = lab.bridge.join("peer")?;
    let programs = workspace::official("containerboot");
    let path = format!(
        "{}:/usr/sbin:/usr/bin:/sbin:/bin",
        programs.parent().context("no folder")?.display()
    );
    let mut command: Command = namespace.command(&programs);
    command
        .env("PATH", path)
        .env("TS_AUTHKEY", key)
        .env("TS_USERSPACE", "true")
        .env("TS_HOSTNAME", "peer")
        .env("TS_STATE_DIR", &dir)
        .env("TS_SOCKET", dir.join("tailscaled.sock"))
        .env("TS_EXTRA_ARGS", format!("--login-server={}", lab.tailnet.url()))
        .env("TS_NO_LOGS_NO_SUPPORT", "true");
    let pair = Process::start("containerboot", &mut command, &dir.join("containerboot.log"))?;
    eventually("the peer is online", || {
        let peer = lab
            .tailnet
            .nodes()?
            .into_iter()
            .find(|node| node["name"].as_str().is_some_and(|name| name.starts_with("peer")));
        ensure!(
            peer.is_some_and(|peer| peer["connectedToControl"] == true),
            "not yet: {}",
            pair.log_end(3)
        );
        Ok(())
    })?;
    let value = settled(|| {
        let children = run(Command::new("pgrep").args(["-P", &pair.pid().to_string()]))?;
        let mut bytes = pair.resident()?;
        for child in children.lines() {
            bytes += resident(child.trim().parse()?)?;
        }
        Ok(mib(bytes))
    })?;
    pair.stop()?;
    Ok(value)
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default, annotations: {{tailscale.com/expose: \"true\"}}}}\n\
         spec: {{selector: {{app: nginx}}, ports: [{{port: 80}}]}}\n"
    )
}

fn scale(lab: &Lab, target: &str, replicas: u8) -> Result<()> {
    lab.kubectl().run(&[
        "-n",
        NAMESPACE,
        "scale",
        target,
        &format!("--replicas={replicas}"),
    ])?;
    lab.kubectl()
        .run(&["-n", NAMESPACE, "rollout", "status", target, "--timeout=60s"])
        .map(drop)
}

fn hosts(lab: &Lab) -> Result<Vec<String>> {
    let list = lab.kubectl().get(&["identities", "-n", NAMESPACE])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .map(|item| item["status"]["host"].as_str().unwrap_or_default().to_owned())
        .collect())
}

fn ready_identities(lab: &Lab, count: usize) -> Result<()> {
    eventually_within(Duration::from_secs(120), "every identity is ready", || {
        let list = lab.kubectl().get(&["identities", "-n", NAMESPACE])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let ready = items.iter().filter(|item| {
            let conditions = item["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        });
        let ready = ready.count();
        ensure!(ready >= count, "{ready} of {count} are ready");
        Ok(())
    })
}

/// The operator's pod; one that is being replaced does not count.
fn operator_pod(lab: &Lab) -> Result<String> {
    let list = lab
        .kubectl()
        .get(&["pods", "-n", NAMESPACE, "-l", "app=operator"])?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let stays = pods
        .iter()
        .find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .context("no operator pod")?;
    Ok(stays["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}

fn rss_of_pod(lab: &Lab, pod: &str, container: &str) -> Result<f64> {
    let mut bytes = 0;
    for pid in lab.cluster.pids(NAMESPACE, pod, container)? {
        bytes += resident(pid)?;
    }
    Ok(mib(bytes))
}

/// Looks until a value has stopped growing: five looks in a row within one percent.
fn settled(mut look: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut last: Vec<f64> = Vec::new();
    eventually("memory is settled", || {
        last.push(look()?);
        let recent = &last[last.len().saturating_sub(5)..];
        let (low, high) = recent.iter().fold((f64::MAX, 0.0_f64), |(low, high), value| {
            (low.min(*value), high.max(*value))
        });
        ensure!(
            recent.len() == 5 && high - low <= high * 0.01,
            "still changing: {recent:?}"
        );
        Ok(high)
    })
}

/// Looks until a listing has stopped changing: ten looks in a row.
fn settled_text(look: impl Fn() -> Result<String>) -> Result<String> {
    let mut last = String::new();
    let mut same = 0;
    eventually("nothing changes any more", || {
        let text = look()?;
        same = if text == last { same + 1 } else { 0 };
        last = text;
        ensure!(same >= 10, "still changing");
        Ok(last.clone())
    })
}

fn mib(bytes: u64) -> f64 {
    float(bytes) / MIB
}

fn megabytes(bytes: u64) -> f64 {
    float(bytes) / 1e6
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes have far fewer bytes than an f64 has integers"
)]
fn float(bytes: u64) -> f64 {
    bytes as f64
}
