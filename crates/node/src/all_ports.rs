//! All ports of a machine at one socket. Setting it up takes the right to change the network (`NET_ADMIN`), using it takes none.
//!
//! ```text
//! packet to port 5432 ─nftables─► 198.18.21.56 port 9003 ─a route that says "here"─► the socket, whose own address tells the port
//! ```
//!
//! The last two bytes of the new destination are the port that the packet had. All of that range belongs to this machine, so that answers leave from there
//! and get back the address and port that they come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::libc;

use crate::netlink::{Act, Link, Netlink, NetlinkError, Request, Way, attribute};

/// The range of IPv4, one of those that are for nobody's network.
const V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 16);
/// The range of IPv6.
const V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd74, 0x6877, 0x6172, 0x66, 0, 0, 0, 0), 112);
/// The table of nftables that is ours.
const TABLE: &[u8] = b"tailwharf_all_ports\0";
/// Marks attributes that are made of attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;
const CHAIN: &[u8] = b"incoming\0";
/// The routing table of the addresses of this machine.
const LOCAL_TABLE: u32 = 255;

/// What is led where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllPorts {
    /// The port of the socket.
    pub to: u16,
    /// TCP port that stays as it is.
    pub keep_tcp: u16,
    /// UDP port that stays as it is.
    pub keep_udp: u16,
}

/// Ports could not be led to the socket.
#[derive(Debug, thiserror::Error)]
#[error(
    "the network of the pod cannot be set up; the first container needs the capability NET_ADMIN, and the kernel nftables with NAT"
)]
pub struct AllPortsError(#[source] NetlinkError);

/// The port that a packet had which came to this address of the machine.
#[must_use]
pub fn port_at(address: IpAddr) -> Option<u16> {
    match address.to_canonical() {
        IpAddr::V4(v4) if V4.contains(&v4) => {
            let [_, _, high, low] = v4.octets();
            Some(u16::from_be_bytes([high, low]))
        }
        IpAddr::V6(v6) if V6.contains(&v6) => v6.segments().last().copied(),
        _ => None,
    }
}

/// The address of the machine at which packets for a port arrive, of the family of `like`.
#[must_use]
pub fn address_of(port: u16, like: IpAddr) -> IpAddr {
    let [high, low] = port.to_be_bytes();
    match like.to_canonical() {
        IpAddr::V4(_) => Ipv4Addr::new(198, 18, high, low).into(),
        IpAddr::V6(_) => {
            let mut segments = V6.network().segments();
            segments[7] = port;
            Ipv6Addr::from(segments).into()
        }
    }
}

impl AllPorts {
    /// Leads all ports of this machine to the socket, for IPv6 as far as the kernel has it. What was set up before is replaced.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&self) -> Result<(), AllPortsError> {
        self.set_up_family(V4.into()).map_err(AllPortsError)?;
        if let Err(error) = self.set_up_family(V6.into()) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "only ports of IPv4 are led to the proxy"
            );
        }
        Ok(())
    }

    fn set_up_family(&self, range: IpNet) -> Result<(), NetlinkError> {
        let lo = Link::by_name("lo")?;
        Netlink::open()?.route(Act::Add, LOCAL_TABLE, &range, Way::Here(lo))?;
        let what = || "lead all ports to the proxy".to_owned();
        Netlink::open_netfilter()?.ask_all(self.requests(&range), what)
    }

    /// What makes the table anew.
    fn requests(&self, range: &IpNet) -> Vec<Request> {
        let family = match range {
            IpNet::V4(_) => libc::NFPROTO_IPV4,
            IpNet::V6(_) => libc::NFPROTO_IPV6,
        } as u8;
        let named = |kind: i32, flags: i32, more: &[u8]| {
            let mut request = request(kind, flags, family);
            request.attribute(1, TABLE);
            request.extend(more);
            request
        };
        let mut requests = vec![batch(libc::NFNL_MSG_BATCH_BEGIN)];
        for (kind, flags) in [
            (libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE),
            (libc::NFT_MSG_DELTABLE, 0),
            (libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE),
        ] {
            requests.push(named(kind, flags, &[]));
        }
        requests.push(named(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, &chain()));
        for (protocol, keep) in [
            (libc::IPPROTO_TCP, self.keep_tcp),
            (libc::IPPROTO_UDP, self.keep_udp),
        ] {
            let expressions = self.expressions(range, protocol as u8, keep);
            let rule = [attribute(2, CHAIN), nested(4, &expressions.concat())].concat();
            let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
            requests.push(named(libc::NFT_MSG_NEWRULE, flags, &rule));
        }
        requests.push(batch(libc::NFNL_MSG_BATCH_END));
        requests
    }

    /// One rule: packets of a protocol that come from elsewhere, for another port than `keep`, go to the address that tells their port.
    fn expressions(&self, range: &IpNet, protocol: u8, keep: u16) -> Vec<Vec<u8>> {
        const LO: u32 = 1;
        /// Registers of four bytes: the first of the address, and one behind it.
        const ADDRESS: u32 = 8;
        const PORT: u32 = 12;
        let prefix: Vec<u8> = match range.network() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let words: Vec<&[u8]> = prefix.chunks(4).collect();
        let mut all = vec![
            meta(libc::NFT_META_IIF, PORT),
            compare(libc::NFT_CMP_NEQ, PORT, &LO.to_ne_bytes()),
            meta(libc::NFT_META_L4PROTO, PORT),
            compare(libc::NFT_CMP_EQ, PORT, &[protocol]),
            // The two ports are the first four bytes of both protocols.
            transport(2, 2, PORT),
            compare(libc::NFT_CMP_NEQ, PORT, &keep.to_be_bytes()),
        ];
        let last = ADDRESS + words.len() as u32 - 1;
        for (register, word) in (ADDRESS..=last).zip(&words) {
            // The port is the end of the address.
            if register == last {
                all.push(transport(0, 4, register));
                all.push(replace_source_port(register, word));
            } else {
                all.push(immediate(register, word));
            }
        }
        all.push(immediate(PORT, &self.to.to_be_bytes()));
        let family = if words.len() == 1 {
            libc::NFPROTO_IPV4
        } else {
            libc::NFPROTO_IPV6
        };
        all.push(expression(
            "nat",
            &[
                number(1, libc::NFT_NAT_DNAT as u32),
                number(2, family as u32),
                number(3, ADDRESS),
                number(5, PORT),
            ],
        ));
        all
    }
}

