//! What a request asks of the API server, read from its path as the API server reads it: on the decoded path, with the rules of its
//! RequestInfo. Policy, recording, audit and limits all look at this and at nothing else of the path.

use http::Method;
use percent_encoding::percent_decode_str;

/// Namespace parts that are not resources of their own.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// What a request asks for. Empty texts stand for what a request does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether it is about an object, and not about a path such as `/healthz`.
    pub is_resource: bool,
    /// The decoded path.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; the method in small letters for what is no resource.
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    /// The group; empty for the core group.
    pub api_group: String,
    /// The version of the API.
    pub api_version: String,
    /// The namespace.
    pub namespace: String,
    /// The resource, in plural.
    pub resource: String,
    /// The part of the object.
    pub subresource: String,
    /// The object.
    pub name: String,
    /// Resource, name, subresource and all that follows.
    pub parts: Vec<String>,
}

/// A path that is read differently by different programs, or not at all by the API server. It is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A percent sign without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("it is not encoded correctly")]
    Encoding,
    /// A control character.
    #[error("it has a control character")]
    Control,
    /// A part that is `.` or `..`.
    #[error("it has a part that is \".\" or \"..\"")]
    Dot,
    /// Two slashes without anything between.
    #[error("it has an empty part")]
    Empty,
    /// An encoded slash outside of what a proxied program gets.
    #[error("it has an encoded slash")]
    Slash,
    /// A backslash.
    #[error("it has a backslash")]
    Backslash,
    /// The API server would not know what is meant.
    #[error("a path that begins with a verb must name a resource")]
    NoKind,
}

impl RequestInfo {
    /// Reads method, path and query of a request.
    ///
    /// # Errors
    /// When the path is ambiguous.
    pub fn parse(method: &Method, raw_path: &str, query: &str) -> Result<Self, PathError> {
        let path = decode(raw_path)?;
        let mut info = Self::classify(method, path, query)?;
        if has_encoded_slash(raw_path) && !info.leads_elsewhere() {
            return Err(PathError::Slash);
        }
        info.path.shrink_to_fit();
        Ok(info)
    }

    fn classify(method: &Method, path: String, query: &str) -> Result<Self, PathError> {
        let mut info = Self {
            is_resource: false,
            verb: method.as_str().to_ascii_lowercase(),
            path,
            api_prefix: String::new(),
            api_group: String::new(),
            api_version: String::new(),
            namespace: String::new(),
            resource: String::new(),
            subresource: String::new(),
            name: String::new(),
            parts: Vec::new(),
        };
        let all: Vec<String> = match info.path.trim_matches('/') {
            "" => Vec::new(),
            trimmed => trimmed.split('/').map(str::to_owned).collect(),
        };
        let mut parts = all.as_slice();
        if parts.len() < 3 || !matches!(parts[0].as_str(), "api" | "apis") {
            return Ok(info);
        }
        info.api_prefix.clone_from(&parts[0]);
        parts = &parts[1..];
        if info.api_prefix == "apis" {
            if parts.len() < 3 {
                return Ok(info);
            }
            info.api_group.clone_from(&parts[0]);
            parts = &parts[1..];
        }
        info.is_resource = true;
        info.api_version.clone_from(&parts[0]);
        parts = &parts[1..];
        if matches!(parts[0].as_str(), "proxy" | "watch") {
            if parts.len() < 2 {
                return Err(PathError::NoKind);
            }
            info.verb.clone_from(&parts[0]);
            parts = &parts[1..];
        } else {
            verb_of(method).clone_into(&mut info.verb);
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace.clone_from(&parts[1]);
            if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2].as_str()) {
                parts = &parts[2..];
            }
        }
        info.resource.clone_from(&parts[0]);
        if let Some(name) = parts.get(1) {
            info.name.clone_from(name);
        }
        if let Some(subresource) = parts.get(2).filter(|_| info.verb != "proxy") {
            info.subresource.clone_from(subresource);
        }
        info.parts = parts.to_vec();
        info.name_the_many(query);
        Ok(info)
    }

    /// Requests without a name are about many objects.
    fn name_the_many(&mut self, query: &str) {
        if !self.name.is_empty() {
            return;
        }
        if self.verb == "get" {
            self.verb = if is_set(query, "watch") { "watch" } else { "list" }.to_owned();
            self.name = only_name(query).unwrap_or_default();
        }
        if self.name.is_empty() && self.verb == "delete" {
            "deletecollection".clone_into(&mut self.verb);
        }
    }

    /// Whether the rest of the path belongs to a program behind the API server.
    #[must_use]
    pub fn leads_elsewhere(&self) -> bool {
        self.is_resource && (self.subresource == "proxy" || self.verb == "proxy")
    }

    /// The resource with its part, as policies write it: `pods/exec`.
    #[must_use]
    pub fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Whether every client may know the answer: discovery, versions, health, and what the caller itself may do. Clients lose the
    /// message of a refusal here.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        if self.is_resource {
            return self.verb == "create"
                && matches!(
                    (self.api_group.as_str(), self.resource.as_str()),
                    (
                        "authorization.k8s.io",
                        "selfsubjectaccessreviews" | "selfsubjectrulesreviews"
                    ) | ("authentication.k8s.io", "selfsubjectreviews")
                );
        }
        let first = self
            .path
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default();
        matches!(
            first,
            "api" | "apis" | "version" | "openapi" | "healthz" | "livez" | "readyz" | ""
        )
    }
}

