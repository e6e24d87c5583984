//! Who makes requests on a connection, and the headers by which backends learn that: the ones that `tailscale serve` sets.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tailwharf_node::WhoIs;

const LOGIN: HeaderName = HeaderName::from_static("tailscale-user-login");
const NAME: HeaderName = HeaderName::from_static("tailscale-user-name");
const PICTURE: HeaderName = HeaderName::from_static("tailscale-user-profile-pic");
const FUNNEL: HeaderName = HeaderName::from_static("tailscale-funnel-request");
const INFO: HeaderName = HeaderName::from_static("tailscale-headers-info");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What these headers are, for whoever meets them.
const INFO_URL: HeaderValue = HeaderValue::from_static("https://tailscale.com/s/serve-headers");

/// Longest word of RFC 2047, less what stands around its content in UTF-8.
const MAX_ENCODED: usize = 75 - "=?utf-8?q?".len() - "?=".len();

/// Whoever is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    address: IpAddr,
    /// The connection came under TLS.
    secure: bool,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A device of a user.
    User {
        login: HeaderValue,
        name: HeaderValue,
        picture: HeaderValue,
        /// For the log.
        text: Box<str>,
    },
    /// A device with tags, or one that the map does not show any more.
    Device { text: Box<str> },
    /// Somebody on the internet.
    Public,
}

impl Caller {
    /// A device of the tailnet at `address`.
    #[must_use]
    pub(crate) fn of_tailnet(address: IpAddr, secure: bool, whois: Option<&WhoIs>) -> Self {
        let kind = match whois {
            Some(who) if who.node.tags.is_empty() => Kind::User {
                login: value(&who.user.login_name),
                name: value(&who.user.display_name),
                picture: value(&who.user.profile_pic_url),
                text: who.user.login_name.as_str().into(),
            },
            Some(who) => Kind::Device {
                text: who.node.name.clone(),
            },
            None => Kind::Device { text: "".into() },
        };
        Self {
            address: address.to_canonical(),
            secure,
            kind,
        }
    }

    /// Somebody on the internet at `address`, who comes through Funnel and always under TLS.
    #[must_use]
    pub(crate) fn of_internet(address: IpAddr) -> Self {
        Self {
            address: address.to_canonical(),
            secure: true,
            kind: Kind::Public,
        }
    }

    /// Where the caller is.
    #[must_use]
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Login of the user or name of the device, for the log; `funnel` for the internet.
    #[must_use]
    pub(crate) fn text(&self) -> &str {
        match &self.kind {
            Kind::User { text, .. } | Kind::Device { text } => text,
            Kind::Public => "funnel",
        }
    }

    /// Takes out what only a proxy may say, in whatever spelling, and says it. `host` is the host as the client asked for it.
    pub(crate) fn introduce(&self, headers: &mut HeaderMap, host: &str) {
        remove_claims(headers);
        match &self.kind {
            Kind::User {
                login, name, picture, ..
            } => {
                headers.insert(LOGIN, login.clone());
                headers.insert(NAME, name.clone());
                headers.insert(PICTURE, picture.clone());
                headers.insert(INFO, INFO_URL);
            }
            Kind::Device { .. } => {}
            Kind::Public => {
                headers.insert(FUNNEL, HeaderValue::from_static("?1"));
            }
        }
        headers.insert(FORWARDED_FOR, value(&self.address.to_string()));
        headers.insert(FORWARDED_HOST, value(host));
        if self.secure {
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
        }
    }
}

