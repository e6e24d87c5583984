//! How soon an endpoint that is added gets requests, and one that is removed gets none any more.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::process::Process;
use tailwharf_testkit::tailnet::SUFFIX;
use tailwharf_testkit::wait::eventually;

use super::stage::{Control, Stage, endpoints, ingress, service};
use crate::figures::{Bar, Figures};
use crate::tools::{web_serve, within};
use crate::world::World;

const PORT: u16 = 7_080;
const TRIALS: usize = 15;
/// One that was removed and is not asked for so long will not be asked any more.
const QUIET: Duration = Duration::from_secs(2);
const STAYS: &str = "stays";
const COMES: &str = "comes";

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let world = World::start()?;
    let root = world.dir.path().join("root.pem");
    std::fs::write(&root, world.tailnet.root_certificate()?)?;
    let (id, secret) = world.tailnet.oauth_client("tag:k8s-operator")?;
    let control = Control {
        url: world.tailnet.url(),
        client_id: &id,
        client_secret: &secret,
        acme: None,
    };
    let host = world.bridge.host();
    let stage = Stage::start(world.dir.path(), host, &control)?;
    let client = world.official("client", true, &[])?;
    let place = world.bridge.join("proxy")?;
    let _stays = web_serve(Some(&place), place.address(), PORT, STAYS, world.dir.path())?;
    let _comes = web_serve(None, host, PORT, COMES, world.dir.path())?;
    let proxy = stage.proxy(Some(&place), place.address(), None)?;
    let set = |addresses: &[_]| stage.apply(&[endpoints("web", addresses, PORT)]);
    stage.apply(&[service("web"), ingress("web", "web")])?;
    set(&[place.address()])?;
    stage.ready("web").with_context(|| proxy.log_end(10))?;

    let mut command = within(Some(client.namespace()), "flood");
    command
        .args(["web-follow", &format!("{}:443", world.address("web")?)])
        .arg(format!("web.{SUFFIX}"))
        .arg(&root);
    let follower = Process::start("follower", &mut command, &world.dir.path().join("follower.log"))?;
    eventually("the one that stays answers", || {
        seen(&follower, STAYS, 0).map(drop)
    })?;
    let (mut used, mut left) = (0.0_f64, 0.0_f64);
    for _ in 0..TRIALS {
        let began = now()?;
        set(&[place.address(), host])?;
        let at = eventually("the one that comes is asked", || seen(&follower, COMES, began))?;
        used = used.max(between(began, at));

        let began = now()?;
        set(&[place.address()])?;
        left = left.max(between(began, last(&follower, began)?));
    }
    let errors = follower.log().matches("nobody").count();
    for (name, time) in [("used", used), ("left", left)] {
        let name = format!("ingress.endpoints.{name}_max");
        figures.add(&name, time, "s", None, Some(Bar::AtMost(1.0)));
    }
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let errors = errors as f64;
    figures.add(
        "ingress.endpoints.unanswered",
        errors,
        "",
        None,
        Some(Bar::AtMost(0.0)),
    );
    follower.stop()?;
    proxy.stop()
}

/// Microseconds since 1970.
fn now() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())
}

/// Seconds; none, if the one came before the other.
fn between(began: u128, at: u128) -> f64 {
    let micros = u64::try_from(at.saturating_sub(began)).unwrap_or(u64::MAX);
    Duration::from_micros(micros).as_secs_f64()
}

/// When who answered, as far as it is told.
fn answers(follower: &Process) -> Vec<(u128, String)> {
    let log = follower.log();
    let lines = log.lines().filter_map(|line| {
        let (time, who) = line.split_once(' ')?;
        Some((time.parse().ok()?, who.to_owned()))
    });
    lines.collect()
}

/// The first answer of `who` after a moment.
fn seen(follower: &Process, who: &str, after: u128) -> Result<u128> {
    let all = answers(follower);
    let found = all.iter().find(|(time, by)| *time > after && by == who);
    found
        .map(|(time, _)| *time)
        .with_context(|| format!("{who} does not answer"))
}

/// The last answer of the one that was removed at `began`, once it has been quiet for long enough.
fn last(follower: &Process, began: u128) -> Result<u128> {
    eventually("the one that was removed is quiet", || {
        let all = answers(follower);
        let last = all
            .iter()
            .rev()
            .find(|(_, by)| by == COMES)
            .map_or(began, |(time, _)| *time);
        let told = all.last().map_or(0, |(time, _)| *time);
        let quiet = told.saturating_sub(last.max(began));
        ensure!(quiet > QUIET.as_micros(), "it still answers");
        Ok(last)
    })
}
