use proptest::prelude::*;
use tailwharf_wire::tailcfg::{FilterRule, NetPortRange, Node, PortRange};

use super::*;
use crate::packet::{self, write_udp};

fn peer(cap: Option<&str>, answers_only: bool) -> Peer {
    let mut node = Node {
        is_jailed: answers_only,
        ..Default::default()
    };
    node.capabilities.extend(cap.map(str::to_owned));
    Peer::from_node(&node)
}

fn rule(sources: &[&str], destinations: &[(&str, u16, u16)], protocols: &[i32]) -> FilterRule {
    let to = |(ip, first, last): &(&str, u16, u16)| NetPortRange {
        ip: (*ip).to_owned(),
        ports: PortRange {
            first: *first,
            last: *last,
        },
    };
    FilterRule {
        src_ips: sources.iter().map(|&source| source.to_owned()).collect(),
        dst_ports: destinations.iter().map(to).collect(),
        ip_proto: protocols.to_vec(),
        ..Default::default()
    }
}

fn filter(rules: &[FilterRule]) -> Filter {
    let mut errors = Vec::new();
    let part = FilterPart::compile(rules, &mut errors);
    assert_eq!(errors, []);
    let local = ["100.64.0.1/32", "fd7a::1/128", "10.1.0.0/16"].map(|net| net.parse().unwrap());
    Filter::new(&local, Box::new([Arc::new(part)]))
}

fn packet(protocol: u8, from: &str, to: &str, flags: u8) -> Parsed {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    Parsed {
        src: from.ip(),
        dst: to.ip(),
        proto: protocol,
        src_port: from.port(),
        dst_port: to.port(),
        flags,
        fragment: Fragment::No,
        transport: 0,
        end: 0,
    }
}

const SYN: u8 = packet::tcp_flags::SYN;
const ACK: u8 = packet::tcp_flags::ACK;

