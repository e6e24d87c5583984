//! What the nameserver knows, and what it answers: pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use tailwharf_kube_types::dns_config::Records;
use tailwharf_node_core::dns::{
    Answer, Name, Query, QueryError, Record, RecordData, RecordType, ResponseCode,
};

/// The zone of Tailscale's service, for which the nameserver is asked whatever it knows.
const TS_NET: &str = "ts.net";
/// For how many seconds an address may be remembered. Addresses are those of Services, which last.
const TTL: u32 = 30;
/// For how many seconds an absence may be remembered.
const NEGATIVE_TTL: u32 = 5;

/// The names that are known, and the zones that they are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zones {
    addresses: HashMap<Name, Box<[IpAddr]>>,
    zones: HashSet<Name>,
}

impl Zones {
    /// Takes the records. Names that cannot stand in a message are left out. Each name is in the zone of what follows its first label.
    #[must_use]
    pub fn new(records: &Records) -> Self {
        let mut addresses: HashMap<Name, Vec<IpAddr>> = HashMap::new();
        for (name, found) in records.all() {
            if let Some(name) = Name::parse(name).filter(|name| !name.as_str().is_empty()) {
                addresses.entry(name).or_default().extend(found);
            }
        }
        let zones = addresses
            .keys()
            .filter_map(Name::parent)
            .chain(Name::parse(TS_NET))
            .filter(|zone| !zone.as_str().is_empty())
            .collect();
        Self {
            addresses: addresses
                .into_iter()
                .map(|(name, found)| (name, found.into_boxed_slice()))
                .collect(),
            zones,
        }
    }

    /// How many names are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether no name is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The answer to a message that came over UDP (`datagram`) or TCP. `None`: none is given.
    #[must_use]
    pub fn respond(&self, message: &[u8], datagram: bool) -> Option<Vec<u8>> {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(error @ (QueryError::NoQuery | QueryError::Answered { .. })) => return error.answer(),
        };
        let answer = query.answer(&self.answer(&query));
        if datagram && answer.len() > query.udp_limit() {
            return Some(query.truncated());
        }
        Some(answer)
    }

    fn answer(&self, query: &Query) -> Answer {
        if let Some(addresses) = self.addresses.get(&query.name) {
            return known(query, addresses);
        }
        // A name between a zone and a name that is known exists without records.
        match self.zone_of(&query.name) {
            Some(zone) if self.zones.contains(&query.name) => absent(&zone, ResponseCode::NoError),
            Some(zone) => absent(&zone, ResponseCode::NxDomain),
            None => Answer {
                code: ResponseCode::Refused,
                ..Answer::default()
            },
        }
    }

    /// The smallest zone that the name is in.
    fn zone_of(&self, name: &Name) -> Option<Name> {
        let mut candidate = Some(name.clone());
        while let Some(name) = candidate {
            if self.zones.contains(&name) {
                return Some(name);
            }
            candidate = name.parent();
        }
        None
    }
}

fn known(query: &Query, addresses: &[IpAddr]) -> Answer {
    let is_asked = |address: &&IpAddr| match query.kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        kind => kind == RecordType::ANY,
    };
    let record = |address: &IpAddr| Record {
        owner: None,
        ttl: TTL,
        data: RecordData::Address(*address),
    };
    let records: Vec<Record> = addresses.iter().filter(is_asked).map(record).collect();
    if records.is_empty() {
        let zone = query.name.parent().unwrap_or_default();
        return absent(&zone, ResponseCode::NoError);
    }
    Answer {
        authoritative: true,
        records,
        ..Answer::default()
    }
}

fn absent(zone: &Name, code: ResponseCode) -> Answer {
    let start = Record {
        owner: Some(zone.clone()),
        ttl: NEGATIVE_TTL,
        data: RecordData::Zone {
            server: zone.clone(),
            negative_ttl: NEGATIVE_TTL,
        },
    };
    Answer {
        code,
        authoritative: true,
        records: Vec::new(),
        authority: vec![start],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones() -> Zones {
        let records = r#"{"version":"v1alpha1",
            "ip4":{"Db.tail1234.ts.net":["10.1.2.3","10.1.2.4"],"web.corp.example.":["10.0.0.1"]},
            "ip6":{"db.tail1234.ts.net":["fd00::1"]}}"#;
        Zones::new(&Records::parse(records).unwrap())
    }

    /// A question as a client sends it.
    fn question(name: &str, kind: u16, edns: bool) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        if edns {
            message.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        }
        message
    }

    /// Code, whether authoritative, and the numbers of answers and authorities.
    fn ask(name: &str, kind: u16) -> (u8, bool, u8, u8) {
        let answer = zones().respond(&question(name, kind, false), true).unwrap();
        (answer[3] & 15, answer[2] & 4 != 0, answer[7], answer[9])
    }

    #[test]
    fn names_have_addresses_whatever_their_case() {
        assert_eq!(ask("db.tail1234.ts.net", 1), (0, true, 2, 0));
        assert_eq!(ask("DB.Tail1234.TS.net", 28), (0, true, 1, 0));
        assert_eq!(ask("web.corp.example", 1), (0, true, 1, 0));
    }

    #[test]
    fn what_a_name_does_not_have_is_no_error() {
        assert_eq!(ask("web.corp.example", 28), (0, true, 0, 1));
        // HTTPS and SOA are asked for by browsers and resolvers.
        assert_eq!(ask("db.tail1234.ts.net", 65), (0, true, 0, 1));
        assert_eq!(ask("tail1234.ts.net", 6), (0, true, 0, 1));
    }

    #[test]
    fn absent_names_are_denied_and_others_refused() {
        assert_eq!(ask("no.tail1234.ts.net", 1), (3, true, 0, 1));
        assert_eq!(ask("no.other.ts.net", 1), (3, true, 0, 1));
        assert_eq!(ask("no.corp.example", 1), (3, true, 0, 1));
        assert_eq!(ask("example.com", 1), (5, false, 0, 0));
    }

    #[test]
    fn long_answers_are_cut_over_udp_only() {
        let many: Vec<String> = (0..60).map(|n| format!("\"10.0.0.{n}\"")).collect();
        let text = format!(
            r#"{{"version":"v1alpha1","ip4":{{"many.ts.net":[{}]}}}}"#,
            many.join(",")
        );
        let zones = Zones::new(&Records::parse(&text).unwrap());
        let respond = |edns, datagram| {
            zones
                .respond(&question("many.ts.net", 1, edns), datagram)
                .unwrap()
        };
        assert!(respond(false, true)[2] & 2 != 0 && respond(false, true).len() <= 512);
        assert_eq!((respond(true, true)[2] & 2, respond(true, true)[7]), (0, 60));
        assert_eq!(respond(false, false)[7], 60);
    }

    #[test]
    fn whatever_comes_is_survived() {
        let zones = zones();
        let question = question("db.tail1234.ts.net", 1, true);
        for end in 0..question.len() {
            let _ = zones.respond(&question[..end], true);
        }
        assert_eq!(zones.respond(b"", true), None);
    }
}
