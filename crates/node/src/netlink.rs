//! The few messages of netlink (RFC 3549, Linux `netlink(7)`) by which devices, routes and rules of nftables are set up, each acknowledged.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use tailwharf_node_core::dns::SERVICE_V4;

/// Bytes of a message header.
const HEADER: usize = 16;
/// Room for an answer.
const ANSWER: usize = 4096;
/// Room for answers to many requests, each of which may quote its request.
const ANSWERS: usize = 64 * 1024;

// Linux `include/uapi/linux/fib_rules.h`.
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_UNREACHABLE: u8 = 7;

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }
}

/// Whether something is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Add,
    Remove,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Remove => "remove",
        })
    }
}

/// Where packets for a destination go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// To an interface.
    Link(Link),
    /// To this machine itself, through an interface.
    Here(Link),
    /// Nowhere: the next table decides.
    Throw,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Looks into a table.
    Table(u32),
    /// Refuses.
    Unreachable,
}

/// A rule of policy routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) priority: u32,
    /// Value and mask that the mark of a packet must have.
    pub(crate) mark: Option<(u32, u32)>,
    pub(crate) action: Action,
}

/// The kernel did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// There is no interface of this name.
    #[error("there is no network interface {0}")]
    NoLink(String),
    /// Netlink itself does not work.
    #[error("cannot talk to the kernel's routing socket")]
    Socket(#[source] io::Error),
    /// The request was refused.
    #[error("the kernel refused to {what}")]
    Refused {
        what: String,
        #[source]
        source: io::Error,
    },
}

/// A network interface, by its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link(u32);

impl Link {
    pub(crate) fn by_name(name: &str) -> Result<Self, NetlinkError> {
        let number = nix::net::if_::if_nametoindex(name);
        number
            .map(Self)
            .map_err(|_| NetlinkError::NoLink(name.to_owned()))
    }
}

