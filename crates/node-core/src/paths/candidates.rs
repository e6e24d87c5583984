//! The addresses at which a peer may be reached by UDP.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How many addresses of one peer are tried. The least promising goes first.
const MAX: usize = 24;
/// How long an address that the netmap does not have is kept after it was last mentioned or answered.
const LIFETIME: Duration = Duration::from_secs(600);

/// One address of a peer.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    address: SocketAddr,
    /// Whether the netmap has it.
    told: bool,
    /// When it was last mentioned by the peer, used by it, or answered.
    seen: Instant,
    /// When it was last pinged in a round or because the peer wished it.
    pinged: Option<Instant>,
    /// When it was last pinged because a ping came from it.
    returned: Option<Instant>,
    answered: Option<Instant>,
}

/// The addresses of one peer.
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<Candidate>);

impl Candidates {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get_mut(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.0.iter_mut().find(|candidate| candidate.address == address)
    }

    /// Notes that the peer answered at this address.
    pub(super) fn answered(&mut self, address: SocketAddr, now: Instant) {
        if let Some(candidate) = self.get_mut(address) {
            candidate.seen = now;
            candidate.answered = Some(now);
        }
    }

    /// Whether this address is known and was not pinged within `pause`; it counts as pinged now.
    pub(super) fn is_due(&mut self, address: SocketAddr, now: Instant, pause: Duration) -> bool {
        self.get_mut(address)
            .is_some_and(|candidate| take_due(&mut candidate.pinged, now, pause))
    }

    /// The same for pings in return of pings. One in a round may have been too early for the peer's router, which this one passes.
    pub(super) fn is_return_due(&mut self, address: SocketAddr, now: Instant, pause: Duration) -> bool {
        self.get_mut(address)
            .is_some_and(|candidate| take_due(&mut candidate.returned, now, pause))
    }

    /// All addresses that were not pinged within `pause`; they count as pinged now.
    pub(super) fn take_due(&mut self, now: Instant, pause: Duration) -> impl Iterator<Item = SocketAddr> {
        self.0.iter_mut().filter_map(move |candidate| {
            take_due(&mut candidate.pinged, now, pause).then_some(candidate.address)
        })
    }

    /// Takes the addresses of the netmap in place of those that it had before. Says whether one is new.
    pub(super) fn set_told(&mut self, addresses: &[SocketAddr], now: Instant) -> bool {
        self.0.retain(|candidate| {
            !candidate.told || candidate.answered.is_some() || addresses.contains(&candidate.address)
        });
        for candidate in &mut self.0 {
            candidate.told = false;
        }
        let mut news = false;
        for &address in addresses.iter().take(MAX) {
            news |= self.add(address, now);
            if let Some(candidate) = self.get_mut(address) {
                candidate.told = true;
            }
        }
        news
    }

    /// Takes an address that the peer mentioned or sent from. Says whether it is new.
    pub(super) fn add(&mut self, address: SocketAddr, now: Instant) -> bool {
        if let Some(known) = self.get_mut(address) {
            known.seen = now;
            return false;
        }
        if !is_usable(address) {
            return false;
        }
        self.0
            .retain(|candidate| candidate.told || now.duration_since(candidate.seen) < LIFETIME);
        if self.0.len() >= MAX
            && let Some(worst) = (0..self.0.len()).min_by_key(|&at| self.0[at].worth())
        {
            self.0.swap_remove(worst);
        }
        self.0.push(Candidate {
            address,
            told: false,
            seen: now,
            pinged: None,
            returned: None,
            answered: None,
        });
        true
    }
}

impl Candidate {
    /// What is kept longer is worth more: addresses that answered, then those last heard of.
    fn worth(&self) -> (Option<Instant>, Instant) {
        (self.answered, self.seen)
    }
}

/// Whether `last` is not within `pause`; it is `now` then.
fn take_due(last: &mut Option<Instant>, now: Instant, pause: Duration) -> bool {
    let due = last.is_none_or(|at| now.duration_since(at) >= pause);
    if due {
        *last = Some(now);
    }
    due
}

/// Whether an address can be one of a peer: a single receiver, with a port, without a scope that only its own link knows.
fn is_usable(address: SocketAddr) -> bool {
    let single = match address.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    };
    single && address.port() != 0
}

/// What counts when two paths are compared: the latency, shortened for addresses that are likely to be near or to stay.
fn cost(address: SocketAddr, latency: Duration) -> Duration {
    let near = match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => 50,
        IpAddr::V6(ip) if ip.is_loopback() => 50,
        IpAddr::V4(ip) if ip.is_link_local() => 30,
        IpAddr::V4(ip) if ip.is_private() => 20,
        IpAddr::V6(ip) if ip.is_unique_local() => 20,
        _ => 0,
    };
    let points = near + if address.is_ipv6() { 10 } else { 0 };
    latency * (100 - points) / 100
}

/// Whether the first path is better than the second by more than a hundredth.
pub(super) fn is_better(first: (SocketAddr, Duration), second: (SocketAddr, Duration)) -> bool {
    cost(first.0, first.1) < cost(second.0, second.1) * 99 / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_number_of_addresses_is_bounded_and_those_that_answered_stay() {
        let start = Instant::now();
        let mut all = Candidates::default();
        let good = address("192.0.2.1:1");
        assert!(all.add(good, start));
        all.answered(good, start);
        for port in 1..1000 {
            let now = start + Duration::from_millis(u64::from(port));
            assert!(all.add(SocketAddr::new(address("192.0.2.2:1").ip(), port), now));
        }
        assert_eq!(all.0.len(), MAX);
        assert!(all.get_mut(good).is_some());
        assert!(all.get_mut(address("192.0.2.2:999")).is_some());
        assert!(all.get_mut(address("192.0.2.2:1")).is_none());
    }

    #[test]
    fn the_netmap_replaces_what_it_told_before() {
        let now = Instant::now();
        let mut all = Candidates::default();
        let (old, new, heard) = (
            address("192.0.2.1:1"),
            address("192.0.2.2:1"),
            address("192.0.2.3:1"),
        );
        assert!(all.set_told(&[old], now));
        assert!(all.add(heard, now));
        assert!(!all.set_told(&[old], now));
        assert!(all.set_told(&[new], now));
        let mut left: Vec<_> = all.0.iter().map(|candidate| candidate.address).collect();
        left.sort();
        assert_eq!(left, [new, heard]);
    }

    #[test]
    fn addresses_that_cannot_be_a_peer_are_refused() {
        let mut all = Candidates::default();
        for text in [
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "192.0.2.1:0",
            "[::]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
        ] {
            assert!(!all.add(address(text), Instant::now()), "{text}");
        }
        assert!(all.is_empty());
    }

    #[test]
    fn near_addresses_win_unless_much_slower() {
        let (public, private) = (address("192.0.2.1:1"), address("10.0.0.1:1"));
        let ms = Duration::from_millis;
        assert!(is_better((private, ms(11)), (public, ms(10))));
        assert!(!is_better((private, ms(13)), (public, ms(10))));
        assert!(
            !is_better((public, ms(1000)), (public, ms(1005))),
            "less than a hundredth"
        );
        assert!(is_better((public, ms(900)), (public, ms(1000))));
    }
}
