//! What the coordinator counts, and its text form (`OpenMetrics` 1.0).

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tailwharf_relay::RelayHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::{Permits, serve_connection};
use crate::ops::Operations;
use crate::sessions::Sessions;
use crate::world::World;

/// The media type of the text form.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long to wait when the system gives no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Transactions that were stored.
    pub(crate) commits: Counter,
    /// Transactions that could not be stored.
    pub(crate) commits_failed: Counter,
    /// How long storing took, in microseconds.
    pub(crate) commit_micros: Counter,
    /// Changes that were stored.
    pub(crate) changes: Counter,
    /// Whether the last transaction could not be stored.
    pub(crate) store_fails: AtomicBool,
}

/// What is looked at when somebody asks.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) counters: Arc<Counters>,
    pub(crate) operations: Operations,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) permits: Permits,
    pub(crate) relay: Option<RelayHandle>,
}

/// The health of this process, for load balancers and supervisors: whether changes can be stored.
pub(crate) fn health(counters: &Counters) -> Response {
    let (status, body) = if counters.store_fails.load(Ordering::Relaxed) {
        let body = r#"{"status":"fail","output":"changes cannot be stored: look into the log"}"#;
        (StatusCode::SERVICE_UNAVAILABLE, body)
    } else {
        (StatusCode::OK, r#"{"status":"pass"}"#)
    };
    (status, [(header::CONTENT_TYPE, "application/health+json")], body).into_response()
}

/// Serves `/metrics` and `/health` until the coordinator stops.
pub(crate) async fn listen(
    metrics: Metrics,
    listener: TcpListener,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let router = Router::new()
        .route("/metrics", get(text))
        .route(
            "/health",
            get(async |State(metrics): State<Metrics>| health(&metrics.counters)),
        )
        .with_state(metrics);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((socket, source)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (stop, router) = (stop.clone(), router.clone());
        tasks.spawn(async move {
            if let Err(error) = serve_connection(&stop, socket, router).await {
                tracing::debug!(%source, %error, "a connection for metrics ended");
            }
        });
    }
}

async fn text(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.render())
}

/// The text form in the making.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.0,
            "# TYPE tailwharf_coordinator_{name} {kind}\n# HELP tailwharf_coordinator_{name} {help}"
        );
    }

    fn sample(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "tailwharf_coordinator_{name} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.family(name, "gauge", help);
        self.sample(name, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(&format!("{name}_total"), value);
    }
}

impl Metrics {
    fn render(&self) -> String {
        let mut text = Text(String::with_capacity(4096));
        world(&mut text, &self.operations.world());
        text.gauge("map_streams", "Open map streams.", self.sessions.count());
        let counts = self.permits.in_use();
        text.gauge(
            "connections",
            "Open connections of nodes, the API and the console.",
            counts.open,
        );
        text.gauge(
            "connections_half_open",
            "Connections that have not shown yet what they are for.",
            counts.half_open,
        );
        text.counter(
            "connections_refused",
            "Connections closed at once because of a limit.",
            counts.refused,
        );
        let counters = &self.counters;
        text.counter("changes", "Changes stored.", counters.changes.get());
        text.counter("commits", "Transactions stored.", counters.commits.get());
        text.counter(
            "commits_failed",
            "Transactions that could not be stored.",
            counters.commits_failed.get(),
        );
        text.family("commit_seconds", "counter", "Time spent on storing.");
        #[expect(clippy::cast_precision_loss, reason = "a sum of seconds")]
        let seconds = counters.commit_micros.get() as f64 / 1e6;
        text.sample("commit_seconds_total", seconds);
        text.gauge(
            "store_fails",
            "Whether the last transaction could not be stored.",
            counters.store_fails.load(Ordering::Relaxed).into(),
        );
        if let Some(relay) = &self.relay {
            relay_counts(&mut text, &relay.metrics());
        }
        text.0.push_str("# EOF\n");
        text.0
    }
}

