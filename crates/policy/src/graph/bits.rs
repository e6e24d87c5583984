//! Sets of small numbers.

/// A set of small numbers, one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Puts the number in or takes it out.
    pub(super) fn set(&mut self, number: u32, present: bool) {
        let (word, bit) = place(number);
        if present {
            if self.0.len() <= word {
                self.0.resize(word + 1, 0);
            }
            self.0[word] |= bit;
        } else if let Some(word) = self.0.get_mut(word) {
            *word &= !bit;
        }
    }

    /// Adds all numbers of another set.
    pub(super) fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (own, others) in self.0.iter_mut().zip(&other.0) {
            *own |= others;
        }
    }

    /// The numbers, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        (0..)
            .zip(&self.0)
            .flat_map(|(index, word): (u32, &u64)| Ones(*word).map(move |bit| index * 64 + bit))
    }

    /// The numbers that are in one of both sets alone, in order.
    pub(super) fn differing(&self, other: &Self) -> Self {
        let longest = self.0.len().max(other.0.len());
        let word = |bits: &Self, index: usize| bits.0.get(index).copied().unwrap_or_default();
        Self(
            (0..longest)
                .map(|index| word(self, index) ^ word(other, index))
                .collect(),
        )
    }
}

fn place(number: u32) -> (usize, u64) {
    ((number / 64) as usize, 1 << (number % 64))
}

/// The places of the ones of a word.
struct Ones(u64);

impl Iterator for Ones {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let place = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(place)
    }
}
