//! The Internet checksum (RFC 1071) in parts: sums of pieces add up, and only the last step makes the checksum.

/// The sum of bytes that begin at an even place of what is summed, as machine words: folded at the end it is the sum that RFC 1071 defines, in the machine's
/// byte order.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    // Independent lanes, so that the compiler may use wide registers.
    let mut lanes = [0u64; 8];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        lanes[0] += u64::from(u32::from_ne_bytes(*word));
    }
    let (pairs, rest) = rest.as_chunks::<2>();
    for pair in pairs {
        lanes[1] += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [last] = rest {
        lanes[1] += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    lanes.iter().map(|lane| (lane >> 32) + (lane & 0xffff_ffff)).sum()
}

/// The sum of one 16-bit word.
pub(crate) fn word(word: u16) -> u64 {
    u64::from(word.to_be())
}

/// A sum with all carries added in.
pub(crate) fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The checksum of what was summed, as it goes into a header.
pub(crate) fn finish(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// Whether a sum over bytes that include their checksum is right.
pub(crate) fn verifies(sum: u64) -> bool {
    fold(sum) == 0xffff
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 as it is written down.
    fn plain(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0..3000usize) {
            prop_assert_eq!(finish(sum(&bytes)), plain(&bytes));
            let cut = cut.min(bytes.len()) & !1;
            prop_assert_eq!(finish(sum(&bytes[..cut]) + sum(&bytes[cut..])), plain(&bytes));
        }
    }

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(finish(sum(&bytes)), [!0xdd, !0xf2]);
        assert_eq!(finish(word(0x1234)), [!0x12, !0x34]);
    }
}
