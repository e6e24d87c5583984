//! Address ranges, and sets of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, IpSubnets, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

/// All addresses from the first to the last, both included and of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct IpRange {
    first: IpAddr,
    last: IpAddr,
}

impl IpRange {
    /// Whether the address lies in the range.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        // Addresses of the older family sort before those of the newer one, so a range never spans both.
        self.first <= ip && ip <= self.last
    }

    /// Whether the ranges share an address.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether these are all addresses of a family.
    pub(crate) fn is_everything(&self) -> bool {
        self.prefix().is_some_and(|prefix| prefix.prefix_len() == 0)
    }

    /// The fewest prefixes that together are this range.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let subnets = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some(IpSubnets::V4(Ipv4Subnets::new(first, last, 0))),
            (IpAddr::V6(first), IpAddr::V6(last)) => Some(IpSubnets::V6(Ipv6Subnets::new(first, last, 0))),
            _ => None,
        };
        subnets.into_iter().flatten()
    }

    /// The prefix that is exactly this range.
    pub(crate) fn prefix(&self) -> Option<IpNet> {
        let differing = match (self.first, self.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => 32 - (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => 128 - (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return None,
        };
        let width = if self.first.is_ipv4() { 32 } else { 128 };
        let prefix = IpNet::new(self.first, u8::try_from(width - differing).ok()?).ok()?;
        (Self::from(prefix) == *self).then_some(prefix)
    }
}

impl From<IpAddr> for IpRange {
    fn from(ip: IpAddr) -> Self {
        Self { first: ip, last: ip }
    }
}

impl From<IpNet> for IpRange {
    fn from(prefix: IpNet) -> Self {
        Self {
            first: prefix.network(),
            last: prefix.broadcast(),
        }
    }
}

impl FromStr for IpRange {
    type Err = ();

    /// Reads an address, a prefix or `first-last`.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::from(ip));
        }
        if let Ok(prefix) = text.parse::<IpNet>() {
            return Ok(Self::from(prefix));
        }
        let (first, last) = text.split_once('-').ok_or(())?;
        let (first, last) = (
            first.parse::<IpAddr>().map_err(drop)?,
            last.parse::<IpAddr>().map_err(drop)?,
        );
        if first.is_ipv4() == last.is_ipv4() && first <= last {
            Ok(Self { first, last })
        } else {
            Err(())
        }
    }
}

impl fmt::Display for IpRange {
    /// The shortest text that packet filters understand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        match self.prefix() {
            Some(prefix) => write!(f, "{prefix}"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// A set of addresses: ranges in order, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct IpSet(Vec<IpRange>);

impl IpSet {
    /// Whether the address is in the set.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let after = self.0.partition_point(|range| range.first <= ip);
        after > 0 && self.0[after - 1].contains(ip)
    }

    /// All addresses of both families.
    pub(crate) fn everything() -> Self {
        [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
            .map(IpRange::from)
            .into_iter()
            .collect()
    }

    /// The ranges, in order.
    pub(crate) fn ranges(&self) -> &[IpRange] {
        &self.0
    }

    /// The first address.
    pub(crate) fn first(&self) -> Option<IpAddr> {
        self.0.first().map(|range| range.first)
    }

    /// Whether the set and the range share an address.
    pub(crate) fn overlaps(&self, range: &IpRange) -> bool {
        let after = self.0.partition_point(|own| own.first <= range.last);
        after > 0 && self.0[after - 1].overlaps(range)
    }

    /// Whether all addresses of a family are in the set.
    pub(crate) fn has_everything(&self) -> bool {
        self.0.iter().any(IpRange::is_everything)
    }

    /// The addresses of this set that are not in the other.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut kept = Vec::with_capacity(self.0.len());
        let mut removed = other.0.iter().peekable();
        for range in &self.0 {
            let mut first = Some(range.first);
            while let Some(hole) = removed.peek() {
                let Some(start) = first.filter(|start| hole.first <= range.last && *start <= range.last)
                else {
                    break;
                };
                if hole.last >= start {
                    if let Some(last) = predecessor(hole.first).filter(|last| start <= *last) {
                        kept.push(IpRange { first: start, last });
                    }
                    first = successor(hole.last).filter(|next| *next <= range.last);
                }
                if hole.last > range.last {
                    break;
                }
                removed.next();
            }
            if let Some(first) = first {
                kept.push(IpRange {
                    first,
                    last: range.last,
                });
            }
        }
        Self(kept)
    }

    /// The ranges as texts of packet filters.
    pub(crate) fn to_texts(&self) -> Vec<String> {
        self.0.iter().map(IpRange::to_string).collect()
    }
}

impl From<IpRange> for IpSet {
    fn from(range: IpRange) -> Self {
        Self(vec![range])
    }
}

impl fmt::Display for IpSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_texts().join(","))
    }
}

