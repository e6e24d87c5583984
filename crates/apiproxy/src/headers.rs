//! Which headers of a client go on to the API server, and as whom it is asked. What goes out is built anew: everything that tells of an
//! identity or of one connection is left out, whatever its spelling, and the identity is added last. Pure.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, EXPECT, FORWARDED, HeaderMap, HeaderName, HeaderValue,
    SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::caller::{self, Caller, Denial};

/// The id of a request in the audit logs on both sides.
pub(crate) const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
/// Extra of the impersonated user: full name of the device that called.
const EXTRA_DEVICE: HeaderName = HeaderName::from_static("impersonate-extra-tailwharf.dev%2fdevice");
/// Extra: its id at the control server.
const EXTRA_DEVICE_ID: HeaderName = HeaderName::from_static("impersonate-extra-tailwharf.dev%2fdevice-id");
/// Extra: the id of the request, which is the Audit-ID.
const EXTRA_REQUEST: HeaderName = HeaderName::from_static("impersonate-extra-tailwharf.dev%2frequest-id");
/// Extra: who really called, where the caller acts as somebody else.
const EXTRA_ORIGINAL: HeaderName = HeaderName::from_static("impersonate-extra-tailwharf.dev%2foriginal-user");
/// The subprotocol by which a browser sends a token.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// Most bytes of the headers of a request.
pub(crate) const MAX_HEADERS_LEN: usize = 64 * 1024;

/// A header of the client that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The client wants to act as somebody else, and may not.
    #[error(
        "{user} may not act as somebody else (kubectl --as, --as-group, --as-uid): the tailnet policy grants no such \"as\" by the capability {}",
        crate::grants::OWN_CAPABILITY
    )]
    ActAs {
        /// The caller.
        user: String,
    },
    /// The client wants to act as one whom the policy does not list.
    #[error("{user} may not act as the {what} {name:?}: the \"as\" in the tailnet policy does not list it")]
    ActAsWhom {
        /// The caller.
        user: String,
        /// User or group.
        what: &'static str,
        /// Whom.
        name: String,
    },
    /// Headers for acting as somebody else that make no sense, or have another meaning elsewhere.
    #[error("the header {0} is not understood here")]
    Spelling(String),
    /// A name to act as cannot be used.
    #[error(transparent)]
    Name(Denial),
    /// The headers are longer than allowed.
    #[error("the headers are longer than {MAX_HEADERS_LEN} bytes")]
    TooLong,
}

/// As whom a client wants to act, if it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActingAs {
    /// The user.
    pub user: String,
    /// The groups.
    pub groups: Vec<String>,
}

/// Whether a name is one by which identities are told, in any spelling that some server might take for it.
fn tells_identity(name: &str) -> bool {
    name.starts_with("impersonate")
        || name.starts_with("x-remote-")
        || name.starts_with("x-ssl-client")
        || name.starts_with("x-client-cert")
}

/// Whether a header ends with one connection or is set by us.
fn ends_here(name: &HeaderName) -> bool {
    const OTHER: [&str; 9] = [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "http2-settings",
        "x-real-ip",
        "audit-id",
        "x-forwarded",
        "true-client-ip",
    ];
    [
        CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        EXPECT,
        FORWARDED,
    ]
    .contains(name)
        || OTHER.contains(&name.as_str())
        || name.as_str().starts_with("x-forwarded-")
}

/// Reads whom the client wants to act as.
///
/// # Errors
/// When it may not.
pub(crate) fn acting_as(headers: &HeaderMap, caller: &Caller) -> Result<Option<ActingAs>, HeaderError> {
    let mut size = 0;
    let mut wants = false;
    for (name, value) in headers {
        size += name.as_str().len() + value.len() + 4;
        let dashed = name.as_str().replace('_', "-");
        if name.as_str().contains('_') && (tells_identity(&dashed) || dashed == "authorization") {
            return Err(HeaderError::Spelling(name.to_string()));
        }
        wants |= name.as_str().starts_with("impersonate");
    }
    if size > MAX_HEADERS_LEN {
        return Err(HeaderError::TooLong);
    }
    if !wants {
        return Ok(None);
    }
    if !caller.grant.act_as.anybody() {
        return Err(HeaderError::ActAs {
            user: caller.user.clone(),
        });
    }
    wanted(headers, caller).map(Some)
}

/// Whom a client that may act as others wants to act as.
fn wanted(headers: &HeaderMap, caller: &Caller) -> Result<ActingAs, HeaderError> {
    let named = headers
        .keys()
        .filter(|name| name.as_str().starts_with("impersonate"));
    if let Some(other) = named
        .into_iter()
        .find(|name| ![IMPERSONATE_USER, IMPERSONATE_GROUP].contains(name))
    {
        return Err(HeaderError::Spelling(other.to_string()));
    }
    let text = |name: &HeaderName, value: &HeaderValue| {
        String::from_utf8(value.as_bytes().to_vec()).map_err(|_| HeaderError::Spelling(name.to_string()))
    };
    let mut users = headers.get_all(IMPERSONATE_USER).iter();
    let (Some(user), None) = (users.next(), users.next()) else {
        return Err(HeaderError::Spelling(IMPERSONATE_USER.to_string()));
    };
    let user = text(&IMPERSONATE_USER, user)?;
    caller::check_name("user", &user).map_err(HeaderError::Name)?;
    let refused = |what, name: &str| HeaderError::ActAsWhom {
        user: caller.user.clone(),
        what,
        name: name.chars().take(64).collect(),
    };
    if !caller.grant.act_as.allows_user(&user) {
        return Err(refused("user", &user));
    }
    let mut groups = Vec::new();
    for group in headers.get_all(IMPERSONATE_GROUP) {
        let group = text(&IMPERSONATE_GROUP, group)?;
        caller::check_name("group", &group).map_err(HeaderError::Name)?;
        if !caller.grant.act_as.allows_group(&group) {
            return Err(refused("group", &group));
        }
        groups.push(group);
    }
    Ok(ActingAs { user, groups })
}

