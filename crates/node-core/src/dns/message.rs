//! DNS messages on the wire (RFC 1035, EDNS of RFC 6891): queries in, answers out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a message's header.
pub(super) const HEADER: usize = 12;
/// The longest name, in wire form.
pub(super) const MAX_NAME: usize = 255;
/// The longest label.
pub(super) const MAX_LABEL: usize = 63;
/// The largest answer over UDP to a client that does not say what it takes.
const MIN_UDP: usize = 512;
/// The largest answer over UDP that is ever given; larger ones would be fragmented on the way.
pub const MAX_UDP: usize = 1232;
/// A pointer to the question's name, which follows the header.
const QUESTION_NAME: [u8; 2] = [0xc0, HEADER as u8];

const CLASS_IN: u16 = 1;
const TYPE_OPT: u16 = 41;
const FLAG_ANSWER: u8 = 0x80;
const FLAG_AUTHORITATIVE: u8 = 0x04;
const FLAG_TRUNCATED: u8 = 0x02;
const FLAG_RECURSION_DESIRED: u8 = 0x01;
const FLAG_RECURSION_AVAILABLE: u8 = 0x80;

/// The type of a record, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordType(pub u16);

impl RecordType {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// The start of a zone, which tells how long an absence may be remembered.
    pub const SOA: Self = Self(6);
    /// The name of an address.
    pub const PTR: Self = Self(12);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// All types.
    pub const ANY: Self = Self(255);
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ResponseCode {
    /// The name exists, with or without records of the type.
    NoError = 0,
    /// The query cannot be read.
    FormErr = 1,
    /// No answer could be had.
    ServFail = 2,
    /// The name does not exist.
    NxDomain = 3,
    /// This kind of query is not answered.
    NotImp = 4,
    /// The query is not answered for this client.
    Refused = 5,
}

/// A domain name in lower case, without the final dot. The root is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// A name from text, with or without the final dot. `None` if that cannot stand in a message.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let fits = text.len() + 2 <= MAX_NAME
            && (text.is_empty()
                || text
                    .split('.')
                    .all(|label| (1..=MAX_LABEL).contains(&label.len())));
        fits.then(|| Self(text.to_ascii_lowercase()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name is `suffix` or below it. Everything is below the root.
    #[must_use]
    pub fn is_within(&self, suffix: &Self) -> bool {
        suffix.0.is_empty()
            || self.0 == suffix.0
            || self
                .0
                .strip_suffix(&suffix.0)
                .is_some_and(|rest| rest.ends_with('.'))
    }

    /// The name without its first label; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        Some(Self(
            self.0.split_once('.').map_or("", |(_, parent)| parent).to_owned(),
        ))
    }

    /// The address that a name of `in-addr.arpa` or `ip6.arpa` stands for.
    #[must_use]
    pub fn reverse_address(&self) -> Option<IpAddr> {
        if let Some(digits) = self.0.strip_suffix(".in-addr.arpa") {
            let mut octets = [0; 4];
            let mut labels = digits.split('.');
            for octet in octets.iter_mut().rev() {
                *octet = labels.next()?.parse().ok()?;
            }
            return labels
                .next()
                .is_none()
                .then(|| IpAddr::V4(Ipv4Addr::from(octets)));
        }
        let digits = self.0.strip_suffix(".ip6.arpa")?;
        let mut address = 0_u128;
        let mut count = 0;
        for label in digits.split('.') {
            let mut chars = label.chars();
            let nibble = chars.next()?.to_digit(16)?;
            if chars.next().is_some() || count == 32 {
                return None;
            }
            address |= u128::from(nibble) << (4 * count);
            count += 1;
        }
        (count == 32).then(|| IpAddr::V6(Ipv6Addr::from(address)))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for label in self.0.split('.').filter(|label| !label.is_empty()) {
            out.push(label.len() as u8);
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.0)
    }
}

/// A query with one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    id: u16,
    recursion_desired: bool,
    /// The question as it came, with the case of its letters, which an answer repeats.
    question: Vec<u8>,
    /// The size of datagrams that the client takes, if it speaks EDNS.
    edns: Option<u16>,
    /// The name asked for.
    pub name: Name,
    /// The type asked for.
    pub kind: RecordType,
}

