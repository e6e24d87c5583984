//! What the web servers of the pod count.

use std::fmt::Write;

use http::StatusCode;

use crate::metrics::{Counter, Gauge};

/// Counters of all web servers of the process.
#[derive(Debug, Default)]
pub(crate) struct WebCounters {
    /// Answers, by the first digit of their status.
    answers: [Counter; 5],
    /// Requests that were malformed, or could be read in two ways.
    pub(super) malformed: Counter,
    /// Requests whose body was too long.
    pub(super) too_long: Counter,
    /// Requests that no backend took or answered.
    pub(super) failed: Counter,
    /// TLS handshakes that came to nothing.
    pub(super) handshakes_failed: Counter,
    /// Connections ended since the client broke the protocol, a limit, or off.
    pub(super) broken: Counter,
    /// Connections that have left HTTP.
    pub(super) upgraded: Gauge,
}

impl WebCounters {
    pub(super) fn answered(&self, status: StatusCode) {
        if let Some(counter) = self
            .answers
            .get(usize::from(status.as_u16() / 100).wrapping_sub(1))
        {
            counter.increment();
        }
    }

    /// Appends the text form for Prometheus.
    pub(crate) fn render(&self, out: &mut String) {
        let mut put = |name: &str, kind: &str, help: &str, samples: &[(String, i128)]| {
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "# HELP tailwharf_proxy_http_{name} {help}\n# TYPE tailwharf_proxy_http_{name} {kind}"
            );
            for (labels, value) in samples {
                let _ = writeln!(out, "tailwharf_proxy_http_{name}{labels} {value}");
            }
        };
        let answers: Vec<_> = (1..)
            .zip(&self.answers)
            .map(|(class, count)| (format!("{{code=\"{class}xx\"}}"), i128::from(count.get())))
            .collect();
        put(
            "requests_total",
            "counter",
            "Requests answered, by class of status.",
            &answers,
        );
        let refused = [
            ("malformed", &self.malformed),
            ("body_too_long", &self.too_long),
            ("backend", &self.failed),
            ("tls_handshake", &self.handshakes_failed),
            ("connection", &self.broken),
        ];
        let refused: Vec<_> = refused
            .iter()
            .map(|(reason, count)| (format!("{{reason=\"{reason}\"}}"), i128::from(count.get())))
            .collect();
        put(
            "failures_total",
            "counter",
            "Requests and connections that failed, by reason.",
            &refused,
        );
        let upgraded = [(String::new(), i128::from(self.upgraded.get()))];
        put(
            "upgraded",
            "gauge",
            "Connections that have left HTTP, such as WebSocket.",
            &upgraded,
        );
    }
}
