//! What the pod counts of certificates.

use std::fmt::Write;

use crate::metrics::{Counter, Gauge};

/// Counters of certificates.
#[derive(Debug, Default)]
pub(crate) struct CertificateCounters {
    issued: Counter,
    failed: Counter,
    /// Provided certificates that could not be used.
    pub(super) rejected: Counter,
    /// Names that are served with a certificate.
    pub(super) served: Gauge,
}

impl CertificateCounters {
    pub(super) fn ordered(&self, issued: bool) {
        if issued { &self.issued } else { &self.failed }.increment();
    }

    /// Appends the text form for Prometheus.
    pub(crate) fn render(&self, out: &mut String) {
        let name = "tailwharf_proxy_certificate";
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# HELP {name}_orders_total Orders of certificates, by outcome.\n# TYPE {name}_orders_total counter\n\
             {name}_orders_total{{outcome=\"issued\"}} {}\n{name}_orders_total{{outcome=\"failed\"}} {}\n\
             # HELP {name}s_rejected_total Provided certificates that could not be used.\n# TYPE {name}s_rejected_total counter\n\
             {name}s_rejected_total {}\n\
             # HELP {name}_devices Devices with all their certificates.\n# TYPE {name}_devices gauge\n{name}_devices {}\n",
            self.issued.get(),
            self.failed.get(),
            self.rejected.get(),
            self.served.get(),
        );
    }
}