#[test]
fn rules_decide() {
    let rules = [
        rule(&["100.64.0.2"], &[("100.64.0.1", 80, 90)], &[]),
        rule(&["100.64.1.0/24", "fd7a::5-fd7a::9"], &[("*", 443, 443)], &[6]),
        rule(
            &["100.64.2.1-100.64.2.9"],
            &[("10.1.0.0/16", 0, 65535)],
            &[17, 47],
        ),
        rule(&["cap:friend"], &[("100.64.0.1", 22, 22)], &[6]),
        rule(&["*"], &[("fd7a::1", 8080, 8080)], &[]),
    ];
    let filter = filter(&rules);
    let conntrack = Conntrack::default();
    let stranger = peer(None, false);
    let friend = peer(Some("friend"), false);
    let jailed = peer(Some("friend"), true);
    let (accept, no_rule) = (Verdict::Accept, Verdict::Drop(DropReason::NoRule));
    let (not_local, scope) = (
        Verdict::Drop(DropReason::NotLocal),
        Verdict::Drop(DropReason::Scope),
    );
    let cases: &[(u8, &str, &str, u8, &Peer, Verdict)] = &[
        // Ports, by an exact source.
        (6, "100.64.0.2:1", "100.64.0.1:80", SYN, &stranger, accept),
        (6, "100.64.0.2:1", "100.64.0.1:90", SYN, &stranger, accept),
        (17, "100.64.0.2:1", "100.64.0.1:85", 0, &stranger, accept),
        (6, "100.64.0.2:1", "100.64.0.1:91", SYN, &stranger, no_rule),
        (6, "100.64.0.3:1", "100.64.0.1:80", SYN, &stranger, no_rule),
        (132, "100.64.0.2:1", "100.64.0.1:80", 0, &stranger, no_rule),
        // What does not ask for a new connection passes.
        (6, "100.64.0.3:1", "100.64.0.1:80", ACK, &stranger, accept),
        (6, "100.64.0.3:1", "100.64.0.1:80", SYN | ACK, &stranger, accept),
        // Prefixes, ranges, protocols.
        (6, "100.64.1.77:1", "100.64.0.1:443", SYN, &stranger, accept),
        (17, "100.64.1.77:1", "100.64.0.1:443", 0, &stranger, no_rule),
        (6, "[fd7a::7]:1", "[fd7a::1]:443", SYN, &stranger, accept),
        (6, "[fd7a::a]:1", "[fd7a::1]:443", SYN, &stranger, no_rule),
        (17, "100.64.2.9:1", "10.1.2.3:53", 0, &stranger, accept),
        (17, "100.64.2.10:1", "10.1.2.3:53", 0, &stranger, no_rule),
        // Other protocols need all ports.
        (47, "100.64.2.9:0", "10.1.2.3:0", 0, &stranger, accept),
        (47, "100.64.0.2:0", "100.64.0.1:0", 0, &stranger, no_rule),
        // ICMP needs any port; answers need none.
        (1, "100.64.0.2:0", "100.64.0.1:0", 8, &stranger, accept),
        (1, "100.64.0.3:0", "100.64.0.1:0", 8, &stranger, no_rule),
        (1, "100.64.0.3:0", "100.64.0.1:0", 0, &stranger, accept),
        (1, "100.64.0.3:0", "100.64.0.1:0", 3, &stranger, accept),
        (58, "[fd7a::a]:0", "[fd7a::1]:0", 128, &stranger, accept),
        (58, "[fd7a::a]:0", "[fd7a::1]:0", 129, &stranger, accept),
        // TSMP passes.
        (99, "100.64.0.3:0", "100.64.0.1:0", 0, &stranger, accept),
        // Node capabilities as source.
        (6, "100.64.0.3:1", "100.64.0.1:22", SYN, &friend, accept),
        (6, "100.64.0.3:1", "100.64.0.1:22", SYN, &stranger, no_rule),
        // Those who may only answer.
        (6, "100.64.0.3:1", "100.64.0.1:22", SYN, &jailed, no_rule),
        (6, "100.64.0.3:1", "100.64.0.1:22", ACK, &jailed, accept),
        // Where to.
        (6, "100.64.0.2:1", "100.64.0.9:80", ACK, &stranger, not_local),
        (6, "100.64.1.1:1", "10.2.0.1:443", SYN, &stranger, not_local),
        (17, "100.64.0.2:1", "224.0.0.1:80", 0, &stranger, scope),
        (17, "100.64.0.2:1", "169.254.1.1:80", 0, &stranger, scope),
        (17, "100.64.0.2:1", "169.254.169.254:80", 0, &stranger, not_local),
        (17, "[fd7a::7]:1", "[ff02::1]:80", 0, &stranger, scope),
        (17, "[fd7a::7]:1", "[fe80::1]:80", 0, &stranger, scope),
    ];
    for (protocol, from, to, flags, peer, expected) in cases {
        let verdict = filter.check(&packet(*protocol, from, to, *flags), peer, &conntrack);
        assert_eq!(
            verdict, *expected,
            "protocol {protocol} from {from} to {to} flags {flags}"
        );
    }
}

#[test]
fn later_fragments_pass_and_first_ones_are_judged() {
    let filter = filter(&[]);
    let mut fragment = packet(17, "100.64.0.2:0", "100.64.0.1:0", 0);
    fragment.fragment = Fragment::Later;
    assert_eq!(
        filter.check(&fragment, &peer(None, false), &Conntrack::default()),
        Verdict::Accept
    );
    fragment.fragment = Fragment::First;
    assert_eq!(
        filter.check(&fragment, &peer(None, false), &Conntrack::default()),
        Verdict::Drop(DropReason::NoRule)
    );
}

