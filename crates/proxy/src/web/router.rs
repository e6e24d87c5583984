//! Which route takes a request.

use std::borrow::Cow;
use std::collections::HashMap;

use tailwharf_kube_types::identity::web::{HostName, PathType, Route};

/// Routes of one host, or of all hosts, each with the position of its backend.
#[derive(Debug, Default, PartialEq, Eq)]
struct Paths {
    exact: HashMap<Box<str>, usize>,
    /// Without the slash at the end: all paths begin with the empty one.
    prefixes: HashMap<Box<str>, usize>,
}

impl Paths {
    fn insert(&mut self, path: &str, path_type: PathType, backend: usize) {
        // A route that cannot be compared takes nothing.
        let Some(path) = plain(path) else { return };
        match path_type {
            PathType::Exact => self.exact.entry(path.as_ref().into()).or_insert(backend),
            PathType::Prefix => self
                .prefixes
                .entry(path.trim_end_matches('/').into())
                .or_insert(backend),
        };
    }

    fn find(&self, path: &str) -> Option<usize> {
        if let Some(backend) = self.exact.get(path) {
            return Some(*backend);
        }
        if self.prefixes.is_empty() {
            return None;
        }
        let mut rest = path.trim_end_matches('/');
        loop {
            if let Some(backend) = self.prefixes.get(rest) {
                return Some(*backend);
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }
}

/// What became of a look for a route.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The position of the backend.
    Backend(usize),
    /// No route takes it.
    Nothing,
    /// The path is malformed.
    Malformed,
}

/// All routes of a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Router {
    exact: HashMap<Box<str>, Paths>,
    /// By what follows the asterisk and dot.
    wildcards: HashMap<Box<str>, Paths>,
    any: Paths,
    /// The device's own full name.
    device: Option<Box<str>>,
}

impl Router {
    /// The routes of a device with this full name, if it is known. `backend` gives the position of a backend by its name; a route without one takes nothing.
    #[must_use]
    pub(super) fn new(
        routes: &[Route],
        device: Option<&str>,
        backend: impl Fn(&str) -> Option<usize>,
    ) -> Self {
        let mut router = Self {
            device: device.map(Into::into),
            ..Self::default()
        };
        for route in routes {
            let Some(backend) = backend(&route.backend) else {
                continue;
            };
            let paths = match (&route.host, device) {
                (None, _) => &mut router.any,
                (Some(HostName::Exact(name)), _) => router.exact.entry(name.as_str().into()).or_default(),
                (Some(HostName::Wildcard(parent)), _) => {
                    router.wildcards.entry(parent.as_str().into()).or_default()
                }
                (Some(HostName::Device), Some(device)) => router.exact.entry(device.into()).or_default(),
                (Some(HostName::Device), None) => continue,
            };
            paths.insert(&route.path, route.path_type, backend);
        }
        router
    }

    /// The full name behind a host: the device's own for its first label alone, which is how peers ask for it without TLS.
    #[must_use]
    pub(super) fn full_name<'a>(&'a self, host: &'a str) -> &'a str {
        let own = |device: &&str| device.split('.').next() == Some(host);
        self.device.as_deref().filter(own).unwrap_or(host)
    }

    /// The device's own full name.
    #[must_use]
    pub(super) fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// The backend for a request: `host` in lower case and without a port, `path` as it came.
    #[must_use]
    pub(super) fn find(&self, host: &str, path: &str) -> Found {
        let Some(path) = plain(path) else {
            return Found::Malformed;
        };
        let host = self.full_name(host);
        let wildcard = || self.wildcards.get(host.split_once('.')?.1);
        let found = self
            .exact
            .get(host)
            .and_then(|paths| paths.find(&path))
            .or_else(|| wildcard().and_then(|paths| paths.find(&path)))
            .or_else(|| self.any.find(&path));
        found.map_or(Found::Nothing, Found::Backend)
    }
}