impl FromIterator<IpRange> for IpSet {
    fn from_iter<I: IntoIterator<Item = IpRange>>(ranges: I) -> Self {
        let mut ranges: Vec<IpRange> = ranges.into_iter().collect();
        ranges.sort_unstable();
        let mut merged: Vec<IpRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(open) if range.first <= open.last || successor(open.last) == Some(range.first) => {
                    open.last = open.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

/// The next address of the same family.
fn successor(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => ip
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(ip) => ip
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// The address before this one of the same family.
fn predecessor(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => ip
            .to_bits()
            .checked_sub(1)
            .map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(ip) => ip
            .to_bits()
            .checked_sub(1)
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{IpRange, IpSet};

    fn set(texts: &[&str]) -> IpSet {
        texts
            .iter()
            .map(|text| text.parse::<IpRange>().unwrap())
            .collect()
    }

    #[test]
    fn neighbours_merge_and_families_stay_apart() {
        let merged = set(&[
            "10.0.0.2",
            "10.0.0.1",
            "10.0.0.3",
            "fd7a::/64",
            "10.0.0.0",
            "fd7a::1",
            "255.255.255.255",
            "::",
        ]);
        assert_eq!(
            merged.to_texts(),
            ["10.0.0.0/30", "255.255.255.255", "::", "fd7a::/64"]
        );
    }

    #[test]
    fn what_is_taken_away_is_gone_and_the_rest_stays() {
        let rest = |from: &[&str], away: &[&str]| set(from).without(&set(away)).to_texts();
        assert_eq!(
            rest(&["10.0.0.0/24"], &["10.0.0.5", "10.0.0.7-10.0.0.9"]),
            ["10.0.0.0-10.0.0.4", "10.0.0.6", "10.0.0.10-10.0.0.255"]
        );
        assert_eq!(
            rest(&["10.0.0.0/30", "10.0.1.0/30"], &["10.0.0.2-10.0.1.1"]),
            ["10.0.0.0/31", "10.0.1.2/31"]
        );
        assert_eq!(rest(&["0.0.0.0/0", "::/0"], &["0.0.0.0/0"]), ["::/0"]);
        assert_eq!(
            rest(&["0.0.0.0/0"], &["255.255.255.255", "0.0.0.0"]),
            ["0.0.0.1-255.255.255.254"]
        );
        assert_eq!(rest(&["10.0.0.1"], &["10.0.0.0/8"]), Vec::<String>::new());
        assert_eq!(
            rest(&["fd7a::/126"], &["10.0.0.0/8", "fd7a::3"]),
            ["fd7a::-fd7a::2"]
        );
    }

    #[test]
    fn membership_and_overlap() {
        let ips = set(&["10.0.0.5-10.0.0.9", "10.0.1.0/24"]);
        assert!(ips.contains("10.0.0.9".parse().unwrap()));
        assert!(!ips.contains("10.0.0.10".parse().unwrap()));
        assert!(!ips.contains("10.0.0.4".parse().unwrap()));
        let range: IpRange = "10.0.0.5-10.0.0.9".parse().unwrap();
        assert!(range.overlaps(&"10.0.0.0/29".parse().unwrap()));
        assert!(range.overlaps(&"0.0.0.0/0".parse().unwrap()));
        assert!(!range.overlaps(&"10.0.0.16/28".parse().unwrap()));
        assert!(!range.overlaps(&"::/0".parse().unwrap()));
    }

    #[test]
    fn texts_that_are_no_ranges_are_refused() {
        for text in [
            "",
            "10.0.0",
            "10.0.0.9-10.0.0.5",
            "10.0.0.1-fd7a::1",
            "10.0.0.0/33",
            "a-b",
        ] {
            assert!(text.parse::<IpRange>().is_err(), "{text}");
        }
    }
}
