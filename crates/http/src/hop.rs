//! Headers between hops (RFC 9110, 7.6.1): what concerns one connection only is taken out, and what two servers might read differently
//! is refused.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Uri, Version};
use thiserror::Error;

/// Headers of one hop, beside those that `Connection` names.
static HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Most names that a `Connection` header may list.
const MAX_NAMED: usize = 32;

/// Why a request is answered with 400 rather than passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HopError {
    /// There is no host, or more than one, or it is malformed.
    #[error("the request must name exactly one host")]
    Host,
    /// The target is not a path.
    #[error("the request's target must be a path")]
    Target,
    /// A tunnel is asked for.
    #[error("the method CONNECT is not served here")]
    Connect,
    /// Its length is given twice, or in a way that servers read differently.
    #[error("the length of the request's body is ambiguous")]
    Length,
    /// `Connection` lists too many names, or something that is none.
    #[error("the request's Connection header is malformed")]
    Connection,
}

/// Where a request is addressed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host and port, as the client wrote them.
    pub authority: Authority,
}

impl Target {
    /// Checks a request as far as proxies in a row must read it alike, and says which host it is for.
    ///
    /// # Errors
    /// [`HopError`] says what is wrong; the answer is 400.
    pub fn of<B>(request: &Request<B>) -> Result<Self, HopError> {
        if request.method() == Method::CONNECT {
            return Err(HopError::Connect);
        }
        if !request.uri().path().starts_with('/') {
            return Err(HopError::Target);
        }
        let headers = request.headers();
        let chunked = headers.contains_key(TRANSFER_ENCODING);
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        if let Some(first) = lengths.next()
            && (chunked || lengths.any(|other| other != first) || !is_number(first))
        {
            return Err(HopError::Length);
        }
        Ok(Self {
            authority: authority(request.uri(), headers)?,
        })
    }

    /// The host in lower case, without port and final dot.
    #[must_use]
    pub fn host(&self) -> String {
        let host = self.authority.host();
        host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
    }
}

fn is_number(value: &HeaderValue) -> bool {
    let value = value.as_bytes();
    !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit)
}

fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Authority, HopError> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HopError::Host);
    }
    let authority = match (uri.authority(), host) {
        // The target has the last word (RFC 9112, 3.2.2).
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| HopError::Host)?,
        (None, None) => return Err(HopError::Host),
    };
    let (text, host) = (authority.as_str(), authority.host());
    let has_port = text.len() > host.len();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_host = host.starts_with('[') || (!host.is_empty() && host.bytes().all(plain));
    if text.contains('@') || !is_host || (has_port && authority.port_u16().is_none()) {
        return Err(HopError::Host);
    }
    Ok(authority)
}

/// The protocol to which a request of HTTP/1.1 wants to change, if it does.
#[must_use]
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wants = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(names)
        .any(|name| name.eq_ignore_ascii_case("upgrade"));
    wants.then(|| headers.get(UPGRADE).cloned()).flatten()
}