fn world(text: &mut Text, world: &World) {
    let nodes = || world.nodes();
    let is = |test: &dyn Fn(&crate::model::Node) -> bool| nodes().filter(|node| test(node)).count();
    text.family("nodes", "gauge", "Devices by state; a device may be in several.");
    for (state, count) in [
        ("all", nodes().count()),
        ("online", is(&|node| world.presence(node.id).online)),
        ("unapproved", is(&|node| !node.authorized)),
        ("expired", is(&|node| world.presence(node.id).expired)),
        ("ephemeral", is(&|node| node.ephemeral)),
    ] {
        text.sample(&format!("nodes{{state=\"{state}\"}}"), count);
    }
    text.gauge("users", "People.", world.users().count());
    text.gauge(
        "services",
        "Services with addresses of their own.",
        world.services().count(),
    );
    text.gauge(
        "auth_keys",
        "Auth keys, used and revoked ones included.",
        world.auth_keys().count(),
    );
    text.gauge("oauth_clients", "OAuth clients.", world.oauth_clients().count());
    text.gauge("api_tokens", "API tokens.", world.tokens().count());
    text.gauge(
        "registrations_waiting",
        "Devices that wait for a person.",
        world.registrations().count(),
    );
    text.gauge(
        "checks_waiting",
        "Questions to people for a fresh sign-in.",
        world.checks().count(),
    );
    text.family("policy_version", "gauge", "The version of the policy in force.");
    text.sample("policy_version", world.policy().version.version);
}

fn relay_counts(text: &mut Text, relay: &tailwharf_relay::Metrics) {
    let gauge = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    text.gauge(
        "relay_clients",
        "Nodes connected to the relay.",
        gauge(relay.clients),
    );
    text.gauge(
        "relay_homes",
        "Nodes whose home the relay is.",
        gauge(relay.homes),
    );
    text.gauge(
        "relay_connections",
        "Open connections of the relay.",
        gauge(relay.connections),
    );
    for (name, help, count) in [
        (
            "relay_accepted",
            "Connections accepted by the relay.",
            relay.accepted,
        ),
        (
            "relay_refused_limit",
            "Connections of the relay closed because of a limit.",
            relay.refused_limit,
        ),
        (
            "relay_refused_admission",
            "Clients of the relay that are no nodes of this tailnet.",
            relay.refused_admission,
        ),
        (
            "relay_faulty",
            "Connections of the relay ended because of bad input.",
            relay.faulty,
        ),
        (
            "relay_packets_in",
            "Packets that came to the relay.",
            relay.carried.packets_in,
        ),
        (
            "relay_bytes_in",
            "Bytes of packets that came to the relay.",
            relay.carried.bytes_in,
        ),
        (
            "relay_packets_out",
            "Packets that left the relay.",
            relay.carried.packets_out,
        ),
        (
            "relay_bytes_out",
            "Bytes of packets that left the relay.",
            relay.carried.bytes_out,
        ),
        (
            "relay_dropped_full",
            "Packets dropped because the receiver is too slow.",
            relay.carried.dropped_full,
        ),
        (
            "relay_dropped_absent",
            "Packets dropped because the receiver is not connected.",
            relay.carried.dropped_absent,
        ),
        ("stun_answered", "STUN requests answered.", relay.stun_answered),
    ] {
        text.counter(name, help, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_said_once_and_counters_end_as_they_should() {
        let mut text = Text(String::new());
        world(&mut text, &crate::lab::Lab::new().world);
        relay_counts(&mut text, &tailwharf_relay::Metrics::default());
        let mut kinds = std::collections::BTreeMap::new();
        for line in text.0.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(
                    kinds.insert(name.to_owned(), kind.to_owned()),
                    None,
                    "{name} twice"
                );
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let family = name.strip_suffix("_total").unwrap_or(name);
                let is_counter = kinds[family] == "counter";
                assert_eq!(is_counter, name.ends_with("_total"), "{line}");
            }
        }
        assert!(text.0.contains("tailwharf_coordinator_users 2\n"));
    }

    #[test]
    fn health_says_when_nothing_can_be_stored() {
        let counters = Counters::default();
        assert_eq!(health(&counters).status(), StatusCode::OK);
        counters.store_fails.store(true, Ordering::Relaxed);
        assert_eq!(health(&counters).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
