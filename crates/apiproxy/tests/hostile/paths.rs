//! P: what a path asks for, read as the API server reads it.

use http::Method;
use proptest::prelude::*;
use serde_json::json;
use tailwharf_apiproxy::{CAPABILITY, PathError, RequestInfo, Session, TerminalKind};

use crate::bed::{Bed, NAME, device};

fn info(method: &Method, target: &str) -> Result<RequestInfo, PathError> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    RequestInfo::parse(method, path, query)
}

/// `verb group/version resource/subresource namespace/name`
fn told(method: &Method, target: &str) -> String {
    let info = info(method, target).unwrap();
    if !info.is_resource {
        return format!("{} {}", info.verb, info.path);
    }
    format!(
        "{} {}/{} {} {}/{}",
        info.verb,
        info.api_group,
        info.api_version,
        info.full_resource(),
        info.namespace,
        info.name
    )
}

const EXEC: &str = "/api/v1/namespaces/a/pods/p/exec";

fn session(method: &Method, path: &str, upgrade: bool) -> Session {
    tailwharf_apiproxy::session(&info(method, path).unwrap(), upgrade)
}

#[test]
fn p_01_a_slash_at_the_end_changes_nothing() {
    let subresources = [("exec", TerminalKind::Exec), ("attach", TerminalKind::Attach)];
    for (subresource, kind) in subresources {
        for end in ["", "/", "///"].iter().take(2) {
            let path = format!("/api/v1/namespaces/a/pods/p/{subresource}{end}");
            assert_eq!(session(&Method::GET, &path, true), Session::Terminal(kind));
        }
    }
    assert_eq!(
        session(&Method::POST, "/api/v1/namespaces/a/pods/p/portforward/", true),
        Session::Unreadable
    );
}

#[test]
fn p_02_encoded_slashes_are_refused_where_the_api_server_reads() {
    for path in [
        "/api/v1/namespaces/a/pods/p%2Fexec",
        "/api/v1/namespaces/a/pods%2fp/exec",
        "/api/v1/namespaces%2Fa/pods",
    ] {
        assert_eq!(info(&Method::GET, path), Err(PathError::Slash), "{path}");
    }
    assert_eq!(
        told(&Method::GET, "/api/v1/namespaces/a/pods/p%252Fexec"),
        "get /v1 pods a/p%2Fexec"
    );
    assert_eq!(
        told(&Method::GET, "/api/v1/namespaces/a/services/s:80/proxy/d%2Fe"),
        "get /v1 services/proxy a/s:80"
    );
}

#[test]
fn p_03_other_spellings_are_the_same_or_refused() {
    assert_eq!(
        session(&Method::POST, "/api/v1/namespaces/a/pods/p/%65xec", true),
        Session::Terminal(TerminalKind::Exec)
    );
    for (path, error) in [
        ("/api/v1/%2e%2e/x", PathError::Dot),
        ("/api/v1/./x", PathError::Dot),
        ("/api/../api/v1/pods", PathError::Dot),
        ("/api/v1//pods", PathError::Empty),
        ("//api/v1/pods", PathError::Empty),
        ("/api/v1/pods\\x", PathError::Backslash),
        ("/api/v1/pods/%00", PathError::Control),
        ("/api/v1/pods/%0a", PathError::Control),
        ("/api/v1/pods/%ff", PathError::Encoding),
        ("/api/v1/pods/%zz", PathError::Encoding),
        ("/api/v1/pods/%4", PathError::Encoding),
        ("/api/v1/watch", PathError::NoKind),
    ] {
        assert_eq!(info(&Method::GET, path), Err(error), "{path}");
    }
    assert_eq!(
        told(&Method::GET, "/api/v1/namespaces/a/pods/p/exec;x"),
        "get /v1 pods/exec;x a/p"
    );
}

