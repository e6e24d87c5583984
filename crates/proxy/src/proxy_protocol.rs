//! The header of the PROXY protocol, version 2, with which a connection to a backend begins on request: the client's address, and who it is.
//!
//! Format: <https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>, sections 2.2 and 2.2.8.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, a connection on behalf of another.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Login name of the user; empty for a tagged device.
const TLV_USER: u8 = 0xE0;
/// Full name of the client's device.
const TLV_DEVICE: u8 = 0xE1;
/// Tags of the client's device, with commas between.
const TLV_TAGS: u8 = 0xE2;
/// Longest value of a field, in bytes. The control server gives shorter ones.
const MAX_VALUE: usize = 1024;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Login name of the user; empty for a tagged device.
    pub user: String,
    /// Full name of the device.
    pub device: String,
    /// Tags of the device.
    pub tags: Vec<String>,
}

/// The header for a connection from `client` to `own` that belongs to `caller`.
pub(crate) fn header(client: SocketAddr, own: SocketAddr, caller: Option<&Caller>) -> Vec<u8> {
    let mut rest = Vec::with_capacity(128);
    let family = match (client.ip().to_canonical(), own.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(own)) => {
            rest.extend(client.octets());
            rest.extend(own.octets());
            TCP_OVER_IPV4
        }
        (client, own) => {
            rest.extend(as_ipv6(client));
            rest.extend(as_ipv6(own));
            TCP_OVER_IPV6
        }
    };
    rest.extend(client.port().to_be_bytes());
    rest.extend(own.port().to_be_bytes());
    if let Some(Caller { user, device, tags }) = caller {
        field(&mut rest, TLV_USER, user);
        field(&mut rest, TLV_DEVICE, device);
        field(&mut rest, TLV_TAGS, &tags.join(","));
    }
    let mut header = Vec::with_capacity(16 + rest.len());
    header.extend(SIGNATURE);
    header.extend([PROXY, family]);
    // Three bounded fields and two addresses: far below the limit of the length.
    header.extend(u16::try_from(rest.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.append(&mut rest);
    header
}

fn as_ipv6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn field(out: &mut Vec<u8>, kind: u8, value: &str) {
    let value = value.as_bytes();
    let value = &value[..value.len().min(MAX_VALUE)];
    out.push(kind);
    out.extend(u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_addresses_and_the_caller() {
        let caller = Caller {
            user: "alice@example.com".to_owned(),
            device: "laptop.tail.ts.net".to_owned(),
            tags: Vec::new(),
        };
        let header = header(
            "100.64.0.2:51000".parse().unwrap(),
            "100.64.0.1:80".parse().unwrap(),
            Some(&caller),
        );
        let fields = 3 * 3 + caller.user.len() + caller.device.len();
        assert_eq!(&header[..12], SIGNATURE);
        assert_eq!(header[12..14], [0x21, 0x11]);
        assert_eq!(
            usize::from(u16::from_be_bytes([header[14], header[15]])),
            12 + fields
        );
        assert_eq!(header[16..28], [100, 64, 0, 2, 100, 64, 0, 1, 0xC7, 0x38, 0, 80]);
        assert_eq!(header[28..31], [TLV_USER, 0, 17]);
        assert_eq!(&header[31..48], b"alice@example.com");
        assert_eq!(header.len(), 28 + fields);
    }

    #[test]
    fn mixed_families_are_told_as_ipv6() {
        let header = header(
            "[fd7a:115c:a1e0::2]:1".parse().unwrap(),
            "100.64.0.1:80".parse().unwrap(),
            None,
        );
        assert_eq!((header[13], header.len()), (TCP_OVER_IPV6, 16 + 36));
        assert_eq!(header[42..48], [0xff, 0xff, 100, 64, 0, 1]);
    }
}