#[test]
fn answers_to_our_datagrams_pass() {
    let filter = filter(&[]);
    let (ours, theirs) = ("100.64.0.1:5000", "100.64.0.2:53");
    let mut conntrack = Conntrack::default();
    let answer = packet(17, theirs, ours, 0);
    assert_eq!(
        filter.check(&answer, &peer(None, false), &conntrack),
        Verdict::Drop(DropReason::NoRule)
    );
    conntrack.record(17, ours.parse().unwrap(), theirs.parse().unwrap());
    assert_eq!(
        filter.check(&answer, &peer(None, false), &conntrack),
        Verdict::Accept
    );
    let other = packet(17, "100.64.0.2:54", ours, 0);
    assert_eq!(
        filter.check(&other, &peer(None, false), &conntrack),
        Verdict::Drop(DropReason::NoRule)
    );
}

#[test]
fn a_rule_that_cannot_be_read_is_left_out_and_reported() {
    let mut errors = Vec::new();
    let rules = [
        rule(&["nonsense"], &[("*", 1, 1)], &[]),
        rule(&["*"], &[("10.0.0.0/99", 1, 1)], &[]),
        rule(&["10.0.0.1-fd7a::1"], &[("*", 1, 1)], &[]),
        rule(&["100.64.0.2"], &[("*", 80, 80)], &[]),
    ];
    let part = FilterPart::compile(&rules, &mut errors);
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "filter rule 0: cannot read the source \"nonsense\"",
            "filter rule 1: cannot read the destination \"10.0.0.0/99\"",
            "filter rule 2: cannot read the source \"10.0.0.1-fd7a::1\"",
        ]
    );
    let local = ["100.64.0.1/32".parse().unwrap()];
    let filter = Filter::new(&local, Box::new([Arc::new(part)]));
    let check = |to: &str| {
        filter.check(
            &packet(6, "100.64.0.2:1", to, SYN),
            &peer(None, false),
            &Conntrack::default(),
        )
    };
    assert_eq!(check("100.64.0.1:80"), Verdict::Accept);
    assert_eq!(check("100.64.0.1:1"), Verdict::Drop(DropReason::NoRule));
}

proptest! {
    #[test]
    fn a_set_holds_what_one_of_its_texts_holds(
        nets in proptest::collection::vec((any::<u32>(), 8u8..=32), 0..8),
        ranges in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..4),
        probes in proptest::collection::vec(any::<u32>(), 1..32),
    ) {
        let text = |bits: u32| Ipv4Addr::from_bits(bits).to_string();
        let mut builder = addr_set::Builder::default();
        for (bits, length) in &nets {
            let added = builder.add_text(&format!("{}/{length}", text(*bits)));
            prop_assert!(added);
        }
        for (first, last) in &ranges {
            let added = builder.add_text(&format!("{}-{}", text(*first), text(*last)));
            prop_assert!(added);
        }
        let set = builder.build();
        let edges = nets.iter().map(|net| net.0).chain(ranges.iter().flat_map(|range| [range.0, range.1]));
        for probe in probes.into_iter().chain(edges.flat_map(|edge| [edge, edge.wrapping_sub(1), edge.wrapping_add(1)])) {
            let naive = nets.iter().any(|(bits, length)| (bits ^ probe).leading_zeros() >= u32::from(*length))
                || ranges.iter().any(|(first, last)| (*first..=*last).contains(&probe));
            prop_assert_eq!(set.contains(Ipv4Addr::from_bits(probe).into()), naive);
        }
    }

    #[test]
    fn no_text_panics(texts in proptest::collection::vec("[0-9a-f.:/*-]{0,20}", 0..5)) {
        let mut builder = addr_set::Builder::default();
        for text in &texts {
            builder.add_text(text);
        }
        builder.build();
    }
}

#[test]
fn what_we_write_is_what_we_judge() {
    let filter = filter(&[rule(&["100.64.0.2"], &[("100.64.0.1", 53, 53)], &[17])]);
    let mut bytes = Vec::new();
    write_udp(
        &mut bytes,
        "100.64.0.2:999".parse().unwrap(),
        "100.64.0.1:53".parse().unwrap(),
        b"question",
    );
    let parsed = Parsed::parse(&bytes).unwrap();
    assert_eq!(
        filter.check(&parsed, &peer(None, false), &Conntrack::default()),
        Verdict::Accept
    );
}