#[test]
fn p_04_capitals_are_other_names() {
    assert_eq!(told(&Method::GET, "/API/v1/pods"), "get /API/v1/pods");
    assert_eq!(
        told(&Method::GET, "/api/v1/namespaces/a/pods/p/EXEC"),
        "get /v1 pods/EXEC a/p"
    );
    assert_eq!(
        session(&Method::GET, "/api/v1/namespaces/a/pods/p/EXEC", true),
        Session::Unreadable,
        "recorded or refused"
    );
}

#[test]
fn p_05_the_method_does_not_change_what_an_upgrade_opens() {
    for method in [
        Method::GET,
        Method::POST,
        Method::HEAD,
        Method::PUT,
        Method::OPTIONS,
        Method::DELETE,
    ] {
        assert_eq!(
            session(&method, EXEC, true),
            Session::Terminal(TerminalKind::Exec),
            "{method}"
        );
    }
}

#[test]
fn p_06_watches_have_many_forms() {
    for (target, verb) in [
        ("/api/v1/watch/pods", "watch"),
        ("/api/v1/watch/namespaces/a/pods/p", "watch"),
        ("/api/v1/pods?watch=1", "watch"),
        ("/api/v1/pods?watch=true", "watch"),
        ("/api/v1/pods?watch=t", "watch"),
        ("/api/v1/pods?watch", "watch"),
        ("/api/v1/pods?watch=", "watch"),
        ("/api/v1/pods?w%61tch=1", "watch"),
        ("/api/v1/pods?watch=0", "list"),
        ("/api/v1/pods?watch=FALSE&watch=true", "list"),
        ("/api/v1/pods?watch=1;a=b", "list"),
        ("/api/v1/pods?watch=%zz", "list"),
        ("/api/v1/proxy/namespaces/a/pods/p/exec", "proxy"),
        ("/api/v1/namespaces/a/pods/p?watch=1", "get"),
    ] {
        assert_eq!(info(&Method::GET, target).unwrap().verb, verb, "{target}");
    }
}

#[test]
fn p_07_queries_do_not_change_what_is_a_session() {
    for query in [
        "tty=1",
        "tty=TRUE",
        "tty=false&tty=true",
        "container=a&container=b",
        "command=tar",
        "",
    ] {
        assert_eq!(
            session(&Method::POST, &format!("{EXEC}?{query}"), true),
            Session::Terminal(TerminalKind::Exec)
        );
    }
}

#[test]
fn p_08_paths_are_read_as_the_api_server_reads_them() {
    for (method, target, expected) in [
        (Method::GET, "/", "get /"),
        (Method::GET, "/api", "get /api"),
        (Method::GET, "/api/v1", "get /api/v1"),
        (Method::GET, "/apis/apps/v1", "get /apis/apps/v1"),
        (Method::GET, "/apis/apps/v1/", "get /apis/apps/v1/"),
        (Method::POST, "/healthz/ping", "post /healthz/ping"),
        (Method::GET, "/api/v1/namespaces", "list /v1 namespaces /"),
        (Method::GET, "/api/v1/namespaces/a", "get /v1 namespaces a/a"),
        (
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            "update /v1 namespaces/finalize a/a",
        ),
        (
            Method::GET,
            "/api/v1/namespaces/a/status",
            "get /v1 namespaces/status a/a",
        ),
        (Method::GET, "/api/v1/namespaces/a/pods", "list /v1 pods a/"),
        (
            Method::DELETE,
            "/api/v1/namespaces/a/pods",
            "deletecollection /v1 pods a/",
        ),
        (
            Method::DELETE,
            "/api/v1/namespaces/a/pods/p",
            "delete /v1 pods a/p",
        ),
        (
            Method::PATCH,
            "/apis/apps/v1/namespaces/a/deployments/d/scale",
            "patch apps/v1 deployments/scale a/d",
        ),
        (
            Method::GET,
            "/apis/apps/v1/deployments",
            "list apps/v1 deployments /",
        ),
        (Method::HEAD, "/api/v1/nodes/n", "get /v1 nodes /n"),
        (
            Method::GET,
            "/api/v1/nodes/n/proxy/exec/a/p/c",
            "get /v1 nodes/proxy /n",
        ),
        (
            Method::GET,
            "/api/v1/pods?fieldSelector=metadata.name%3Dp",
            "list /v1 pods /p",
        ),
        (
            Method::GET,
            "/api/v1/pods?fieldSelector=metadata.name==p,spec.nodeName=n&watch=1",
            "watch /v1 pods /p",
        ),
        (
            Method::GET,
            "/api/v1/pods?fieldSelector=metadata.name!%3Dp",
            "list /v1 pods /",
        ),
        (
            Method::GET,
            "/api/v1/pods?fieldSelector=metadata.name%3Dp&limit=x",
            "list /v1 pods /",
        ),
        (Method::OPTIONS, "/api/v1/pods", " /v1 pods /"),
    ] {
        assert_eq!(told(&method, target), expected, "{method} {target}");
    }
}

