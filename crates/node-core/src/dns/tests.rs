use std::net::IpAddr;

use proptest::prelude::*;
use tailwharf_wire::tailcfg::{CapMap, DnsConfig, DnsRecord, MapResponse, Node, NodeId, Resolver, StableId};

use super::*;
use crate::netmap::Interner;

fn node(id: i64, name: &str) -> Node {
    Node {
        id: NodeId(id),
        stable_id: StableId(format!("n{id}")),
        name: format!("{name}.tail1.ts.net."),
        addresses: vec![
            format!("100.64.0.{id}/32").parse().unwrap(),
            format!("fd7a:115c:a1e0::{id}/128").parse().unwrap(),
        ],
        ..Node::default()
    }
}

#[test]
fn names_of_addresses_at_sites() {
    let netmap = netmap_with(config());
    let found = |name: &str| {
        let found = lookup(&netmap, name);
        found.first().map(ToString::to_string)
    };
    let expected = Some("fd7a:115c:a1e0:b1a:0:7:a01:203".to_owned());
    for name in [
        "10-1-2-3-via-7",
        "10-1-2-3-via-0x7.tail1.ts.net.",
        "10-1-2-3-VIA-7.tail1.ts.net",
    ] {
        assert_eq!(found(name), expected, "{name}");
    }
    for name in [
        "10-1-2-via-7",
        "10-1-2-3-via-",
        "10-1-2-3-via-70000",
        "10-1-2-3-via-7.example.com",
        "via-7",
    ] {
        assert_eq!(found(name), None, "{name}");
    }
}

fn resolver(addr: &str) -> Resolver {
    Resolver {
        addr: addr.into(),
        ..Resolver::default()
    }
}

fn config() -> DnsConfig {
    DnsConfig {
        proxied: true,
        domains: vec!["tail1.ts.net".into(), "corp.example".into()],
        routes: [
            ("tail1.ts.net".to_owned(), Vec::new()),
            ("corp.example.".to_owned(), vec![resolver("10.0.0.53")]),
            ("deep.corp.example".to_owned(), vec![resolver("10.0.0.54")]),
        ]
        .into(),
        resolvers: vec![resolver("1.1.1.1")],
        extra_records: vec![
            DnsRecord {
                name: "Web.svc.example.".into(),
                value: "100.64.0.77".into(),
                ..DnsRecord::default()
            },
            DnsRecord {
                name: "short.tail1.ts.net".into(),
                kind: "AAAA".into(),
                value: "fd7a:115c:a1e0::88".into(),
            },
            DnsRecord {
                name: "text.tail1.ts.net".into(),
                kind: "TXT".into(),
                value: "100.64.0.99".into(),
            },
        ],
        ..DnsConfig::default()
    }
}

fn netmap_with(config: DnsConfig) -> Netmap {
    let wild = Node {
        cap_map: CapMap::from([(SUBDOMAINS.to_owned(), Vec::new())]),
        ..node(3, "wild")
    };
    let response = MapResponse {
        node: Some(node(1, "me")),
        peers: vec![node(2, "Harbor"), wild],
        dns_config: Some(config),
        ..MapResponse::default()
    };
    Netmap::default().apply(&response, &Interner::default()).0
}

