//! What a device serves over HTTP: host names with their certificates, routes, and the backends behind them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Backend;

/// The port of HTTPS.
pub const HTTPS_PORT: u16 = 443;
/// The port of plain HTTP.
pub const HTTP_PORT: u16 = 80;
/// Most host names of one device.
pub const MAX_HOSTS: usize = 64;
/// Most routes of one device.
pub const MAX_ROUTES: usize = 512;
/// Most backends of one device.
pub const MAX_WEB_BACKENDS: usize = 128;

const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// An HTTPS server on port 443 of the device, and what port 80 does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Web {
    /// The names that are served, each with its certificate. A TLS client that asks for another name is refused.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub hosts: Vec<WebHost>,
    /// Which request goes where. A route of the request's host comes before one of all hosts, an exact path before a prefix, a longer
    /// prefix before a shorter. What no route takes is answered with 404.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), extend("x-kubernetes-list-type" = "atomic"))]
    pub routes: Vec<Route>,
    /// Where requests go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 128),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub backends: Vec<WebBackend>,
    /// What port 80 does.
    #[serde(default)]
    pub http: PlainHttp,
    /// The same is served to the Internet through Funnel.
    #[serde(default)]
    pub funnel: bool,
    /// URL of the ACME directory that issues the certificates. Absent: the pool's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), pattern(r"^https?://"))]
    pub acme_directory: Option<String>,
    /// Most bytes of a request's body. Absent: no limit. A longer one is answered with 413.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_099_511_627_776_u64), extend("format" = "int64"))]
    pub max_body_bytes: Option<u64>,
    /// Seconds in which a backend has to begin its answer. Absent: 600. It is answered with 504 in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400), extend("format" = "int32"))]
    pub response_timeout_seconds: Option<u32>,
    /// Each request is a line of the pod's log: who asked, for what, and what the answer was.
    #[serde(default)]
    pub access_log: bool,
}

/// What port 80 of the device does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PlainHttp {
    /// It is closed.
    #[default]
    Closed,
    /// It answers each request with 301 to the same address under HTTPS.
    Redirect,
    /// It serves the routes without encryption.
    Serve,
}

/// A name that is served under TLS.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct WebHost {
    /// The name.
    pub name: HostName,
    /// The certificate is PEM at the keys `<this>.crt` and `<this>.key` of the Secret `<identity>-certs`, which the operator keeps.
    /// Absent: the pod orders one by ACME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 240), pattern(r"^[-._a-zA-Z0-9]+$"))]
    pub certificate: Option<String>,
}

/// Requests for one path, or for a path and all below it, and where they go.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// One of the served names. Absent: all of them, and any other name or address by which port 80 is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// The path, from its first slash on. The backend is asked for the request's own path.
    #[schemars(length(min = 1, max = 1024), pattern("^/"))]
    pub path: String,
    /// How it is compared.
    pub path_type: PathType,
    /// Name of a backend.
    #[schemars(length(min = 1, max = 320))]
    pub backend: String,
}

/// How a route's path is compared with that of a request.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathType {
    /// It is the same, byte for byte.
    Exact,
    /// Its elements, which are what stands between slashes, begin with those of the route.
    Prefix,
}

/// Where requests go: one port of a Service, as a rule.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct WebBackend {
    /// A name for routes, messages and metrics, such as `web:8080`.
    #[schemars(length(min = 1, max = 320))]
    pub name: String,
    /// What it speaks.
    #[serde(default)]
    pub protocol: BackendProtocol,
    /// Addresses among which requests are spread. None: requests are answered with 503 and the problem.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub addresses: Vec<Backend>,
    /// Why there is no address: one sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub problem: Option<String>,
}

/// What a backend speaks.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendProtocol {
    /// HTTP/1.1 without encryption; HTTP/2 without encryption for gRPC that came by HTTP/2.
    #[default]
    #[serde(rename = "http")]
    Http,
    /// HTTP/1.1 or HTTP/2 under TLS. Whatever certificate the backend shows is taken.
    #[serde(rename = "https")]
    Https,
    /// HTTP/2 without encryption.
    #[serde(rename = "h2c")]
    H2c,
}

/// A name under which a device is asked over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostName {
    /// `@`: the device's own full name, which the control server chooses.
    Device,
    /// A DNS name in lower case, without a final dot.
    Exact(String),
    /// `*.` and a DNS name: all names with one label before it. The field has what follows the asterisk and dot.
    Wildcard(String),
}

/// Why a text is no [`HostName`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{name:?} is no host name: write a DNS name in lower case, or \"*.\" before one")]
pub struct HostNameError {
    name: String,
}

impl HostName {
    /// Whether a request for `host`, in lower case and without a port, is for this name. `device` is the device's own full name.
    #[must_use]
    pub fn matches(&self, host: &str, device: Option<&str>) -> bool {
        match self {
            Self::Device => device.is_some_and(|device| device.eq_ignore_ascii_case(host)),
            Self::Exact(name) => name == host,
            Self::Wildcard(parent) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        }
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "@" {
            return Ok(Self::Device);
        }
        let (name, wildcard) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
        if text.len() <= MAX_NAME && name.split('.').all(is_label) {
            let name = name.to_owned();
            Ok(if wildcard {
                Self::Wildcard(name)
            } else {
                Self::Exact(name)
            })
        } else {
            Err(HostNameError {
                name: text.chars().take(80).collect(),
            })
        }
    }
}

fn is_label(label: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !label.is_empty()
        && label.len() <= MAX_LABEL
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("@"),
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
        }
    }
}

impl TryFrom<String> for HostName {
    type Error = HostNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.to_string()
    }
}

impl JsonSchema for HostName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "HostName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 253,
            "pattern": r"^(@|(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_read_and_written() {
        for good in ["@", "web", "web.example.com", "*.example.com", "*.com"] {
            assert_eq!(good.parse::<HostName>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "*",
            "*.",
            "a..b",
            "Web",
            "a.*.b",
            "-a.b",
            "a.b.",
            "a b",
            &"a.".repeat(200),
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let matches = |name: &str, host: &str| {
            name.parse::<HostName>()
                .unwrap()
                .matches(host, Some("web.tail1.ts.net"))
        };
        assert!(matches("*.example.com", "a.example.com"));
        assert!(!matches("*.example.com", "a.b.example.com") && !matches("*.example.com", "example.com"));
        assert!(!matches("*.example.com", ".example.com"));
        assert!(matches("@", "web.tail1.ts.net") && !matches("@", "web"));
        assert!(matches("web.example.com", "web.example.com") && !matches("web.example.com", "example.com"));
    }

    #[test]
    fn a_short_document_is_complete() {
        let web: Web = serde_json::from_value(serde_json::json!({
            "hosts": [{"name": "@"}, {"name": "*.example.com", "certificate": "example"}],
            "routes": [{"path": "/", "pathType": "Prefix", "backend": "web:80"}],
            "backends": [{"name": "web:80", "addresses": [{"address": "10.0.0.1", "port": 80}]}],
        }))
        .unwrap();
        assert_eq!(
            (web.http, web.funnel, web.backends[0].protocol),
            (PlainHttp::Closed, false, BackendProtocol::Http)
        );
        let again = serde_json::from_value(serde_json::to_value(&web).unwrap()).unwrap();
        assert_eq!(web, again);
    }
}