/// The verb of a method, for a resource.
fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The decoded path, if there is only one way to read it.
fn decode(raw: &str) -> Result<String, PathError> {
    let bytes = raw.as_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let digits = bytes.get(at + 1..at + 3).ok_or(PathError::Encoding)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(PathError::Encoding);
        }
    }
    let path = percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| PathError::Encoding)?
        .into_owned();
    if path.chars().any(char::is_control) {
        return Err(PathError::Control);
    }
    if path.contains('\\') {
        return Err(PathError::Backslash);
    }
    if path.contains("//") {
        return Err(PathError::Empty);
    }
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(PathError::Dot);
    }
    Ok(path)
}

fn has_encoded_slash(raw: &str) -> bool {
    raw.as_bytes()
        .windows(3)
        .any(|three| three[0] == b'%' && three[1] == b'2' && matches!(three[2], b'f' | b'F'))
}

/// The first value of a key of a query, as the API server takes it. Pairs that it cannot read it leaves out.
#[must_use]
pub(crate) fn first_value(query: &str, key: &str) -> Option<String> {
    values(query, key).next()
}

/// All values of a key of a query.
pub(crate) fn values<'q>(query: &'q str, key: &'q str) -> impl Iterator<Item = String> + 'q {
    query.split('&').filter_map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if pair.contains(';') || form_decode(name)? != key {
            return None;
        }
        form_decode(value)
    })
}

fn form_decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    let bytes = spaced.as_bytes();
    let broken = |at: usize| {
        bytes
            .get(at + 1..at + 3)
            .is_none_or(|digits| !digits.iter().all(u8::is_ascii_hexdigit))
    };
    if bytes
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'%' && broken(at))
    {
        return None;
    }
    Some(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

/// A switch of a query: on unless it is absent, `0` or `false`.
#[must_use]
pub(crate) fn is_set(query: &str, key: &str) -> bool {
    first_value(query, key).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
}

/// The one name that a field selector leaves, if it does and all else of the query can be read.
fn only_name(query: &str) -> Option<String> {
    for number in ["limit", "timeoutSeconds"] {
        let text = first_value(query, number).unwrap_or_default();
        if !text.is_empty() && text.parse::<i64>().is_err() {
            return None;
        }
    }
    let selector = first_value(query, "fieldSelector")?;
    let mut found = None;
    for term in split_terms(&selector).filter(|term| !term.is_empty()) {
        let at = term.find('=')?;
        let (key, value) = (&term[..at], &term[at + 1..]);
        let value = value.strip_prefix('=').unwrap_or(value);
        if found.is_none() && key == "metadata.name" {
            found = Some(unescape(value)?);
        }
    }
    found.filter(|name| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%']))
}

/// Splits a field selector at its commas that no backslash precedes.
fn split_terms(selector: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    selector.split(move |c: char| {
        let splits = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        splits
    })
}

fn unescape(value: &str) -> Option<String> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                escaped @ ('\\' | ',' | '=') => plain.push(escaped),
                _ => return None,
            },
            '=' => return None,
            c => plain.push(c),
        }
    }
    Some(plain)
}
