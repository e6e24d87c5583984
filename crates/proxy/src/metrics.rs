//! What the pod counts, and its text form for Prometheus.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tailwharf_node::splice::Traffic;

use crate::certificates::CertificateCounters;
use crate::web::WebCounters;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many of something there are now.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    /// One more until the guard is dropped.
    pub(crate) fn enter(&self) -> GaugeGuard<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(self)
    }

    /// The number now.
    #[must_use]
    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts for one in a [`Gauge`].
#[derive(Debug)]
pub(crate) struct GaugeGuard<'a>(&'a Gauge);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The counters of the process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Bytes of TCP connections and UDP flows.
    pub traffic: Traffic,
    /// TCP connections accepted on the tailnet.
    pub connections: Counter,
    /// TCP connections open now.
    pub connections_open: Gauge,
    /// TCP connections closed at once since the identity, or the pod, had too many.
    pub connections_over_limit: Counter,
    /// TCP connections closed since no backend took them.
    pub connections_without_backend: Counter,
    /// TCP connections and datagrams of pods that may not use an egress Service.
    pub refused_sources: Counter,
    /// UDP flows open now.
    pub flows_open: Gauge,
    /// UDP flows not opened since the listener, or the pod, had too many.
    pub flows_over_limit: Counter,
    /// Datagrams that could not be passed on.
    pub datagrams_dropped: Counter,
    /// Times that this pod began to hold its member Lease.
    pub tenures: Counter,
    /// Claims of an identity that another writer was ahead of.
    pub claims_lost: Counter,
    /// Writes of an identity's status.
    pub status_writes: Counter,
    /// Certificates.
    pub certificates: Arc<CertificateCounters>,
    /// HTTP.
    pub web: WebCounters,
}

impl Metrics {
    /// The text form, with the number of identities hosted and of those that are ready.
    #[must_use]
    pub(crate) fn render(&self, hosted: usize, ready: usize) -> String {
        let mut out = String::with_capacity(2048);
        let mut put = |name: &str, kind: &str, help: &str, samples: &[(&str, i128)]| {
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "# HELP tailwharf_proxy_{name} {help}\n# TYPE tailwharf_proxy_{name} {kind}"
            );
            for (labels, value) in samples {
                let _ = writeln!(out, "tailwharf_proxy_{name}{labels} {value}");
            }
        };
        let bytes = |n: &AtomicU64| i128::from(n.load(Ordering::Relaxed));
        let count = |n: &Counter| i128::from(n.get());
        put(
            "identities",
            "gauge",
            "Identities that this pod hosts.",
            &[("", hosted as i128)],
        );
        put(
            "identities_ready",
            "gauge",
            "Hosted identities that are ready.",
            &[("", ready as i128)],
        );
        put(
            "connections_total",
            "counter",
            "TCP connections accepted.",
            &[("", count(&self.connections))],
        );
        put(
            "connections",
            "gauge",
            "TCP connections open.",
            &[("", self.connections_open.get().into())],
        );
        put(
            "connections_refused_total",
            "counter",
            "TCP connections closed at once, by reason.",
            &[
                ("{reason=\"limit\"}", count(&self.connections_over_limit)),
                ("{reason=\"backend\"}", count(&self.connections_without_backend)),
            ],
        );
        put(
            "sources_refused_total",
            "counter",
            "TCP connections and datagrams of pods that may not use an egress Service.",
            &[("", count(&self.refused_sources))],
        );
        put(
            "flows",
            "gauge",
            "UDP flows open.",
            &[("", self.flows_open.get().into())],
        );
        put(
            "flows_refused_total",
            "counter",
            "UDP flows over the limit.",
            &[("", count(&self.flows_over_limit))],
        );
        put(
            "datagrams_dropped_total",
            "counter",
            "Datagrams not passed on.",
            &[("", count(&self.datagrams_dropped))],
        );
        put(
            "bytes_total",
            "counter",
            "Bytes carried, by direction.",
            &[
                ("{direction=\"to_backend\"}", bytes(&self.traffic.to_backend)),
                ("{direction=\"from_backend\"}", bytes(&self.traffic.from_backend)),
            ],
        );
        put(
            "tenures_total",
            "counter",
            "Times that the member Lease was taken.",
            &[("", count(&self.tenures))],
        );
        put(
            "claims_lost_total",
            "counter",
            "Claims that came too late.",
            &[("", count(&self.claims_lost))],
        );
        put(
            "status_writes_total",
            "counter",
            "Writes of Identity status.",
            &[("", count(&self.status_writes))],
        );
        let offloads = offload_samples();
        let samples: Vec<_> = offloads
            .iter()
            .map(|(labels, count)| (labels.as_str(), *count))
            .collect();
        put(
            "offloads",
            "gauge",
            "Sockets and devices by what the kernel does for whole batches of packets.",
            samples.as_slice(),
        );
        self.certificates.render(&mut out);
        self.web.render(&mut out);
        out
    }
}

/// How many sockets and devices use each offload, with its labels.
fn offload_samples() -> Vec<(String, i128)> {
    tailwharf_node::offload_counts()
        .map(|(name, state, count)| (format!("{{name=\"{name}\",state=\"{state}\"}}"), count.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_follow_their_guards() {
        let metrics = Metrics::default();
        metrics.connections.increment();
        let open = metrics.connections_open.enter();
        assert!(metrics.render(2, 1).contains("\ntailwharf_proxy_connections 1\n"));
        drop(open);
        let text = metrics.render(2, 1);
        assert!(text.contains("\ntailwharf_proxy_connections 0\n"));
        assert!(text.contains("\ntailwharf_proxy_connections_total 1\n"));
        assert!(text.contains("\ntailwharf_proxy_identities_ready 1\n"));
        assert!(text.contains("\ntailwharf_proxy_offloads{name=\"udp_gso\",state=\"failed\"} 0\n"));
    }

    #[test]
    fn alerts_and_dashboard_of_the_chart_use_what_is_exposed() {
        let text = Metrics::default().render(2, 1);
        for file in [
            include_str!("../../../charts/tailwharf-operator/files/alerts.yaml"),
            include_str!("../../../charts/tailwharf-operator/files/dashboard.json"),
        ] {
            let words = file.split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_');
            let names: Vec<&str> = words
                .filter(|word| word.starts_with("tailwharf_proxy_"))
                .collect();
            assert!(!names.is_empty());
            for name in names {
                let shown = text
                    .lines()
                    .any(|line| line.split([' ', '{']).next() == Some(name));
                assert!(shown, "{name} is not exposed");
            }
        }
    }
}
