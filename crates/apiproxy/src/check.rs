//! Fresh sign-ins: where a grant demands one, the control server says whether the person has confirmed lately that it is they, or where they can.
//!
//! A confirmation is kept for some seconds, by the clock of this process alone, and for one device with one user. It is not stored: after a
//! restart the control server is asked again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tailwharf_wire::tailcfg::{CheckRequest, StableId};
use tokio::time::Instant;

use crate::caller::Caller;
use crate::refusal::Refusal;
use crate::request_info::RequestInfo;
use crate::server::Tailnet;

/// A confirmation may be taken back: the control server is asked again after this.
const TRUST: Duration = Duration::from_secs(30);
/// Confirmations kept at once.
const MAX_KEPT: usize = 4096;
/// Shortest and longest period that a grant may demand.
const PERIODS: (u64, u64) = (60, 7 * 24 * 3600);

/// What grants demand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// How old the sign-in may be.
    pub period: Duration,
    /// Whether reading needs it as well.
    pub reads: bool,
}

impl Demand {
    /// What both demand.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            period: self.period.min(other.period),
            reads: self.reads || other.reads,
        }
    }

    /// Whether a request needs the sign-in. What clients ask before they can show anything does not, so that the refusal is seen.
    fn concerns(self, info: &RequestInfo) -> bool {
        if !info.is_resource {
            return false;
        }
        let about_oneself = info.resource.starts_with("selfsubject") && info.verb == "create";
        let reads = matches!(info.verb.as_str(), "get" | "list" | "watch")
            && (info.subresource.is_empty()
                || matches!(info.subresource.as_str(), "log" | "status" | "scale"))
            && !(info.api_group.is_empty() && info.resource == "secrets");
        !about_oneself && (self.reads || !reads)
    }
}

/// Reads a period: a number of `s`, `m`, `h` or `d`.
///
/// # Errors
/// What is wrong, for people.
pub(crate) fn period(text: &str) -> Result<Duration, &'static str> {
    let wrong = "a period is a number with s, m, h or d, such as 12h, from 1m to 7d";
    let at = text
        .len()
        .checked_sub(1)
        .filter(|at| text.is_char_boundary(*at))
        .ok_or(wrong)?;
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong),
    };
    let seconds = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or(wrong)?;
    if (PERIODS.0..=PERIODS.1).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(wrong)
    }
}

/// Confirmations of the last seconds: the device, its user, and when the control server was asked.
#[derive(Debug, Default)]
pub(crate) struct Confirmations(Mutex<HashMap<(String, i64), Instant>>);

impl Confirmations {
    /// Lets a request through, or says where its caller has to confirm it first.
    pub(crate) async fn require(
        &self,
        tailnet: &dyn Tailnet,
        caller: &Caller,
        info: &RequestInfo,
    ) -> Result<(), Refusal> {
        let Some(demand) = caller.grant.check.filter(|demand| demand.concerns(info)) else {
            return Ok(());
        };
        let key = (caller.device_id.clone(), caller.user_id);
        if self.knows(&key, demand.period) {
            return Ok(());
        }
        let asked = Instant::now();
        let request = CheckRequest {
            source: StableId(caller.device_id.clone()),
            purpose: format!("kubectl on {}", tailnet.name())
                .chars()
                .take(200)
                .collect(),
            max_age: demand.period.as_secs(),
            ..CheckRequest::default()
        };
        let answer = tailnet.check(request).await;
        let answer = answer.map_err(|error| Refusal::SignIn(error.to_string()))?;
        if answer.confirmed.is_some() {
            self.keep(key, asked);
            return Ok(());
        }
        if answer.url.is_empty() {
            return Err(Refusal::SignIn(answer.refused));
        }
        Err(Refusal::Confirm {
            url: answer.url,
            code: answer.code,
            expires: answer
                .expires
                .map(|expires| expires.to_string())
                .unwrap_or_default(),
        })
    }

    fn knows(&self, key: &(String, i64), period: Duration) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key)
            .is_some_and(|asked| asked.elapsed() < TRUST.min(period))
    }

    fn keep(&self, key: (String, i64), asked: Instant) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, asked| asked.elapsed() < TRUST);
        }
        // Whoever finds no room is asked about again.
        if kept.len() < MAX_KEPT {
            kept.insert(key, asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_have_a_unit_and_bounds() {
        assert_eq!(period("12h"), Ok(Duration::from_secs(12 * 3600)));
        assert_eq!(period("90s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "h", "12", "1s", "8d", "-1h", "1ü", "99999999999999999999h"] {
            assert!(period(wrong).is_err(), "{wrong}");
        }
    }
}
