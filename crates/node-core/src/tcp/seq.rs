//! Sequence numbers, which wrap around (RFC 9293, 3.4).

use std::cmp::Ordering;
use std::ops::{Add, AddAssign, Sub};

/// A sequence number. Two of one connection are never further apart than half of the numbers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seq(pub(super) u32);

impl Seq {
    pub(super) fn max(self, other: Self) -> Self {
        if self < other { other } else { self }
    }

    pub(super) fn min(self, other: Self) -> Self {
        if self < other { self } else { other }
    }

    /// The number `back` before this one.
    pub(super) fn before(self, back: u32) -> Self {
        Self(self.0.wrapping_sub(back))
    }

    /// How far this number is after `other`; zero if it is not.
    pub(super) fn past(self, other: Self) -> usize {
        if self > other { (self - other) as usize } else { 0 }
    }
}

impl PartialOrd for Seq {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some((self.0.wrapping_sub(other.0) as i32).cmp(&0))
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, length: u32) -> Self {
        Self(self.0.wrapping_add(length))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, length: u32) {
        *self = *self + length;
    }
}

impl Sub for Seq {
    type Output = u32;

    /// How far this number is after an earlier one.
    fn sub(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_holds_around_the_wrap(start: u32, step in 1..i32::MAX as u32) {
            let (one, other) = (Seq(start), Seq(start) + step);
            prop_assert!(one < other);
            prop_assert!(other > one);
            prop_assert_eq!(other - one, step);
            prop_assert_eq!((other.past(one), one.past(other)), (step as usize, 0));
            prop_assert_eq!((one.max(other), one.min(other)), (other, one));
            prop_assert_eq!(other.before(step), one);
        }
    }
}