/// Takes out what concerns the connection on which the headers came.
///
/// # Errors
/// [`HopError::Connection`] when `Connection` cannot be obeyed.
pub fn strip(headers: &mut HeaderMap) -> Result<(), HopError> {
    if headers.contains_key(CONNECTION) {
        let mut named = Vec::new();
        for name in headers.get_all(CONNECTION).iter().flat_map(names) {
            if named.len() == MAX_NAMED {
                return Err(HopError::Connection);
            }
            named.push(HeaderName::try_from(name).map_err(|_| HopError::Connection)?);
        }
        for name in named {
            // What tells servers for whom a request is, or how long, stays whatever a client says.
            if name != HOST && name != CONTENT_LENGTH {
                headers.remove(name);
            }
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    Ok(())
}

fn names(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let text = value.to_str().unwrap_or("\u{0}");
    text.split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// Makes the head of a request that came to us fit for a backend: of one hop, for `target`, in the form that `version` has there. Says to which
/// protocol the client wants to change, which only HTTP/1.1 can.
///
/// # Errors
/// As [`strip`].
pub fn prepare<B>(
    request: &mut Request<B>,
    target: &Target,
    version: Version,
) -> Result<Option<HeaderValue>, HopError> {
    let upgrade = (request.version() == Version::HTTP_11)
        .then(|| upgrade(request.headers()))
        .flatten();
    let trailers = request.headers().get_all(TE).iter().flat_map(names);
    let trailers = trailers
        .into_iter()
        .any(|name| name.eq_ignore_ascii_case("trailers"));
    let headers = request.headers_mut();
    strip(headers)?;
    // Our own server asks for the body when it is wanted.
    headers.remove(EXPECT);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(headers);
    *request.version_mut() = version;
    if version == Version::HTTP_2 {
        request.headers_mut().remove(HOST);
        set_uri(request, Some(target));
    } else {
        if let Ok(host) = HeaderValue::from_str(target.authority.as_str()) {
            request.headers_mut().insert(HOST, host);
        }
        if request.uri().authority().is_some() {
            set_uri(request, None);
        }
        if let Some(protocol) = &upgrade {
            let headers = request.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol.clone());
        }
    }
    Ok(upgrade)
}

fn set_uri<B>(request: &mut Request<B>, target: Option<&Target>) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = target.map(|_| Scheme::HTTP);
    parts.authority = target.map(|target| target.authority.clone());
    // A path that has been a part of an URI is one again.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// HTTP/2 may send cookies in several headers; HTTP/1.1 has one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let builder = headers.iter().fold(Request::get(uri), |builder, (name, value)| {
            builder.header(*name, *value)
        });
        builder.body(()).unwrap()
    }

    fn target(uri: &str, headers: &[(&str, &str)]) -> Result<String, HopError> {
        Target::of(&request(uri, headers)).map(|target| target.host())
    }

    #[test]
    fn one_host_is_named() {
        assert_eq!(
            target("/", &[("host", "Web.Example.com:443")]),
            Ok("web.example.com".to_owned())
        );
        assert_eq!(target("/", &[("host", "web.")]), Ok("web".to_owned()));
        assert_eq!(
            target("/", &[("host", "[fd7a::1]:80")]),
            Ok("[fd7a::1]".to_owned())
        );
        assert_eq!(
            target("http://a.example/", &[("host", "b.example")]),
            Ok("a.example".to_owned())
        );
        for wrong in [&[][..], &[("host", "a"), ("host", "a")]] {
            assert_eq!(target("/", wrong), Err(HopError::Host), "{wrong:?}");
        }
        for wrong in ["", "a b", "me@a", "a/b", "a:", "a:http", "a:99999", ":80", "a,b"] {
            assert_eq!(target("/", &[("host", wrong)]), Err(HopError::Host), "{wrong:?}");
        }
        assert_eq!(target("*", &[("host", "a")]), Err(HopError::Target));
    }

    #[test]
    fn lengths_are_clear() {
        let length = |headers: &[(&str, &str)]| {
            let host = [("host", "a")];
            let all: Vec<_> = host.iter().chain(headers).copied().collect();
            target("/", &all).map(|_| ())
        };
        assert_eq!(length(&[("content-length", "12")]), Ok(()));
        assert_eq!(
            length(&[("content-length", "12"), ("content-length", "12")]),
            Ok(())
        );
        for wrong in [
            &[("content-length", "1"), ("content-length", "2")][..],
            &[("content-length", "1"), ("transfer-encoding", "chunked")],
            &[("content-length", "+1")],
            &[("content-length", "0x1")],
            &[("content-length", "1, 1")],
            &[("content-length", "99999999999999999999")],
        ] {
            assert_eq!(length(wrong), Err(HopError::Length), "{wrong:?}");
        }
    }

    fn prepared(headers: &[(&str, &str)], version: Version) -> (Request<()>, Option<HeaderValue>) {
        let mut request = request("/path?query", headers);
        let target = Target::of(&request).unwrap();
        let upgrade = prepare(&mut request, &target, version).unwrap();
        (request, upgrade)
    }

    #[test]
    fn what_concerns_one_hop_ends_here() {
        let (request, upgrade) = prepared(
            &[
                ("host", "a"),
                ("connection", "close, X-Secret"),
                ("connection", "keep-alive, Host, content-length"),
                ("x-secret", "1"),
                ("keep-alive", "5"),
                ("proxy-connection", "close"),
                ("te", "gzip, trailers"),
                ("trailer", "x"),
                ("upgrade", "websocket"),
                ("expect", "100-continue"),
                ("content-length", "0"),
                ("x-kept", "2"),
            ],
            Version::HTTP_11,
        );
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "host", "te", "x-kept"]);
        assert_eq!(request.headers()[TE], "trailers");
        assert_eq!(upgrade, None, "Connection does not name it");
    }

    #[test]
    fn an_upgrade_is_asked_for_again() {
        let asked = [
            ("host", "a"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        let (request, upgrade) = prepared(&asked, Version::HTTP_11);
        assert_eq!(upgrade.unwrap(), "websocket");
        assert_eq!(request.headers()[UPGRADE], "websocket");
        assert_eq!(request.headers()[CONNECTION], "upgrade");
    }

    #[test]
    fn versions_have_their_forms() {
        let cookies = [("host", "a:8080"), ("cookie", "a=1"), ("cookie", "b=2")];
        let (request, _) = prepared(&cookies, Version::HTTP_2);
        assert_eq!(request.uri(), "http://a:8080/path?query");
        assert!(!request.headers().contains_key(HOST));
        assert_eq!(request.headers()[COOKIE], "a=1; b=2");
        let mut request = self::request("https://b/x", &[]);
        let target = Target::of(&request).unwrap();
        prepare(&mut request, &target, Version::HTTP_11).unwrap();
        assert_eq!(request.uri(), "/x");
        assert_eq!(request.headers()[HOST], "b");
    }

    #[test]
    fn a_connection_header_is_short_and_made_of_names() {
        for wrong in ["a b", "a:", &"a,".repeat(MAX_NAMED + 1)] {
            let mut request = request("/", &[("host", "a"), ("connection", wrong)]);
            assert_eq!(
                strip(request.headers_mut()),
                Err(HopError::Connection),
                "{wrong:?}"
            );
        }
    }
}