proptest! {
    /// Nothing that a path may be makes the parser fail, and encoding letters changes nothing.
    #[test]
    fn p_08_encoding_letters_changes_nothing(path in "(/[a-z0-9.;:-]{1,6}){0,9}/?", picks in prop::collection::vec(any::<bool>(), 80)) {
        let encoded: String = path.chars().zip(picks.iter().cycle()).map(|(c, pick)| {
            if *pick && c.is_ascii_alphanumeric() { format!("%{:02x}", c as u32) } else { c.to_string() }
        }).collect();
        prop_assert_eq!(info(&Method::GET, &path), info(&Method::GET, &encoded));
    }

    #[test]
    fn p_08_arbitrary_paths_do_no_harm(path in "\\PC*", query in "\\PC*") {
        let _ = RequestInfo::parse(&Method::GET, &path, &query);
    }
}

#[tokio::test]
async fn p_09_what_cannot_be_recorded_is_denied_where_recording_is_required() {
    let bed = Bed::start().await;
    let values = json!([{"enforceRecorder": true, "impersonate": {"groups": ["team"]}}]);
    bed.tailnet
        .set(Some(device("alice@example.com", &[(CAPABILITY, values)])));
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for path in [
        EXEC,
        "/api/v1/namespaces/a/pods/p/attach",
        "/api/v1/namespaces/a/pods/p/portforward",
        "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/v/console",
        "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/v/vnc",
        "/api/v1/namespaces/a/pods/p/unknown",
    ] {
        let status = bed
            .refused(
                format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n{upgrade}\r\n"),
                403,
            )
            .await;
        assert!(
            status["message"].as_str().unwrap().contains("must be recorded"),
            "{status}"
        );
    }
    for path in [
        "/api/v1/nodes/n/proxy/exec/a/p/c",
        "/api/v1/nodes/n/proxy/run/a/p/c",
        "/api/v1/nodes/n/proxy/attach/a/p/c",
        "/api/v1/nodes/n/proxy/portForward/a/p",
        "/api/v1/nodes/n/proxy/cri/exec/x",
        "/api/v1/nodes/n/proxy/containerLogs/a/p/c",
        "/api/v1/nodes/n/proxy/",
        "/api/v1/namespaces/a/pods/p/proxy/x",
        "/api/v1/namespaces/a/services/s/proxy/x",
        "/api/v1/proxy/nodes/n/exec",
    ] {
        for more in ["", upgrade] {
            bed.refused(format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n{more}\r\n"), 403)
                .await;
        }
    }
    // Everything else goes on: nothing of it is a session.
    assert_eq!(bed.get("/api/v1/namespaces/a/pods", "").await.code, 200);
    assert_eq!(
        bed.get(EXEC, "").await.code,
        200,
        "without an upgrade the API server says no itself"
    );
}