/// A socket to the kernel's routing tables.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Speaks about devices, addresses, routes.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Self::speaking(SockProtocol::NetlinkRoute)
    }

    /// Speaks about rules of nftables.
    pub(crate) fn open_netfilter() -> Result<Self, NetlinkError> {
        Self::speaking(SockProtocol::NetlinkNetFilter)
    }

    fn speaking(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Netlink, kind, flags, protocol);
        Ok(Self {
            socket: socket.map_err(|error| NetlinkError::Socket(error.into()))?,
            sequence: 0,
        })
    }

    /// Sets MTU and queue length of an interface, and sets it up.
    pub(crate) fn set_up(&mut self, link: Link, mtu: u32, queue: u32) -> Result<(), NetlinkError> {
        let mut request = Request::link(link, libc::IFF_UP as u32);
        request.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        request.attribute(libc::IFLA_TXQLEN, &queue.to_ne_bytes());
        self.ask(request, || "set the interface up".to_owned())
    }

    /// Sets the length of the largest packet that stands for several.
    pub(crate) fn set_largest(&mut self, link: Link, bytes: u32) -> Result<(), NetlinkError> {
        /// Since Linux 6.3 that of IPv4 alone.
        const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
        let mut request = Request::link(link, 0);
        request.attribute(libc::IFLA_GSO_MAX_SIZE, &bytes.to_ne_bytes());
        request.attribute(IFLA_GSO_IPV4_MAX_SIZE, &bytes.to_ne_bytes());
        self.ask(request, || "limit the length of large packets".to_owned())
    }

    /// Gives an interface an address of its own.
    pub(crate) fn add_address(&mut self, link: Link, address: IpAddr) -> Result<(), NetlinkError> {
        let create = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        let request = Request::address(libc::RTM_NEWADDR, create, link, address);
        self.ask(request, || format!("add the address {address}"))
    }

    /// Takes an address from an interface.
    pub(crate) fn remove_address(&mut self, link: Link, address: IpAddr) -> Result<(), NetlinkError> {
        let request = Request::address(libc::RTM_DELADDR, 0, link, address);
        self.ask(request, || format!("remove the address {address}"))
    }

    /// Changes a route of a table.
    pub(crate) fn route(&mut self, act: Act, table: u32, net: &IpNet, way: Way) -> Result<(), NetlinkError> {
        let (scope, kind) = match (way, net) {
            (Way::Link(_), IpNet::V4(_)) => (libc::RT_SCOPE_LINK, libc::RTN_UNICAST),
            (Way::Link(_), IpNet::V6(_)) => (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST),
            (Way::Here(_), IpNet::V4(_)) => (libc::RT_SCOPE_HOST, libc::RTN_LOCAL),
            (Way::Here(_), IpNet::V6(_)) => (libc::RT_SCOPE_UNIVERSE, libc::RTN_LOCAL),
            (Way::Throw, _) => (libc::RT_SCOPE_UNIVERSE, libc::RTN_THROW),
        };
        let mut request = match act {
            Act::Add => Request::new(
                libc::RTM_NEWROUTE,
                (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16,
            ),
            Act::Remove => Request::new(libc::RTM_DELROUTE, 0),
        };
        // `struct rtmsg`; a table with a large number stands in an attribute.
        let family = family(net.addr());
        request.bytes.extend([
            family,
            net.prefix_len(),
            0,
            0,
            0,
            libc::RTPROT_STATIC,
            scope,
            kind,
        ]);
        request.bytes.extend(0u32.to_ne_bytes());
        request.attribute(libc::RTA_TABLE, &table.to_ne_bytes());
        if net.prefix_len() > 0 {
            request.attribute(libc::RTA_DST, &octets(net.network()));
        }
        if let Way::Link(link) | Way::Here(link) = way {
            request.attribute(libc::RTA_OIF, &link.0.to_ne_bytes());
        }
        self.ask(request, || format!("{act} a route to {net}"))
    }

    /// Changes a rule of policy routing.
    pub(crate) fn rule(&mut self, act: Act, family: Family, rule: &Rule) -> Result<(), NetlinkError> {
        let mut request = match act {
            Act::Add => Request::new(libc::RTM_NEWRULE, libc::NLM_F_CREATE as u16),
            Act::Remove => Request::new(libc::RTM_DELRULE, 0),
        };
        let action = match rule.action {
            Action::Table(_) => FR_ACT_TO_TBL,
            Action::Unreachable => FR_ACT_UNREACHABLE,
        };
        // `struct fib_rule_hdr`.
        request.bytes.extend([family.code(), 0, 0, 0, 0, 0, 0, action]);
        request.bytes.extend(0u32.to_ne_bytes());
        request.attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes());
        if let Some((value, mask)) = rule.mark {
            request.attribute(FRA_FWMARK, &value.to_ne_bytes());
            request.attribute(FRA_FWMASK, &mask.to_ne_bytes());
        }
        if let Action::Table(table) = rule.action {
            request.attribute(FRA_TABLE, &table.to_ne_bytes());
        }
        self.ask(request, || format!("{act} the rule {}", rule.priority))
    }

    /// Sends a request and waits for its acknowledgement, which the kernel gives at once.
    fn ask(&mut self, request: Request, what: impl FnOnce() -> String) -> Result<(), NetlinkError> {
        self.sequence += 1;
        let message = request.finish(self.sequence);
        let answer = self
            .exchange(&message)
            .map_err(|error| NetlinkError::Socket(error.into()))?;
        match answer {
            0 => Ok(()),
            code => Err(NetlinkError::Refused {
                what: what(),
                source: io::Error::from_raw_os_error(-code),
            }),
        }
    }

    /// Sends requests as one message, of which the kernel carries out all or none, and waits for what it says of each that it acknowledges.
    pub(crate) fn ask_all(
        &mut self,
        requests: Vec<Request>,
        what: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        let first = self.sequence + 1;
        let mut message = Vec::new();
        let mut waiting = 0;
        for request in requests {
            self.sequence += 1;
            waiting += usize::from(request.is_acknowledged());
            message.extend(request.finish(self.sequence));
        }
        let last = self.sequence;
        let fd = self.socket.as_raw_fd();
        let told = |error: Errno| NetlinkError::Socket(error.into());
        send(fd, &message, MsgFlags::empty()).map_err(told)?;
        let mut answer = vec![0; ANSWERS];
        while waiting > 0 {
            let length = recv(fd, &mut answer, MsgFlags::empty()).map_err(told)?;
            let mut rest = answer.get(..length).unwrap_or_default();
            while let Some((sequence, code, after)) = next_acknowledgement(rest) {
                rest = after;
                if !(first..=last).contains(&sequence) {
                    continue;
                }
                if code != 0 {
                    return Err(NetlinkError::Refused {
                        what: what(),
                        source: io::Error::from_raw_os_error(-code),
                    });
                }
                waiting -= 1;
            }
        }
        Ok(())
    }

    /// Gives the code of the acknowledgement: zero, or an error number below it.
    fn exchange(&self, message: &[u8]) -> nix::Result<i32> {
        let fd = self.socket.as_raw_fd();
        send(fd, message, MsgFlags::empty())?;
        let mut answer = [0; ANSWER];
        loop {
            let length = recv(fd, &mut answer, MsgFlags::empty())?;
            let answer = answer.get(..length).ok_or(Errno::EBADMSG)?;
            let kind = answer.get(4..6).ok_or(Errno::EBADMSG)?;
            let sequence = answer.get(8..12).ok_or(Errno::EBADMSG)?;
            let is_ours = sequence == self.sequence.to_ne_bytes();
            if is_ours && kind == (libc::NLMSG_ERROR as u16).to_ne_bytes() {
                let code = answer
                    .get(HEADER..)
                    .and_then(|body| body.first_chunk())
                    .ok_or(Errno::EBADMSG)?;
                return Ok(i32::from_ne_bytes(*code));
            }
        }
    }
}