/// A query as a client sends it, with EDNS of 1232 bytes.
fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.0.to_be_bytes());
    message.extend_from_slice(&[0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    message
}

fn ask(netmap: &Netmap, name: &str, kind: RecordType) -> Result<(ResponseCode, Vec<String>), String> {
    let query = Query::parse(&query(name, kind)).unwrap();
    match decide(netmap, &query) {
        Decision::Answer(answer) => {
            let texts = answer.records.iter().map(|record| match &record.data {
                RecordData::Address(address) => address.to_string(),
                RecordData::Pointer(name) => name.to_string(),
                RecordData::Zone { .. } => "zone".into(),
            });
            Ok((answer.code, texts.collect()))
        }
        Decision::Forward(resolvers) => Err(resolvers[0].addr.clone()),
        Decision::System => Err("system".into()),
    }
}

fn found(texts: &[&str]) -> Result<(ResponseCode, Vec<String>), String> {
    Ok((
        ResponseCode::NoError,
        texts.iter().map(|text| (*text).to_owned()).collect(),
    ))
}

#[test]
fn names_of_the_netmap_and_extra_records() {
    let netmap = netmap_with(config());
    for (name, kind, expected) in [
        ("harbor.tail1.ts.net", RecordType::A, found(&["100.64.0.2"])),
        ("HARBOR.Tail1.ts.NET", RecordType::A, found(&["100.64.0.2"])),
        (
            "harbor.tail1.ts.net",
            RecordType::AAAA,
            found(&["fd7a:115c:a1e0::2"]),
        ),
        (
            "harbor.tail1.ts.net",
            RecordType::ANY,
            found(&["100.64.0.2", "fd7a:115c:a1e0::2"]),
        ),
        ("harbor.tail1.ts.net", RecordType(16), found(&[])),
        ("me.tail1.ts.net", RecordType::A, found(&["100.64.0.1"])),
        ("web.svc.example", RecordType::A, found(&["100.64.0.77"])),
        ("web.svc.example", RecordType::AAAA, found(&[])),
        (
            "short.tail1.ts.net",
            RecordType::AAAA,
            found(&["fd7a:115c:a1e0::88"]),
        ),
        ("any.wild.tail1.ts.net", RecordType::A, found(&["100.64.0.3"])),
    ] {
        assert_eq!(ask(&netmap, name, kind), expected, "{name} {kind:?}");
    }
    let absent = Ok((ResponseCode::NxDomain, Vec::new()));
    for name in [
        "nobody.tail1.ts.net",
        "any.harbor.tail1.ts.net",
        "a.b.wild.tail1.ts.net",
        "text.tail1.ts.net",
        "tail1.ts.net",
    ] {
        assert_eq!(ask(&netmap, name, RecordType::A), absent, "{name}");
    }
}

#[test]
fn other_names_go_to_the_resolver_of_the_longest_suffix() {
    let netmap = netmap_with(config());
    for (name, resolver) in [
        ("example.com", "1.1.1.1"),
        ("corp.example", "10.0.0.53"),
        ("a.corp.example", "10.0.0.53"),
        ("a.deep.corp.example", "10.0.0.54"),
        ("notcorp.example", "1.1.1.1"),
        ("harbor", "1.1.1.1"),
        ("", "1.1.1.1"),
    ] {
        assert_eq!(
            ask(&netmap, name, RecordType::A),
            Err(resolver.to_owned()),
            "{name}"
        );
    }
    let without = DnsConfig {
        resolvers: Vec::new(),
        ..config()
    };
    assert_eq!(
        ask(&netmap_with(without), "example.com", RecordType::A),
        Err("system".into())
    );
    assert_eq!(
        ask(&Netmap::default(), "example.com", RecordType::A),
        Err("system".into())
    );
}

#[test]
fn addresses_have_names() {
    let netmap = netmap_with(config());
    let v6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa";
    for name in ["2.0.64.100.in-addr.arpa", v6] {
        assert_eq!(
            ask(&netmap, name, RecordType::PTR),
            found(&["harbor.tail1.ts.net."]),
            "{name}"
        );
    }
    assert_eq!(
        ask(&netmap, "77.0.64.100.in-addr.arpa", RecordType::PTR),
        found(&["web.svc.example."])
    );
    assert_eq!(ask(&netmap, "2.0.64.100.in-addr.arpa", RecordType::A), found(&[]));
    assert_eq!(
        ask(&netmap, "9.0.64.100.in-addr.arpa", RecordType::PTR),
        Ok((ResponseCode::NxDomain, Vec::new())),
        "the ranges of tailnets are nobody else's"
    );
    assert_eq!(
        ask(&netmap, "8.8.8.8.in-addr.arpa", RecordType::PTR),
        Err("1.1.1.1".into())
    );
}

#[test]
fn with_magic_dns_off_only_extra_records_are_told() {
    let off = DnsConfig {
        proxied: false,
        routes: Default::default(),
        ..config()
    };
    let netmap = netmap_with(off);
    assert_eq!(
        ask(&netmap, "web.svc.example", RecordType::A),
        found(&["100.64.0.77"])
    );
    for name in ["harbor.tail1.ts.net", "2.0.64.100.in-addr.arpa"] {
        assert_eq!(ask(&netmap, name, RecordType::A), Err("1.1.1.1".into()), "{name}");
    }
    assert_eq!(
        lookup(&netmap, "harbor").len(),
        2,
        "programs of the node still find it"
    );
}

#[test]
fn peers_are_told_nothing_about_the_tailnet() {
    let filtered = DnsConfig {
        exit_node_filtered_set: vec![".internal.example".into(), "exact.example".into()],
        ..config()
    };
    let netmap = netmap_with(filtered);
    let code =
        |name: &str| match decide_for_peer(&netmap, &Query::parse(&query(name, RecordType::A)).unwrap()) {
            Decision::Answer(answer) => Some(answer.code),
            _ => None,
        };
    for name in [
        "harbor.tail1.ts.net",
        "nobody.tail1.ts.net",
        "web.svc.example",
        "2.0.64.100.in-addr.arpa",
        "internal.example",
        "a.internal.example",
        "exact.example",
    ] {
        assert_eq!(code(name), Some(ResponseCode::Refused), "{name}");
    }
    for name in ["example.com", "a.exact.example", "notinternal.example"] {
        assert_eq!(code(name), None, "{name}");
    }
}

#[test]
fn lookup_takes_short_names_and_the_search_list() {
    let netmap = netmap_with(config());
    for name in ["harbor", "HARBOR", "harbor.tail1.ts.net", "harbor.tail1.ts.net."] {
        assert_eq!(lookup(&netmap, name)[0].to_string(), "100.64.0.2", "{name}");
    }
    assert_eq!(lookup(&netmap, "me").len(), 2);
    assert_eq!(
        lookup(&netmap, "short"),
        ["fd7a:115c:a1e0::88".parse::<IpAddr>().unwrap()]
    );
    for name in ["", ".", "nobody", "harbor.example"] {
        assert!(lookup(&netmap, name).is_empty(), "{name:?}");
    }
    let bare = netmap_with(DnsConfig::default());
    assert_eq!(lookup(&bare, "harbor").len(), 2, "without a search list");
}

#[test]
fn an_answer_on_the_wire() {
    let netmap = netmap_with(config());
    let message = query("HarBor.tail1.ts.net", RecordType::A);
    let parsed = Query::parse(&message).unwrap();
    let Decision::Answer(answer) = decide(&netmap, &parsed) else {
        panic!()
    };
    let wire = parsed.answer(&answer);
    assert_eq!(wire[..4], [0x12, 0x34, 0x85, 0x80], "number, flags");
    assert_eq!(wire[4..12], [0, 1, 0, 1, 0, 0, 0, 1], "counts");
    let question = &message[12..message.len() - 11];
    assert_eq!(
        &wire[12..12 + question.len()],
        question,
        "the letters as they were asked"
    );
    let record = &wire[12 + question.len()..];
    assert_eq!(
        record[..16],
        [0xc0, 12, 0, 1, 0, 1, 0, 0, 2, 88, 0, 4, 100, 64, 0, 2]
    );
    assert_eq!(record[16..], [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    assert!(parsed.is_answered_by(&wire));
    assert!(!parsed.is_answered_by(&message), "a query is no answer");
    assert!(is_truncated(&parsed.truncated()) && !is_truncated(&wire));
}

#[test]
fn what_is_no_query_and_what_is_not_answered() {
    let good = query("a.example", RecordType::A);
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(Query::parse(&response), Err(QueryError::NoQuery));
    assert_eq!(Query::parse(&[0; 11]), Err(QueryError::NoQuery));
    let code_of = |edit: fn(&mut Vec<u8>)| {
        let mut message = good.clone();
        edit(&mut message);
        let answer = Query::parse(&message).unwrap_err().answer().unwrap();
        (answer[..3].to_vec(), answer[3])
    };
    assert_eq!(code_of(|message| message[2] |= 0x28), (vec![0x12, 0x34, 0x80], 4));
    assert_eq!(code_of(|message| message[5] = 2).1, 1);
    assert_eq!(
        code_of(|message| message[12] = 0xc0).1,
        1,
        "a pointer in a question"
    );
    assert_eq!(
        code_of(|message| message.truncate(20)).1,
        1,
        "cut inside of the question"
    );
    let class = good.len() - 12;
    let mut chaos = good.clone();
    chaos[class] = 3;
    assert_eq!(Query::parse(&chaos).unwrap_err().answer().unwrap()[3], 5);
}

proptest! {
    /// No bytes panic, and what is parsed can be answered to.
    #[test]
    fn any_bytes_are_taken(message in proptest::collection::vec(any::<u8>(), 0..600)) {
        match Query::parse(&message) {
            Ok(query) => {
                let netmap = netmap_with(config());
                if let Decision::Answer(answer) = decide(&netmap, &query) {
                    prop_assert!(query.is_answered_by(&query.answer(&answer)));
                }
            }
            Err(error) => { let _ = error.answer(); }
        }
    }

    /// A query whose bytes are changed at one place.
    #[test]
    fn a_damaged_query_is_taken(at in 0..60_usize, byte in any::<u8>(), name in "[a-z]{1,10}(\\.[a-z]{1,10}){0,3}") {
        let mut message = query(&name, RecordType::AAAA);
        let at = at % message.len();
        message[at] = byte;
        if let Ok(query) = Query::parse(&message) {
            let answer = query.refuse(ResponseCode::ServFail);
            prop_assert!(query.is_answered_by(&answer));
            prop_assert!((512..=1232).contains(&query.udp_limit()));
        }
    }

    #[test]
    fn suffixes_are_cut_at_labels(name in "[a-z]{1,5}(\\.[a-z]{1,5}){0,4}", suffix in "[a-z]{1,5}(\\.[a-z]{1,5}){0,2}") {
        let (name, suffix) = (Name::parse(&name).unwrap(), Name::parse(&suffix).unwrap());
        let mut ancestors = std::iter::successors(Some(name.clone()), Name::parent);
        prop_assert_eq!(name.is_within(&suffix), ancestors.any(|ancestor| ancestor == suffix));
    }
}
