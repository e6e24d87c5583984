//! The operator's numbers, in OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds of the buckets of durations, in seconds.
const BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Labels are fixed sets of words, never names of objects, so that the number of series is bounded.
#[derive(Default)]
pub(crate) struct Metrics {
    numbers: Mutex<Numbers>,
}

#[derive(Default)]
struct Numbers {
    /// By controller and result.
    reconciliations: BTreeMap<(&'static str, &'static str), u64>,
    durations: BTreeMap<&'static str, Histogram>,
    /// By verb and kind.
    writes: BTreeMap<(&'static str, &'static str), u64>,
    /// By call and result.
    control_calls: BTreeMap<(&'static str, &'static str), u64>,
    /// By kind.
    watch_failures: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

/// Values that are read when they are asked for.
pub(crate) struct Gauges {
    pub(crate) queue_depth: usize,
    pub(crate) leader: bool,
    pub(crate) identities: usize,
    pub(crate) identities_ready: usize,
    /// Kinds that the API server does not know.
    pub(crate) kinds_absent: Vec<&'static str>,
}

impl Metrics {
    pub(crate) fn reconciled(&self, controller: &'static str, result: &'static str, took: Duration) {
        let mut numbers = self.lock();
        *numbers.reconciliations.entry((controller, result)).or_default() += 1;
        numbers
            .durations
            .entry(controller)
            .or_default()
            .observe(took.as_secs_f64());
    }

    pub(crate) fn wrote(&self, verb: &'static str, kind: &'static str) {
        *self.lock().writes.entry((verb, kind)).or_default() += 1;
    }

    pub(crate) fn called_control(&self, call: &'static str, result: &'static str) {
        *self.lock().control_calls.entry((call, result)).or_default() += 1;
    }

    pub(crate) fn watch_failed(&self, kind: &'static str) {
        *self.lock().watch_failures.entry(kind).or_default() += 1;
    }

    /// The exposition, which ends with `# EOF`.
    pub(crate) fn render(&self, gauges: &Gauges) -> String {
        let numbers = self.lock();
        let mut text = String::with_capacity(4096);
        let pairs = |name: &str, help: &str, labels: [&str; 2], counts: &BTreeMap<(&str, &str), u64>| {
            let mut part = header(name, "counter", help);
            for ((first, second), count) in counts {
                let [one, two] = labels;
                // Writing to a String cannot fail.
                let _ = writeln!(
                    part,
                    "{name}_total{{{one}=\"{first}\",{two}=\"{second}\"}} {count}"
                );
            }
            part
        };
        text += &pairs(
            "tailwharf_operator_reconciliations",
            "Reconciliations by controller and result.",
            ["controller", "result"],
            &numbers.reconciliations,
        );
        text += &durations(&numbers.durations);
        text += &pairs(
            "tailwharf_operator_kubernetes_writes",
            "Writes to the Kubernetes API by verb and kind.",
            ["verb", "kind"],
            &numbers.writes,
        );
        text += &pairs(
            "tailwharf_operator_control_calls",
            "Calls to the control server's API by call and result.",
            ["call", "result"],
            &numbers.control_calls,
        );
        text += &header(
            "tailwharf_operator_watch_failures",
            "counter",
            "Watches of the Kubernetes API that broke, by kind.",
        );
        for (kind, count) in &numbers.watch_failures {
            let _ = writeln!(
                text,
                "tailwharf_operator_watch_failures_total{{kind=\"{kind}\"}} {count}"
            );
        }
        let Gauges {
            queue_depth,
            leader,
            identities,
            identities_ready,
            kinds_absent,
        } = gauges;
        text += &header(
            "tailwharf_operator_kind_absent",
            "gauge",
            "1 for each kind that the Kubernetes API does not know, which the operator goes on without.",
        );
        for kind in kinds_absent {
            let _ = writeln!(text, "tailwharf_operator_kind_absent{{kind=\"{kind}\"}} 1");
        }
        for (name, help, value) in [
            (
                "tailwharf_operator_queue_depth",
                "Keys that wait for a worker.",
                *queue_depth,
            ),
            (
                "tailwharf_operator_leader",
                "1 if this replica writes.",
                usize::from(*leader),
            ),
            (
                "tailwharf_operator_identities",
                "Identities in the operator's namespace.",
                *identities,
            ),
            (
                "tailwharf_operator_identities_ready",
                "Those of them that are ready.",
                *identities_ready,
            ),
        ] {
            text += &header(name, "gauge", help);
            let _ = writeln!(text, "{name} {value}");
        }
        text + "# EOF\n"
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Histogram {
    fn observe(&mut self, seconds: f64) {
        self.count += 1;
        self.sum += seconds;
        for (bucket, bound) in self.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
    }
}

fn durations(histograms: &BTreeMap<&'static str, Histogram>) -> String {
    let name = "tailwharf_operator_reconciliation_seconds";
    let mut text = header(name, "histogram", "Time that reconciliations took.");
    for (controller, histogram) in histograms {
        for (bucket, bound) in histogram.buckets.iter().zip(BUCKETS) {
            let _ = writeln!(
                text,
                "{name}_bucket{{controller=\"{controller}\",le=\"{bound}\"}} {bucket}"
            );
        }
        let Histogram { count, sum, .. } = histogram;
        let _ = writeln!(
            text,
            "{name}_bucket{{controller=\"{controller}\",le=\"+Inf\"}} {count}"
        );
        let _ = writeln!(text, "{name}_count{{controller=\"{controller}\"}} {count}");
        let _ = writeln!(text, "{name}_sum{{controller=\"{controller}\"}} {sum}");
    }
    text
}

fn header(name: &str, kind: &str, help: &str) -> String {
    format!("# TYPE {name} {kind}\n# HELP {name} {help}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_is_openmetrics() {
        let metrics = Metrics::default();
        metrics.reconciled("service", "ok", Duration::from_millis(7));
        metrics.wrote("apply", "Identity");
        metrics.called_control("create_key", "key_refused");
        metrics.watch_failed("Service");
        let gauges = Gauges {
            queue_depth: 2,
            leader: true,
            identities: 3,
            identities_ready: 1,
            kinds_absent: vec!["DNSConfig"],
        };
        insta::assert_snapshot!(metrics.render(&gauges));
    }

    #[test]
    fn alerts_and_dashboard_of_the_chart_use_what_is_exposed() {
        let metrics = Metrics::default();
        metrics.reconciled("service", "ok", Duration::from_millis(7));
        metrics.wrote("apply", "Identity");
        metrics.called_control("create_key", "ok");
        let text = metrics.render(&Gauges {
            queue_depth: 0,
            leader: true,
            identities: 0,
            identities_ready: 0,
            kinds_absent: Vec::new(),
        });
        for file in [
            include_str!("../../../charts/tailwharf-operator/files/alerts.yaml"),
            include_str!("../../../charts/tailwharf-operator/files/dashboard.json"),
        ] {
            let words = file.split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_');
            let names: Vec<&str> = words
                .filter(|word| word.starts_with("tailwharf_operator_"))
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