/// Number and code of the next acknowledgement in an answer, and what comes after it.
fn next_acknowledgement(mut answer: &[u8]) -> Option<(u32, i32, &[u8])> {
    loop {
        let length = u32::from_ne_bytes(*answer.first_chunk()?) as usize;
        let message = answer.get(..length).filter(|message| message.len() >= HEADER)?;
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes(*message[4..].first_chunk()?);
        if kind != libc::NLMSG_ERROR as u16 {
            continue;
        }
        let sequence = u32::from_ne_bytes(*message[8..].first_chunk()?);
        let code = i32::from_ne_bytes(*message[HEADER..].first_chunk()?);
        return Some((sequence, code, answer));
    }
}

/// A request as it is written.
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    /// One that nothing is said about.
    pub(crate) fn unacknowledged(mut self) -> Self {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & !(libc::NLM_F_ACK as u16);
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    fn is_acknowledged(&self) -> bool {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & libc::NLM_F_ACK as u16 != 0
    }

    /// Adds bytes as they are.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// About an interface, of which these flags are to be set (`struct ifinfomsg`).
    fn link(link: Link, flags: u32) -> Self {
        let mut request = Self::new(libc::RTM_NEWLINK, 0);
        request.bytes.extend([0; 4]);
        for field in [link.0, flags, flags] {
            request.bytes.extend(field.to_ne_bytes());
        }
        request
    }

    /// About an address (`struct ifaddrmsg`), which has no network of its own.
    fn address(kind: u16, flags: u16, link: Link, address: IpAddr) -> Self {
        let mut request = Self::new(kind, flags);
        let bits = if address.is_ipv4() { 32 } else { 128 };
        // Nobody else on this link can have it: there is nothing to wait for.
        let no_detection = if address.is_ipv4() {
            0
        } else {
            libc::IFA_F_NODAD as u8
        };
        // Packets for others must not have the resolver's address as their source.
        let scope = if address == IpAddr::V4(SERVICE_V4) {
            libc::RT_SCOPE_HOST
        } else {
            libc::RT_SCOPE_UNIVERSE
        };
        request.bytes.extend([family(address), bits, no_detection, scope]);
        request.bytes.extend(link.0.to_ne_bytes());
        request.attribute(libc::IFA_LOCAL, &octets(address));
        request.attribute(libc::IFA_ADDRESS, &octets(address));
        request
    }

    /// Adds an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(attribute(kind, value));
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// An attribute (`struct rtattr`), whose successor begins at a multiple of four.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = Vec::with_capacity(usize::from(length).next_multiple_of(4));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_as_the_kernel_reads_it() {
        let request = Request::address(libc::RTM_NEWADDR, 0x500, Link(3), [100, 64, 0, 1].into());
        let expected: Vec<u8> = [
            &40u32.to_ne_bytes()[..],
            &20u16.to_ne_bytes(),
            &0x505u16.to_ne_bytes(),
            &7u32.to_ne_bytes(),
            &[0; 4],
            &[2, 32, 0, 0],
            &3u32.to_ne_bytes(),
            &8u16.to_ne_bytes(),
            &2u16.to_ne_bytes(),
            &[100, 64, 0, 1],
            &8u16.to_ne_bytes(),
            &1u16.to_ne_bytes(),
            &[100, 64, 0, 1],
        ]
        .concat();
        assert_eq!(request.finish(7), expected);
    }

    #[test]
    fn what_does_not_exist_is_refused_in_words() {
        let mut netlink = Netlink::open().unwrap();
        let error = netlink
            .add_address(Link(u32::MAX >> 1), [100, 64, 0, 1].into())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel refused to add the address 100.64.0.1"
        );
        assert!(matches!(
            Link::by_name("no-such-link"),
            Err(NetlinkError::NoLink(_))
        ));
    }
}