/// A query that cannot be answered as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not a query at all; nothing is answered.
    #[error("not a DNS query")]
    NoQuery,
    /// A query that is answered by a code alone.
    #[error("a query that is answered with {code:?}")]
    Answered {
        /// Number of the query.
        id: u16,
        /// The code.
        code: ResponseCode,
    },
}

impl QueryError {
    /// The answer, if there is one.
    #[must_use]
    pub fn answer(self) -> Option<Vec<u8>> {
        let Self::Answered { id, code } = self else {
            return None;
        };
        let mut out = vec![0; HEADER];
        out[..2].copy_from_slice(&id.to_be_bytes());
        out[2] = FLAG_ANSWER;
        out[3] = code as u8;
        Some(out)
    }
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// When it is none, or one that has no other answer than a code.
    pub fn parse(message: &[u8]) -> Result<Self, QueryError> {
        let header: &[u8; HEADER] = message.first_chunk().ok_or(QueryError::NoQuery)?;
        if header[2] & FLAG_ANSWER != 0 {
            return Err(QueryError::NoQuery);
        }
        let id = u16_at(message, 0).unwrap_or_default();
        let refuse = |code| QueryError::Answered { id, code };
        if header[2] & 0x78 != 0 {
            return Err(refuse(ResponseCode::NotImp));
        }
        if u16_at(message, 4) != Some(1) {
            return Err(refuse(ResponseCode::FormErr));
        }
        let malformed = || refuse(ResponseCode::FormErr);
        let (name, end) = read_name(message, HEADER).ok_or_else(malformed)?;
        let kind = u16_at(message, end).ok_or_else(malformed)?;
        let class = u16_at(message, end + 2).ok_or_else(malformed)?;
        if class != CLASS_IN {
            return Err(refuse(ResponseCode::Refused));
        }
        let question = message[HEADER..end + 4].to_vec();
        Ok(Self {
            id,
            recursion_desired: header[2] & FLAG_RECURSION_DESIRED != 0,
            edns: edns_size(message, end + 4),
            question,
            name,
            kind: RecordType(kind),
        })
    }

    /// The largest answer that the client takes over UDP.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        usize::from(self.edns.unwrap_or(0)).clamp(MIN_UDP, MAX_UDP)
    }

    /// An answer with these records.
    #[must_use]
    pub fn answer(&self, answer: &Answer) -> Vec<u8> {
        let mut out = self.header(answer.code, answer.authoritative);
        for (count, records) in [(6, &answer.records), (8, &answer.authority)] {
            out[count..count + 2].copy_from_slice(&(records.len() as u16).to_be_bytes());
            for record in records {
                record.encode(&mut out);
            }
        }
        if self.edns.is_some() {
            out[10..12].copy_from_slice(&1_u16.to_be_bytes());
            out.push(0);
            out.extend_from_slice(&TYPE_OPT.to_be_bytes());
            out.extend_from_slice(&(MAX_UDP as u16).to_be_bytes());
            out.extend_from_slice(&[0; 6]);
        }
        out
    }

    /// An answer that is a code alone.
    #[must_use]
    pub fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        self.answer(&Answer {
            code,
            ..Answer::default()
        })
    }

    /// The answer to give over UDP in place of one that is too long: the client asks again over TCP.
    #[must_use]
    pub fn truncated(&self) -> Vec<u8> {
        let mut out = self.header(ResponseCode::NoError, false);
        out[2] |= FLAG_TRUNCATED;
        out
    }

    /// Whether `message` answers this query: the same number and question.
    #[must_use]
    pub fn is_answered_by(&self, message: &[u8]) -> bool {
        let is_answer = message.get(2).is_some_and(|flags| flags & FLAG_ANSWER != 0);
        let same_question = message
            .get(HEADER..HEADER + self.question.len())
            .is_some_and(|question| question.eq_ignore_ascii_case(&self.question));
        is_answer && same_question && u16_at(message, 0) == Some(self.id)
    }

    fn header(&self, code: ResponseCode, authoritative: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.question.len() + 64);
        out.extend_from_slice(&self.id.to_be_bytes());
        let mut flags = FLAG_ANSWER;
        if self.recursion_desired {
            flags |= FLAG_RECURSION_DESIRED;
        }
        if authoritative {
            flags |= FLAG_AUTHORITATIVE;
        }
        out.push(flags);
        out.push(FLAG_RECURSION_AVAILABLE | code as u8);
        out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.question);
        out
    }
}