/// The headers that make the API server take a request for the caller's: made once for a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identity(Vec<(HeaderName, HeaderValue)>);

impl Identity {
    /// The caller itself. `extras` adds its device to the user.
    ///
    /// # Errors
    /// When a name cannot stand in a header; the caller is refused then.
    pub(crate) fn of(caller: &Caller, extras: bool) -> Result<Self, Denial> {
        let mut identity = Self(vec![(IMPERSONATE_USER, header("user", &caller.user)?)]);
        for group in &caller.groups {
            identity.0.push((IMPERSONATE_GROUP, header("group", group)?));
        }
        if extras {
            identity.extras(caller)?;
        }
        Ok(identity)
    }

    /// Somebody else, for the caller, who stays named.
    ///
    /// # Errors
    /// As [`Identity::of`].
    pub(crate) fn acting(whom: &ActingAs, caller: &Caller, extras: bool) -> Result<Self, Denial> {
        let mut identity = Self(vec![(IMPERSONATE_USER, header("user", &whom.user)?)]);
        for group in &whom.groups {
            identity.0.push((IMPERSONATE_GROUP, header("group", group)?));
        }
        identity.0.push((EXTRA_ORIGINAL, header("user", &caller.user)?));
        if extras {
            identity.extras(caller)?;
        }
        Ok(identity)
    }

    fn extras(&mut self, caller: &Caller) -> Result<(), Denial> {
        self.0.push((EXTRA_DEVICE, header("device", &caller.device)?));
        self.0
            .push((EXTRA_DEVICE_ID, header("device", &caller.device_id)?));
        Ok(())
    }
}

fn header(what: &'static str, name: &str) -> Result<HeaderValue, Denial> {
    caller::check_name(what, name)?;
    HeaderValue::from_bytes(name.as_bytes()).map_err(|_| Denial::Name {
        what,
        name: name.chars().take(64).collect(),
        why: "it cannot stand in a header",
    })
}

/// Under whose rights a request goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Credential<'a> {
    /// The proxy's own, which only allow it to act as this identity.
    Impersonating {
        /// As whom.
        identity: &'a Identity,
        /// Whether the request's id becomes part of the user.
        request_extra: bool,
        /// The proxy's token, with its `Bearer`.
        token: &'a HeaderValue,
    },
    /// Those that the client brings itself.
    Clients,
}

/// The headers for the API server.
#[must_use]
pub(crate) fn outbound(
    client: &HeaderMap,
    credential: Credential<'_>,
    source: &HeaderValue,
    audit_id: &HeaderValue,
) -> HeaderMap {
    let own = matches!(credential, Credential::Impersonating { .. });
    let nominated = nominated(client);
    let mut headers = HeaderMap::with_capacity(client.len() + 8);
    for (name, value) in client {
        let identity = tells_identity(name.as_str());
        // In the mode without authentication the client's words for who it is are what counts; no nomination takes them away.
        let kept_for_client = !own && (*name == AUTHORIZATION || name.as_str().starts_with("impersonate"));
        if (identity || *name == AUTHORIZATION) && !kept_for_client {
            continue;
        }
        if !kept_for_client
            && (ends_here(name)
                || nominated
                    .iter()
                    .any(|nominated| name.as_str().eq_ignore_ascii_case(nominated)))
        {
            continue;
        }
        if *name == SEC_WEBSOCKET_EXTENSIONS {
            continue;
        }
        if own && *name == SEC_WEBSOCKET_PROTOCOL {
            if let Some(value) = without_tokens(value) {
                headers.append(name, value);
            }
            continue;
        }
        headers.append(name, value.clone());
    }
    headers.insert(X_FORWARDED_FOR, source.clone());
    headers.insert(AUDIT_ID, audit_id.clone());
    if let Credential::Impersonating {
        identity,
        request_extra,
        token,
    } = credential
    {
        headers.insert(AUTHORIZATION, token.clone());
        for (name, value) in &identity.0 {
            headers.append(name, value.clone());
        }
        if request_extra {
            headers.insert(EXTRA_REQUEST, audit_id.clone());
        }
    }
    headers
}

/// Headers that belong to the client's connection because it says so. What an upgrade needs is set anew by whoever sends one.
fn nominated(client: &HeaderMap) -> Vec<&str> {
    let values = client
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok());
    // What a server needs to answer in a form that the client reads is not the client's to take away.
    let kept = |name: &&str| !name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str()) && !name.is_empty();
    values
        .flat_map(|value| value.split([',', ' ', '\t']))
        .map(str::trim)
        .filter(kept)
        .collect()
}

/// The subprotocols without those that are tokens; `None` when nothing is left.
fn without_tokens(value: &HeaderValue) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let token = |protocol: &&str| {
        let name = protocol.get(..BEARER_PROTOCOL.len()).unwrap_or_default();
        name.eq_ignore_ascii_case(BEARER_PROTOCOL)
    };
    if !text.split(',').map(str::trim).any(|protocol| token(&protocol)) {
        return Some(value.clone());
    }
    let left: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !token(protocol))
        .collect();
    if left.is_empty() {
        return None;
    }
    HeaderValue::from_str(&left.join(", ")).ok()
}
