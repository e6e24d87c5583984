//! Scopes: what a token may do.
//!
//! A scope is an area, such as `devices:core`, which means reading and writing, or an area and `:read`. `all` is every area, and an area holds those
//! whose names continue its own: `devices` holds `devices:core`.

use std::collections::BTreeSet;
use std::fmt;

/// Auth keys.
pub(crate) const AUTH_KEYS: Scope<'static> = Scope::area("auth_keys");
/// OAuth clients.
pub(crate) const OAUTH_KEYS: Scope<'static> = Scope::area("oauth_keys");
/// OAuth clients that show a token of their platform.
pub(crate) const FEDERATED_KEYS: Scope<'static> = Scope::area("federated_keys");
/// API tokens of people.
pub(crate) const API_TOKENS: Scope<'static> = Scope::area("api_access_tokens");
/// Devices.
pub(crate) const DEVICES: Scope<'static> = Scope::area("devices:core");
/// The routes of devices.
pub(crate) const ROUTES: Scope<'static> = Scope::area("devices:routes");
/// The posture attributes of devices.
pub(crate) const ATTRIBUTES: Scope<'static> = Scope::area("devices:posture_attributes");
/// The policy.
pub(crate) const POLICY: Scope<'static> = Scope::area("policy_file");
/// Services with addresses of their own.
pub(crate) const SERVICES: Scope<'static> = Scope::area("services");
/// Name resolution.
pub(crate) const DNS: Scope<'static> = Scope::area("dns");
/// People.
pub(crate) const USERS: Scope<'static> = Scope::area("users");
/// Settings of the tailnet.
pub(crate) const SETTINGS: Scope<'static> = Scope::area("feature_settings");
/// Settings of the account: contacts.
pub(crate) const ACCOUNT: Scope<'static> = Scope::area("account_settings");
/// The log of changes.
pub(crate) const LOG: Scope<'static> = Scope::area("logs:configuration");
/// Everything.
pub(crate) const ALL: Scope<'static> = Scope::area("all");

/// All areas, and those that hold others.
const AREAS: &[Scope<'static>] = &[
    ALL,
    AUTH_KEYS,
    OAUTH_KEYS,
    FEDERATED_KEYS,
    API_TOKENS,
    Scope::area("devices"),
    DEVICES,
    ROUTES,
    ATTRIBUTES,
    POLICY,
    SERVICES,
    DNS,
    USERS,
    SETTINGS,
    ACCOUNT,
    Scope::area("logs"),
    LOG,
    // Areas of the official service that have no calls here. Clients made there by the same scripts are accepted, and gain nothing.
    Scope::area("device_invites"),
    Scope::area("log_streaming"),
    Scope::area("logs:network"),
    Scope::area("networking_settings"),
    Scope::area("user_invites"),
    Scope::area("webhooks"),
];

/// An area, to read alone or to change, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope<'a> {
    area: &'a str,
    read_only: bool,
}

impl Scope<'static> {
    const fn area(area: &'static str) -> Self {
        Self {
            area,
            read_only: false,
        }
    }

    /// The same area to read alone.
    pub(crate) const fn read(self) -> Self {
        Self {
            read_only: true,
            ..self
        }
    }
}

impl<'a> Scope<'a> {
    /// Reads the text of a scope; `None` if there is no such area.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (area, read_only) = text
            .strip_suffix(":read")
            .map_or((text, false), |area| (area, true));
        AREAS
            .iter()
            .any(|known| known.area == area)
            .then_some(Self { area, read_only })
    }

    /// Whether who has this scope has the other, too.
    pub(crate) fn covers(self, other: Scope<'_>) -> bool {
        let holds = self.area == ALL.area
            || other
                .area
                .strip_prefix(self.area)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
        holds && (!self.read_only || other.read_only)
    }
}

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.area)?;
        if self.read_only {
            f.write_str(":read")
        } else {
            Ok(())
        }
    }
}

/// Whether the scopes of a token or client cover one.
pub(crate) fn covered(held: &BTreeSet<String>, needed: Scope<'_>) -> bool {
    held.iter()
        .filter_map(|text| Scope::parse(text))
        .any(|scope| scope.covers(needed))
}

/// The names of all areas, for messages.
pub(crate) fn names() -> String {
    AREAS
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_scopes_cover_narrower_ones() {
        let covers = |a, b| Scope::parse(a).unwrap().covers(Scope::parse(b).unwrap());
        for (a, b) in [
            ("all", "devices:core"),
            ("all:read", "policy_file:read"),
            ("devices", "devices:routes"),
            ("devices:core", "devices:core:read"),
            ("devices:read", "devices:core:read"),
        ] {
            assert!(covers(a, b), "{a} covers {b}");
            assert!(!covers(b, a), "{b} does not cover {a}");
        }
        assert!(covers("logs", "logs:configuration:read"));
        assert!(!covers("devices:core", "devices:routes"));
        assert!(!covers("all:read", "devices:core"));
    }

    #[test]
    fn unknown_areas_are_no_scopes() {
        for text in [
            "",
            "all:write",
            "device",
            "devices:",
            "devices:core:read:read",
            ":read",
        ] {
            assert_eq!(Scope::parse(text), None, "{text}");
        }
    }
}
