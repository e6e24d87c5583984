//! Nonces: each opens one request (RFC 8555, section 6.5).

use std::collections::{HashSet, VecDeque};

/// As many as may be outstanding. The oldest end first; a client whose nonce ended gets another one and repeats.
const LIMIT: usize = 20_000;

/// The nonces that may still be used.
#[derive(Debug, Default)]
pub(crate) struct Nonces {
    open: HashSet<String>,
    /// In the order in which they were given; those that were used are among them until they come first.
    order: VecDeque<String>,
}

impl Nonces {
    /// Notes a nonce that is given out.
    pub(crate) fn give(&mut self, nonce: String) {
        while self.order.len() >= LIMIT {
            if let Some(oldest) = self.order.pop_front() {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(nonce.clone());
        self.order.push_back(nonce);
    }

    /// Whether the nonce was given out and not used yet.
    pub(crate) fn take(&mut self, nonce: &str) -> bool {
        self.open.remove(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_good_once_and_the_oldest_end_first() {
        let mut nonces = Nonces::default();
        nonces.give("a".to_owned());
        assert!(nonces.take("a") && !nonces.take("a") && !nonces.take("b"));
        for number in 0..=LIMIT {
            nonces.give(number.to_string());
        }
        assert!(!nonces.take("0") && nonces.take("1"));
        assert!(nonces.order.len() <= LIMIT && nonces.open.len() <= LIMIT);
    }
}