/// Takes out every header, or trailer, that backends might take for a word of ours.
pub(crate) fn remove_claims(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// Whether only a proxy may set a header. Servers of CGI's descent take an underscore for a hyphen, so a header is also known by that.
fn is_claim(name: &HeaderName) -> bool {
    const PREFIXES: [&str; 2] = ["tailscale-", "x-forwarded-"];
    const NAMES: [&str; 2] = ["forwarded", "x-real-ip"];
    let name = name.as_str().as_bytes();
    let same = |text: &str, len: usize| {
        name.len() >= len
            && name[..len]
                .iter()
                .zip(text.as_bytes())
                .all(|(a, b)| a == b || (*a == b'_' && *b == b'-'))
    };
    PREFIXES.iter().any(|prefix| same(prefix, prefix.len()))
        || NAMES
            .iter()
            .any(|text| name.len() == text.len() && same(text, text.len()))
}

/// A text as the value of a header. What is not ASCII is encoded as RFC 2047 has it.
fn value(text: &str) -> HeaderValue {
    let plain = |c: char| c == '\t' || (' '..='~').contains(&c);
    let value = if text.chars().all(plain) {
        HeaderValue::from_str(text)
    } else {
        HeaderValue::from_str(&encode(text))
    };
    value.unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The encoding named Q, in words of at most 75 characters.
fn encode(text: &str) -> String {
    let mut out = String::from("=?utf-8?q?");
    let mut length = 0;
    for c in text.chars() {
        let mut encoded = String::with_capacity(12);
        match c {
            ' ' => encoded.push('_'),
            '!'..='~' if !matches!(c, '=' | '?' | '_') => encoded.push(c),
            _ => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(encoded, "={byte:02X}");
                }
            }
        }
        if length + encoded.len() > MAX_ENCODED {
            out.push_str("?= =?utf-8?q?");
            length = 0;
        }
        length += encoded.len();
        out.push_str(&encoded);
    }
    out.push_str("?=");
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tailwharf_node::Peer;
    use tailwharf_wire::tailcfg::{CapMap, Node, UserProfile};

    use super::*;

    fn whois(login: &str, name: &str, tags: &[&str]) -> WhoIs {
        let node = Node {
            name: "laptop.tail1.ts.net.".to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..Node::default()
        };
        WhoIs {
            node: Arc::new(Peer::from_node(&node)),
            user: Arc::new(UserProfile {
                login_name: login.to_owned(),
                display_name: name.to_owned(),
                ..UserProfile::default()
            }),
            cap_map: CapMap::default(),
        }
    }

    fn introduced(caller: &Caller, headers: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        caller.introduce(&mut map, "web.tail1.ts.net");
        let mut all: Vec<_> = map
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        all.sort();
        all
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    const ADDRESS: &str = "100.64.0.9";

    #[test]
    fn backends_learn_the_user_and_nothing_that_a_client_claims() {
        let who = whois("alice@example.com", "Alice", &[]);
        let caller = Caller::of_tailnet(ADDRESS.parse().unwrap(), true, Some(&who));
        let claimed = [
            ("tailscale-user-login", "mallory@example.com"),
            ("Tailscale_User_Login", "mallory@example.com"),
            ("tailscale-USER_name", "Mallory"),
            ("tailscale-app-capabilities", "{}"),
            ("tailscale-anything", "x"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-forwarded-port", "1"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("accept", "text/html"),
        ];
        let expected = [
            ("accept", "text/html"),
            ("tailscale-headers-info", "https://tailscale.com/s/serve-headers"),
            ("tailscale-user-login", "alice@example.com"),
            ("tailscale-user-name", "Alice"),
            ("tailscale-user-profile-pic", ""),
            ("x-forwarded-for", ADDRESS),
            ("x-forwarded-host", "web.tail1.ts.net"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(introduced(&caller, &claimed), pairs(&expected));
        assert_eq!(caller.text(), "alice@example.com");
    }

    #[test]
    fn devices_with_tags_have_no_user() {
        let who = whois("tagged-devices", "Tagged Devices", &["tag:ci"]);
        let caller = Caller::of_tailnet("::ffff:100.64.0.9".parse().unwrap(), false, Some(&who));
        let expected = [
            ("x-forwarded-for", ADDRESS),
            ("x-forwarded-host", "web.tail1.ts.net"),
        ];
        assert_eq!(
            introduced(&caller, &[("tailscale-user-login", "mallory")]),
            pairs(&expected)
        );
        assert_eq!(caller.text(), "laptop.tail1.ts.net");
        let unknown = Caller::of_tailnet(ADDRESS.parse().unwrap(), false, None);
        assert_eq!(introduced(&unknown, &[]), pairs(&expected));
    }

    #[test]
    fn the_internet_is_nobody_and_said_to_be_the_internet() {
        let caller = Caller::of_internet("2001:db8::7".parse().unwrap());
        let claimed = [
            ("tailscale-funnel-request", "?0"),
            ("tailscale-user-login", "mallory"),
        ];
        let expected = [
            ("tailscale-funnel-request", "?1"),
            ("x-forwarded-for", "2001:db8::7"),
            ("x-forwarded-host", "web.tail1.ts.net"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(introduced(&caller, &claimed), pairs(&expected));
    }

    #[test]
    fn names_beyond_ascii_are_encoded() {
        assert_eq!(value("Günter = 1?_"), "=?utf-8?q?G=C3=BCnter_=3D_1=3F=5F?=");
        assert_eq!(value("plain = 1?"), "plain = 1?");
        let long = encode(&"ü".repeat(30));
        assert!(long.split(' ').all(|word| word.len() <= 75) && long.contains("?= =?utf-8?q?"));
        assert_eq!(value("a\r\nX-Evil: 1"), "=?utf-8?q?a=0D=0AX-Evil:_1?=");
    }
}
