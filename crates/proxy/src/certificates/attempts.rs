//! Orders that failed, as they stand in the identity's Secret, so that a restart or another pod does not order sooner.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use tailwharf_kube_types::IdentityReason;

/// The pause after the first failure; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
/// The longest pause that we choose ourselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 60 * 60);

/// Failed orders of one name at one authority since the last certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Attempts {
    directory: String,
    name: String,
    failures: u32,
    not_before: Timestamp,
    reason: IdentityReason,
    message: String,
}

impl Attempts {
    /// The key of the Secret's data that holds them, as JSON.
    pub(super) const KEY: &'static str = "tailwharf-certificate.json";

    /// What the Secret knows of orders for `name` at `directory`. Another name or authority begins anew.
    #[must_use]
    pub(super) fn read(data: &BTreeMap<String, ByteString>, directory: &str, name: &str) -> Self {
        data.get(Self::KEY)
            .and_then(|value| serde_json::from_slice::<Self>(&value.0).ok())
            .filter(|known| known.directory == directory && known.name == name)
            .unwrap_or_else(|| Self {
                directory: directory.to_owned(),
                name: name.to_owned(),
                failures: 0,
                not_before: Timestamp::UNIX_EPOCH,
                reason: IdentityReason::CertificatePending,
                message: String::new(),
            })
    }

    /// As it stands in the Secret.
    #[must_use]
    pub(super) fn to_json(&self) -> Vec<u8> {
        // Serialization of these types cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// How long until the next order may be made; `None`: now.
    #[must_use]
    pub(super) fn wait(&self, now: Timestamp) -> Option<Duration> {
        let left = self.not_before.as_second() - now.as_second();
        u64::try_from(left)
            .ok()
            .filter(|left| *left > 0)
            .map(Duration::from_secs)
    }

    /// Why the last one failed.
    #[must_use]
    pub(super) fn reason(&self) -> IdentityReason {
        self.reason
    }

    /// Why the last one failed, for people.
    #[must_use]
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Notes a failure. The next order waits: for as long as the authority says, if it does, else with doubling pauses, up to a quarter more by `random`.
    pub(super) fn failed(
        &mut self,
        reason: IdentityReason,
        message: &str,
        now: Timestamp,
        retry_after: Option<Duration>,
        random: u32,
    ) {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16));
        let own = doubled.min(LONGEST_PAUSE);
        let pause = retry_after.unwrap_or_default().max(own);
        let spread = pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 4.0);
        let seconds = i64::try_from((pause + spread).as_secs()).unwrap_or(i64::MAX / 4);
        self.failures = self.failures.saturating_add(1);
        self.not_before =
            Timestamp::from_second(now.as_second().saturating_add(seconds)).unwrap_or(Timestamp::MAX);
        self.reason = reason;
        self.message = message.chars().take(500).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn pauses_double_and_a_retry_after_counts() {
        let mut attempts = Attempts::read(&BTreeMap::new(), "https://ca/", "web");
        assert_eq!(attempts.wait(now()), None);
        let mut waits = Vec::new();
        for _ in 0..3 {
            attempts.failed(IdentityReason::CertificateRefused, "no", now(), None, 0);
            waits.push(attempts.wait(now()).unwrap().as_secs());
        }
        assert_eq!(waits, [15, 30, 60]);
        for _ in 0..40 {
            attempts.failed(IdentityReason::CertificateRefused, "no", now(), None, u32::MAX);
        }
        assert_eq!(attempts.wait(now()).unwrap(), LONGEST_PAUSE.mul_f64(1.25));
        let day = Duration::from_secs(86_400);
        attempts.failed(
            IdentityReason::CertificateRateLimited,
            "later",
            now(),
            Some(day),
            0,
        );
        assert_eq!(attempts.wait(now()), Some(day));
    }

    #[test]
    fn they_survive_a_restart_and_end_with_the_name() {
        let mut attempts = Attempts::read(&BTreeMap::new(), "https://ca/", "web");
        attempts.failed(IdentityReason::CertificateRefused, "no", now(), None, 7);
        let data = BTreeMap::from([(Attempts::KEY.to_owned(), ByteString(attempts.to_json()))]);
        assert_eq!(Attempts::read(&data, "https://ca/", "web"), attempts);
        assert_eq!(Attempts::read(&data, "https://ca/", "other").wait(now()), None);
        assert_eq!(Attempts::read(&data, "https://other/", "web").wait(now()), None);
        let damaged = BTreeMap::from([(Attempts::KEY.to_owned(), ByteString(b"{".to_vec()))]);
        assert_eq!(Attempts::read(&damaged, "https://ca/", "web").wait(now()), None);
    }
}