// The words of nftables, as in Linux `include/uapi/linux/netfilter/nf_tables.h`.

/// The frame of what is carried out together.
fn batch(kind: i32) -> Request {
    let mut request = Request::new(kind as u16, 0).unacknowledged();
    let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    request.extend(&[libc::AF_UNSPEC as u8, 0]);
    request.extend(&subsystem);
    request
}

fn request(kind: i32, flags: i32, family: u8) -> Request {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    let mut request = Request::new(kind, flags as u16);
    request.extend(&[family, 0, 0, 0]);
    request
}

/// What the table sees: packets that arrive, where their destination may be changed.
fn chain() -> Vec<u8> {
    /// `NF_IP_PRI_NAT_DST`.
    const PRIORITY: i32 = -100;
    let hook = [
        number(1, libc::NF_INET_PRE_ROUTING as u32),
        attribute(2, &PRIORITY.to_be_bytes()),
    ];
    [
        attribute(3, CHAIN),
        nested(4, &hook.concat()),
        attribute(7, b"nat\0"),
    ]
    .concat()
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn nested(kind: u16, content: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, content)
}

fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let name = [name.as_bytes(), &[0]].concat();
    let content = [attribute(1, &name), nested(2, &attributes.concat())].concat();
    nested(1, &content)
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    nested(kind, &attribute(1, bytes))
}

fn meta(key: i32, register: u32) -> Vec<u8> {
    expression("meta", &[number(1, register), number(2, key as u32)])
}

fn compare(operator: i32, register: u32, with: &[u8]) -> Vec<u8> {
    expression(
        "cmp",
        &[number(1, register), number(2, operator as u32), value(3, with)],
    )
}

/// Takes bytes of the transport header.
fn transport(offset: u32, length: u32, register: u32) -> Vec<u8> {
    let base = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;
    expression(
        "payload",
        &[
            number(1, register),
            number(2, base),
            number(3, offset),
            number(4, length),
        ],
    )
}

fn immediate(register: u32, bytes: &[u8]) -> Vec<u8> {
    expression("immediate", &[number(1, register), value(2, bytes)])
}

/// Of the two ports of a packet the second is kept, and the first becomes the first two bytes of `word`.
fn replace_source_port(register: u32, word: &[u8]) -> Vec<u8> {
    expression(
        "bitwise",
        &[
            number(1, register),
            number(2, register),
            number(3, 4),
            value(4, &[0, 0, 0xff, 0xff]),
            value(5, word),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_tell_ports() {
        for port in [0, 1, 80, 255, 256, 5432, u16::MAX] {
            for like in ["10.0.0.1", "fd00::1"] {
                let address = address_of(port, like.parse().unwrap());
                assert_eq!(address.is_ipv4(), like.contains('.'));
                assert_eq!(port_at(address), Some(port));
            }
        }
        let mapped = IpAddr::V6(Ipv4Addr::new(198, 18, 0, 80).to_ipv6_mapped());
        assert_eq!(port_at(mapped), Some(80));
    }

    #[test]
    fn other_addresses_tell_none() {
        for address in ["10.244.0.7", "198.19.0.80", "::1", "fd74:6877:6172:66:1::"] {
            assert_eq!(port_at(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn attributes_are_nested_and_padded() {
        let bytes = compare(libc::NFT_CMP_EQ, 12, &[17]);
        let expected: [&[u8]; 7] = [
            // list element, name
            &[44, 0, 1, 0x80, 8, 0, 1, 0],
            b"cmp\0",
            &[32, 0, 2, 0x80],
            &[8, 0, 1, 0, 0, 0, 0, 12],
            &[8, 0, 2, 0, 0, 0, 0, 0],
            &[12, 0, 3, 0x80],
            &[5, 0, 1, 0, 17, 0, 0, 0],
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(bytes, expected.concat());
        }
    }
}
