//! What the answers of other resolvers say (RFC 1035): aliases and addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{HEADER, MAX_LABEL, MAX_NAME, Name, RecordType, u16_at};

/// Records of one answer that are looked at.
const MAX_RECORDS: usize = 64;
/// Pointers of one name that are followed.
const MAX_POINTERS: usize = 16;
const CNAME: RecordType = RecordType(5);

/// An answer, as far as it concerns addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The names by which the addresses were found: the one asked for, and what it is an alias of.
    pub names: Vec<Name>,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

impl Addresses {
    /// Reads an answer. `None` for what is none, or cannot be read.
    #[must_use]
    pub fn read(message: &[u8]) -> Option<Self> {
        let is_answer = message.get(2)? & 0x80 != 0 && message.get(3)? & 0x0f == 0;
        if !is_answer || u16_at(message, 4) != Some(1) {
            return None;
        }
        let (asked, end) = read_name(message, HEADER)?;
        let mut at = end + 4;
        let mut found = Self {
            names: vec![asked],
            addresses: Vec::new(),
        };
        let count = usize::from(u16_at(message, 6)?).min(MAX_RECORDS);
        for _ in 0..count {
            let (owner, end) = read_name(message, at)?;
            let kind = RecordType(u16_at(message, end)?);
            let length = usize::from(u16_at(message, end + 8)?);
            let data = message.get(end + 10..end + 10 + length)?;
            // Resolvers give aliases in their order; what belongs to another name is none of ours.
            if found.names.contains(&owner) {
                match kind {
                    CNAME => {
                        let (alias, _) = read_name(message, end + 10)?;
                        if !found.names.contains(&alias) {
                            found.names.push(alias);
                        }
                    }
                    RecordType::A => {
                        let octets: [u8; 4] = data.try_into().ok()?;
                        found.addresses.push(Ipv4Addr::from(octets).into());
                    }
                    RecordType::AAAA => {
                        let octets: [u8; 16] = data.try_into().ok()?;
                        found.addresses.push(Ipv6Addr::from(octets).into());
                    }
                    _ => {}
                }
            }
            at = end + 10 + length;
        }
        Some(found)
    }
}

/// Reads a name, with pointers to earlier parts of the message. Returns where it ends.
fn read_name(message: &[u8], start: usize) -> Option<(Name, usize)> {
    let mut text = String::new();
    let (mut at, mut end, mut pointers) = (start, None, 0);
    loop {
        let length = usize::from(*message.get(at)?);
        if length & 0xc0 == 0xc0 {
            let target = usize::from(u16_at(message, at)? & 0x3fff);
            end.get_or_insert(at + 2);
            pointers += 1;
            if pointers > MAX_POINTERS || target >= at {
                return None;
            }
            at = target;
            continue;
        }
        at += 1;
        if length == 0 {
            return Some((Name::parse(&text)?, end.unwrap_or(at)));
        }
        let label = message.get(at..at + length).filter(|_| length <= MAX_LABEL)?;
        if label.contains(&b'.') || !label.is_ascii() || text.len() + length >= MAX_NAME {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(*byte)));
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer to `www.example.com A`: an alias of `cdn.example.net`, which has two addresses, and one of a stranger.
    fn answer() -> Vec<u8> {
        let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, 4, 0, 0, 0, 0];
        message.extend(b"\x03www\x07example\x03com\0\0\x01\0\x01");
        let alias_at = message.len() + 12;
        message.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x11\x03cdn\x07example\x03net\0");
        let pointer = [0xc0, alias_at as u8];
        for last in [1, 2] {
            message.extend(pointer);
            message.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, last]);
        }
        message.extend(b"\x05other\0\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01");
        message
    }

    #[test]
    fn addresses_are_found_by_aliases_and_strangers_are_left_out() {
        let found = Addresses::read(&answer()).unwrap();
        let names: Vec<_> = found.names.iter().map(Name::as_str).collect();
        assert_eq!(names, ["www.example.com", "cdn.example.net"]);
        let expected: [IpAddr; 2] = [1, 2].map(|last| [198, 51, 100, last].into());
        assert_eq!(found.addresses, expected);
    }

    #[test]
    fn a_name_that_points_at_itself_is_none() {
        let mut message = answer();
        message[33] = 0xc0;
        message[34] = 33;
        assert_eq!(Addresses::read(&message), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(at in 0usize..100, byte: u8, length in 0usize..130, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut message = answer();
            let at = at.min(message.len() - 1);
            message[at] = byte;
            message.truncate(length);
            let _ = Addresses::read(&message);
            let _ = Addresses::read(&bytes);
        }
    }
}
