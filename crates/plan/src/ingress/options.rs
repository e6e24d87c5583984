//! The annotations of an Ingress that say how it is served.

use tailwharf_kube_types::contract::annotation;
use tailwharf_kube_types::identity::web::{BackendProtocol, PlainHttp};

use super::Problem;
use crate::subject::Subject;

/// Longest time for a backend's answer, in seconds: a day.
const MAX_TIMEOUT: u32 = 86_400;
/// Longest body that can be asked for: 1 TiB.
const MAX_BODY: u64 = 1 << 40;

/// How an Ingress is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) http: PlainHttp,
    pub(super) funnel: bool,
    pub(super) access_log: bool,
    /// `None`: it is told from the Service's port.
    pub(super) backend_protocol: Option<BackendProtocol>,
    pub(super) response_timeout_seconds: Option<u32>,
    pub(super) max_body_bytes: Option<u64>,
}

/// Reads the annotations. Those of the contract count with their exact value only, as they always did.
pub(super) fn options(subject: Subject<'_>, problems: &mut Vec<Problem>) -> Options {
    let is = |key: &str, value: &str| subject.annotation(key) == Some(value);
    let http = if is(annotation::HTTP_ENDPOINT, "enabled") {
        PlainHttp::Serve
    } else if is(annotation::HTTP_REDIRECT, "true") {
        PlainHttp::Redirect
    } else {
        PlainHttp::Closed
    };
    let mut read = Reader { subject, problems };
    let backend_protocol = read.value(
        annotation::BACKEND_PROTOCOL,
        "\"http\", \"https\" or \"h2c\"",
        |text| match text {
            "http" => Some(BackendProtocol::Http),
            "https" => Some(BackendProtocol::Https),
            "h2c" => Some(BackendProtocol::H2c),
            _ => None,
        },
    );
    let response_timeout_seconds = read.value(
        annotation::RESPONSE_TIMEOUT,
        "a time up to 24h, such as \"30s\" or \"5m\"",
        seconds,
    );
    let max_body_bytes = read.value(
        annotation::MAX_BODY_SIZE,
        "a size up to 1Ti, such as \"10Mi\" or \"500000\"",
        bytes,
    );
    Options {
        http,
        funnel: is(annotation::FUNNEL, "true"),
        access_log: is(annotation::ACCESS_LOG, "true"),
        backend_protocol,
        response_timeout_seconds,
        max_body_bytes,
    }
}

struct Reader<'a> {
    subject: Subject<'a>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn value<T>(
        &mut self,
        annotation: &'static str,
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.subject.given(annotation)?;
        let value = read(text);
        if value.is_none() {
            self.problems.push(Problem::Annotation {
                annotation,
                value: text.chars().take(80).collect(),
                expected,
            });
        }
        value
    }
}

/// Reads `30s`, `5m`, `1h`.
fn seconds(text: &str) -> Option<u32> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = u32::try_from(number).ok()?.checked_mul(factor)?;
    (1..=MAX_TIMEOUT).contains(&seconds).then_some(seconds)
}

/// Reads a number of bytes with a unit of Kubernetes' quantities, or none.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let bytes = number.checked_mul(factor)?;
    (1..=MAX_BODY).contains(&bytes).then_some(bytes)
}

/// A number and the unit after it.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units_and_limits() {
        assert_eq!(
            (seconds("30s"), seconds("5m"), seconds("24h")),
            (Some(30), Some(300), Some(86_400))
        );
        for bad in ["", "30", "0s", "25h", "-1s", "1d", "99999999999999999999s"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        assert_eq!(
            (bytes("500"), bytes("10Mi"), bytes("1Ti")),
            (Some(500), Some(10 << 20), Some(1 << 40))
        );
        for bad in ["", "0", "2Ti", "1.5Gi", "Mi", "-1", "18446744073709551615Gi"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