/// Whether the sender of an answer over UDP had more to say than fits.
#[must_use]
pub fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & FLAG_TRUNCATED != 0)
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ends.
    pub code: ResponseCode,
    /// Whether it comes from the tailnet itself.
    pub authoritative: bool,
    /// Records of the name asked for.
    pub records: Vec<Record>,
    /// Records about the zone.
    pub authority: Vec<Record>,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            code: ResponseCode::NoError,
            authoritative: false,
            records: Vec::new(),
            authority: Vec::new(),
        }
    }
}

/// A record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose record it is. `None`: of the name asked for.
    pub owner: Option<Name>,
    /// For how many seconds it may be remembered.
    pub ttl: u32,
    /// What it says.
    pub data: RecordData,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordData {
    /// An address, IPv4 (A) or IPv6 (AAAA).
    Address(IpAddr),
    /// The name of an address (PTR).
    Pointer(Name),
    /// The start of a zone (SOA): an absence may be remembered for so many seconds.
    Zone {
        /// The name server.
        server: Name,
        /// Seconds.
        negative_ttl: u32,
    },
}

impl Record {
    fn encode(&self, out: &mut Vec<u8>) {
        match &self.owner {
            None => out.extend_from_slice(&QUESTION_NAME),
            Some(owner) => owner.encode(out),
        }
        let kind = match &self.data {
            RecordData::Address(IpAddr::V4(_)) => RecordType::A,
            RecordData::Address(IpAddr::V6(_)) => RecordType::AAAA,
            RecordData::Pointer(_) => RecordType::PTR,
            RecordData::Zone { .. } => RecordType::SOA,
        };
        out.extend_from_slice(&kind.0.to_be_bytes());
        out.extend_from_slice(&CLASS_IN.to_be_bytes());
        out.extend_from_slice(&self.ttl.to_be_bytes());
        let length_at = out.len();
        out.extend_from_slice(&[0, 0]);
        match &self.data {
            RecordData::Address(IpAddr::V4(address)) => out.extend_from_slice(&address.octets()),
            RecordData::Address(IpAddr::V6(address)) => out.extend_from_slice(&address.octets()),
            RecordData::Pointer(name) => name.encode(out),
            RecordData::Zone { server, negative_ttl } => {
                server.encode(out);
                server.encode(out);
                // Serial, refresh, retry, expire: nobody transfers this zone.
                for number in [1, 3600, 600, 86_400, *negative_ttl] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
        }
        let length = (out.len() - length_at - 2) as u16;
        out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }
}

pub(super) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Reads a name without pointers, as questions have them. Returns where it ends.
fn read_name(message: &[u8], start: usize) -> Option<(Name, usize)> {
    let mut text = String::new();
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((Name(text), at));
        }
        if length > MAX_LABEL || at - start + length >= MAX_NAME {
            return None;
        }
        let label = message.get(at..at + length)?;
        // A dot inside of a label, or what is not text, is no name of ours and of no resolver that we ask.
        if label.contains(&b'.') || !label.is_ascii() {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        at += length;
    }
}

/// The datagram size in the OPT record of a query, which is its only further record in practice.
fn edns_size(message: &[u8], at: usize) -> Option<u16> {
    let additional = u16_at(message, 10)?;
    let is_first = u16_at(message, 6)? == 0 && u16_at(message, 8)? == 0 && additional > 0;
    let is_opt = *message.get(at)? == 0 && u16_at(message, at + 1)? == TYPE_OPT;
    if is_first && is_opt {
        u16_at(message, at + 3)
    } else {
        None
    }
}