/// A path as a server reads it: decoded, without empty elements and dots. Routes are compared with that, so that no spelling of a path leads
/// past them. `None` when it is malformed.
fn plain(path: &str) -> Option<Cow<'_, str>> {
    if !path.starts_with('/') {
        return None;
    }
    let decoded = if path.contains('%') {
        Cow::Owned(decode(path)?)
    } else {
        Cow::Borrowed(path)
    };
    if !decoded.contains("//") && !decoded.contains("/.") {
        return Some(decoded);
    }
    let mut elements: Vec<&str> = Vec::new();
    for element in decoded.split('/') {
        match element {
            "" | "." => {}
            ".." => {
                elements.pop();
            }
            element => elements.push(element),
        }
    }
    let is_folder = decoded.ends_with('/') || decoded.ends_with("/.") || decoded.ends_with("/..");
    let end = if is_folder && !elements.is_empty() {
        "/"
    } else {
        ""
    };
    Some(Cow::Owned(format!("/{}{end}", elements.join("/"))))
}

fn decode(path: &str) -> Option<String> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    let mut bytes = path.bytes();
    let mut out = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push(u8::try_from(high * 16 + low).ok().filter(|byte| *byte != 0)?);
        } else {
            out.push(byte);
        }
    }
    // What is no UTF-8 has no route of its own, but the backend of a prefix may know it.
    Some(
        String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "web.tail1.ts.net";

    fn router(routes: &[(&str, &str, PathType)]) -> Router {
        let routes: Vec<Route> = routes
            .iter()
            .enumerate()
            .map(|(position, (host, path, path_type))| Route {
                host: (!host.is_empty()).then(|| host.parse().unwrap()),
                path: (*path).to_owned(),
                path_type: *path_type,
                backend: position.to_string(),
            })
            .collect();
        Router::new(&routes, Some(DEVICE), |name| name.parse().ok())
    }

    use PathType::{Exact, Prefix};

    #[test]
    fn the_longest_prefix_by_elements_wins_and_exact_paths_before() {
        let router = router(&[
            ("", "/", Prefix),
            ("", "/foo", Prefix),
            ("", "/foo/bar/", Prefix),
            ("", "/foo", Exact),
            ("", "/foo/", Exact),
        ]);
        for (path, expected) in [
            ("/", 0),
            ("/foobar", 0),
            ("/foo", 3),
            ("/foo/", 4),
            ("/foo/x", 1),
            ("/foo/bar", 2),
            ("/foo/bar/", 2),
            ("/foo/bar/x/y", 2),
            ("/foo/barx", 1),
        ] {
            assert_eq!(router.find(DEVICE, path), Found::Backend(expected), "{path}");
        }
    }

    #[test]
    fn hosts_exact_then_wildcard_then_any() {
        let router = router(&[
            ("", "/", Prefix),
            ("a.example.com", "/", Prefix),
            ("*.example.com", "/", Prefix),
            ("@", "/api", Prefix),
        ]);
        for (host, path, expected) in [
            ("a.example.com", "/", 1),
            ("b.example.com", "/", 2),
            ("x.b.example.com", "/", 0),
            ("100.64.0.1", "/", 0),
            (DEVICE, "/api/x", 3),
            ("web", "/api", 3),
            (DEVICE, "/", 0),
        ] {
            assert_eq!(router.find(host, path), Found::Backend(expected), "{host}{path}");
        }
    }

    #[test]
    fn no_spelling_of_a_path_leads_past_its_route() {
        let router = router(&[("", "/public", Prefix), ("", "/admin", Prefix)]);
        for path in [
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/..%2fadmin",
            "/public/.%2E/./admin/x",
            "//admin",
            "/./admin",
            "/%61dmin",
            "/x/../../../admin",
        ] {
            assert_eq!(router.find(DEVICE, path), Found::Backend(1), "{path}");
        }
        for path in ["/public/..", "/", "/publicx", "/%252e/admin"] {
            assert_eq!(router.find(DEVICE, path), Found::Nothing, "{path}");
        }
        for path in ["*", "", "/%", "/%zz", "/%0", "/a%00b", "http"] {
            assert_eq!(router.find(DEVICE, path), Found::Malformed, "{path}");
        }
    }

    #[test]
    fn without_a_name_only_routes_for_all_hosts_count() {
        let routes = [Route {
            host: Some(HostName::Device),
            path: "/".to_owned(),
            path_type: Prefix,
            backend: String::new(),
        }];
        let router = Router::new(&routes, None, |_| Some(0));
        assert_eq!(router.find("web", "/"), Found::Nothing);
    }
}
