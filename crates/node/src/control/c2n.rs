//! Requests of the control server to the node (c2n): literal HTTP/1 requests that come through the map stream.

use serde::Serialize;
use serde_json::json;

use super::announce::Announced;
use crate::api::NodeStatus;

/// Why this node takes no order to update itself.
const NO_UPDATE: &str = "this node is not updated by the control server: update its image or package";

/// What the answers are made of.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) announced: Announced,
    pub(super) status: NodeStatus,
}

/// The parts of a request that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(request: &'a [u8]) -> Option<Self> {
        let (head, body) = match request.windows(4).position(|window| window == b"\r\n\r\n") {
            Some(end) => (&request[..end], &request[end + 4..]),
            None => (request, &[][..]),
        };
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        path.starts_with('/').then_some(Self {
            method,
            path,
            query,
            body,
        })
    }

    fn parameter(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }
}

/// Answers a literal HTTP/1 request with a literal HTTP/1 response.
pub(super) fn answer(request: &[u8], about: &About) -> Vec<u8> {
    let Some(request) = Request::parse(request) else {
        return response("400 Bad Request", b"not an HTTP/1 request\n");
    };
    match (request.method, request.path) {
        (_, "/echo") => response("200 OK", request.body),
        ("GET", "/vip-services") => document(&about.announced.vip_services()),
        ("GET", "/tls-cert-status") => match request.parameter("domain") {
            Some(domain) => document(&cert_status(&domain, about)),
            None => response("400 Bad Request", b"no 'domain'\n"),
        },
        ("POST", "/logtail/flush") => response("204 No Content", &[]),
        ("GET", "/update") => document(&json!({"Enabled": false, "Supported": false, "Started": false})),
        ("POST", "/update") => {
            document(&json!({"Err": NO_UPDATE, "Enabled": false, "Supported": false, "Started": false}))
        }
        ("GET" | "POST", "/posture/identity") => document(&json!({"PostureDisabled": true})),
        ("GET", "/debug/health") => document(&json!({
            "Phase": format!("{:?}", about.status.phase),
            "RelayConnected": about.status.relay_connected,
            "Warnings": about.status.health,
        })),
        ("GET", "/debug/prefs") => document(&json!({
            "Hostname": about.announced.prefs.hostname,
            "AdvertiseTags": about.announced.prefs.tags,
            "AdvertiseServices": about.announced.services.keys().map(ToString::to_string).collect::<Vec<_>>(),
        })),
        (
            _,
            "/vip-services" | "/tls-cert-status" | "/logtail/flush" | "/update" | "/posture/identity"
            | "/debug/health" | "/debug/prefs",
        ) => response("405 Method Not Allowed", b"bad method\n"),
        _ => response("404 Not Found", b"unknown c2n path\n"),
    }
}

fn cert_status(domain: &str, about: &About) -> serde_json::Value {
    if about
        .announced
        .certified
        .iter()
        .any(|name| name.eq_ignore_ascii_case(domain))
    {
        json!({"Valid": true})
    } else if about
        .status
        .cert_domains
        .iter()
        .any(|name| name.eq_ignore_ascii_case(domain))
    {
        json!({"Missing": true, "Error": "no certificate was fetched yet"})
    } else {
        json!({"Missing": true, "Error": "the tailnet gives this node no certificate for this name"})
    }
}

fn document(value: &impl Serialize) -> Vec<u8> {
    match serde_json::to_vec(value) {
        Ok(body) => response("200 OK", &body),
        Err(_) => response("500 Internal Server Error", b"cannot encode the answer\n"),
    }
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let mut response = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    response.extend_from_slice(body);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        let mut announced = Announced::default();
        announced
            .services
            .insert("svc:web".parse().unwrap(), [443].into());
        let status = NodeStatus {
            cert_domains: vec!["node.t.ts.net".into(), "other.t.ts.net".into()],
            ..NodeStatus::starting()
        };
        announced.certified.insert("node.t.ts.net".into());
        About { announced, status }
    }

    fn answer_to(request: &str) -> String {
        String::from_utf8(answer(request.as_bytes(), &about())).unwrap()
    }

    fn json_of(request: &str) -> serde_json::Value {
        let answer = answer_to(request);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        serde_json::from_str(body).unwrap()
    }

    #[test]
    fn requests_of_the_control_server() {
        let echo = answer_to("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(echo, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        assert!(answer_to("POST /logtail/flush HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 204 "));
        assert!(answer_to("GET /debug/goroutines?x=1 HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(answer_to("DELETE /update HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        for junk in ["", "\r\n\r\n", "GET", "GET echo HTTP/1.1\r\n\r\n"] {
            assert!(answer_to(junk).starts_with("HTTP/1.1 400 "), "{junk:?}");
        }
    }

    #[test]
    fn services_are_told_with_their_hash() {
        let answer = json_of("GET /vip-services HTTP/1.1\r\n\r\n");
        assert_eq!(answer["VIPServices"][0]["Name"], "svc:web");
        assert_eq!(answer["ServicesHash"], about().announced.services_hash());
    }

    #[test]
    fn an_update_is_refused_with_the_reason() {
        assert_eq!(json_of("GET /update HTTP/1.1\r\n\r\n")["Supported"], false);
        let answer = json_of("POST /update HTTP/1.1\r\n\r\n");
        assert!(answer["Started"] == false && answer["Err"].as_str().unwrap().contains("image"));
    }

    #[test]
    fn certificates_are_valid_missing_or_not_for_this_node() {
        let status =
            |domain: &str| json_of(&format!("GET /tls-cert-status?domain={domain} HTTP/1.1\r\n\r\n"));
        assert_eq!(status("Node.t.ts.net")["Valid"], true);
        assert_eq!(
            status("other.t.ts.net")["Error"],
            "no certificate was fetched yet"
        );
        assert!(
            status("example.com")["Error"]
                .as_str()
                .unwrap()
                .contains("no certificate for this name")
        );
        assert!(answer_to("GET /tls-cert-status HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }
}
