//! Policies that ask for too much are refused in words, at once.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test program")]

use tailwharf_policy::{MAX_TEXT, Policy};

fn refusal(text: &str) -> String {
    let Err(errors) = Policy::parse(text) else {
        panic!("it is accepted");
    };
    assert!(errors.len() <= 50, "{} errors", errors.len());
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

fn assert_refused(text: &str, words: &str) {
    let refusal = refusal(text);
    assert!(refusal.contains(words), "{refusal}");
}

/// `count` texts with their number in them, as members of a list or an object.
fn list(count: usize, member: impl Fn(usize) -> String) -> String {
    (0..count).map(member).collect::<Vec<_>>().join(",")
}

#[test]
fn a_text_of_ten_megabytes() {
    assert_refused(
        &format!("{{{}}}", " ".repeat(10 << 20)),
        &format!("longer than {MAX_TEXT} bytes"),
    );
}

#[test]
fn many_values() {
    assert_refused(
        &format!("{{\"acls\": [{}]}}", list(500_000, |_| "1".to_owned())),
        "more than 400000 values",
    );
}

#[test]
fn deep_values() {
    assert_refused(&format!("{{\"acls\": {}", "[".repeat(100_000)), "nested too deep");
}

#[test]
fn many_errors() {
    assert_refused(
        &format!("{{\"acls\": [{}]}}", list(100_000, |_| "{}".to_owned())),
        "needs a field \"action\"",
    );
}

#[test]
fn many_rules() {
    let rule = |_| r#"{"action":"accept","src":[],"dst":[]}"#.to_owned();
    assert_refused(
        &format!("{{\"acls\": [{}]}}", list(20_001, rule)),
        "more than 20000 rules",
    );
    let rule = |_| r#"{"action":"accept","src":[],"dst":[],"users":["u"]}"#.to_owned();
    assert_refused(
        &format!("{{\"ssh\": [{}]}}", list(20_001, rule)),
        "more than 20000 rules",
    );
}

#[test]
fn many_definitions() {
    for (section, name, value) in [
        ("groups", "group:", "[]"),
        ("hosts", "h", "\"10.0.0.1\""),
        ("ipsets", "ipset:", "[]"),
        ("tagOwners", "tag:t", "[]"),
        ("postures", "posture:", "[]"),
    ] {
        let names = list(20_001, |i| format!("\"{name}{i}\":{value}"));
        assert_refused(
            &format!("{{\"{section}\": {{{names}}}}}"),
            "more than 20000 names in one section",
        );
    }
}

#[test]
fn groups_that_multiply() {
    let users = list(5_000, |i| format!("\"u{i}@x.y\""));
    let groups = list(100, |i| format!("\"group:{i}\":[\"group:all\"]"));
    assert_refused(
        &format!("{{\"groups\": {{\"group:all\":[{users}],{groups}}}}}"),
        "more than 200000 members of groups",
    );
}

#[test]
fn groups_in_groups_in_groups() {
    let groups = list(100, |i| format!("\"group:{i:03}\":[\"group:{:03}\"]", i + 1));
    assert_refused(
        &format!("{{\"groups\": {{{groups},\"group:100\":[]}}}}"),
        "more than 16 levels of names in names",
    );
}

#[test]
fn ip_sets_that_multiply() {
    let hosts = list(5_000, |i| format!("\"10.{}.{}.1\"", i / 250, i % 250));
    let sets = list(100, |i| format!("\"ipset:{i}\":[\"ipset:all\"]"));
    assert_refused(
        &format!("{{\"ipsets\": {{\"ipset:all\":[{hosts}],{sets}}}}}"),
        "more than 100000 address ranges in IP sets",
    );
}

#[test]
fn ip_sets_in_many_rules() {
    let hosts = list(5_000, |i| format!("\"10.{}.{}.1\"", i / 250, i % 250));
    let rules = list(1_000, |i| {
        format!(
            r#"{{"action":"accept","src":["ipset:all","10.99.0.{}"],"dst":["*:{i}"]}}"#,
            i % 256
        )
    });
    assert_refused(
        &format!("{{\"ipsets\": {{\"ipset:all\":[{hosts}]}}, \"acls\": [{rules}]}}"),
        "more than 1000000 address ranges in rules",
    );
}

#[test]
fn destinations_times_ports() {
    let hosts = list(5_000, |i| format!("\"10.{}.{}.1\"", i / 250, i % 250));
    let ports = list(5_000, |i| format!("\"tcp:{}\"", 2 * i + 1));
    assert_refused(
        &format!("{{\"grants\": [{{\"src\":[\"*\"],\"dst\":[{hosts}],\"ip\":[{ports}]}}]}}"),
        "more than 1000000 destinations with ports",
    );
}

#[test]
fn tests_times_rules() {
    let users = list(5_000, |i| format!("\"u{i}@x.y\""));
    let tests = list(100, |_| {
        r#"{"src":"group:all","accept":["100.64.0.1:80"]}"#.to_owned()
    });
    let rules = list(100, |_| r#"{"action":"accept","src":[],"dst":[]}"#.to_owned());
    assert_refused(
        &format!("{{\"groups\": {{\"group:all\":[{users}]}}, \"tests\": [{tests}], \"acls\": [{rules}]}}"),
        "steps for the tests to take",
    );
}

#[test]
fn many_node_attributes() {
    let entries = list(2_001, |_| r#"{"target":[],"attr":[]}"#.to_owned());
    assert_refused(
        &format!("{{\"nodeAttrs\": [{entries}]}}"),
        "more than 2000 entries",
    );
}
