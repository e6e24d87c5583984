//! No input makes a decoder panic or loop: the corpus as it is, the corpus changed at random, and random bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, too"
)]

mod decoders;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;

use decoders::DECODERS;

struct Seed {
    path: PathBuf,
    bytes: Vec<u8>,
}

static CORPUS: LazyLock<Vec<Seed>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut seeds: Vec<Seed> = DECODERS
        .iter()
        .flat_map(|(name, _)| fs::read_dir(root.join(name)).unwrap())
        .map(|entry| entry.unwrap().path())
        .map(|path| Seed {
            bytes: fs::read(&path).unwrap(),
            path,
        })
        .collect();
    seeds.sort_by(|a, b| a.path.cmp(&b.path));
    seeds
});

#[test]
fn every_decoder_takes_every_seed() {
    for (name, decode) in DECODERS {
        assert!(
            CORPUS
                .iter()
                .any(|seed| seed.path.parent().unwrap().ends_with(name)),
            "no corpus for {name}"
        );
        for seed in CORPUS.iter() {
            println!("{name} {}", seed.path.display());
            decode(&seed.bytes);
            for len in (0..seed.bytes.len().min(256)).chain([seed.bytes.len().saturating_sub(1)]) {
                decode(&seed.bytes[..len]);
            }
        }
    }
}

/// A small change, as errors and attackers make it.
#[derive(Debug, Clone)]
enum Change {
    Flip { at: usize, mask: u8 },
    Cut { at: usize, len: usize },
    Insert { at: usize, bytes: Vec<u8> },
    Repeat { at: usize, len: usize },
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let within = |at: usize| at % (len + 1);
        match self {
            Self::Flip { at, mask } => {
                if let Some(byte) = bytes.get_mut(within(*at)) {
                    *byte ^= mask;
                }
            }
            Self::Cut { at, len } => {
                let at = within(*at);
                let end = bytes.len().min(at + len);
                bytes.drain(at..end);
            }
            Self::Insert { at, bytes: new } => {
                let at = within(*at);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Repeat { at, len } => {
                let at = within(*at);
                let end = bytes.len().min(at + len);
                bytes.extend_from_within(at..end);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<usize>();
    prop_oneof![
        (at, 1..=255u8).prop_map(|(at, mask)| Change::Flip { at, mask }),
        // Lengths and types stand at the begin.
        (0..12usize, 1..=255u8).prop_map(|(at, mask)| Change::Flip { at, mask }),
        (at, 1..64usize).prop_map(|(at, len)| Change::Cut { at, len }),
        (at, prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
        (at, 1..512usize).prop_map(|(at, len)| Change::Repeat { at, len }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for (_, decode) in DECODERS {
            decode(&bytes);
        }
    }

    #[test]
    fn changed_seeds(
        seed in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let seed = seed.get(&CORPUS);
        let mut bytes = seed.bytes.clone();
        for change in &changes {
            change.apply(&mut bytes);
        }
        for (_, decode) in DECODERS {
            decode(&bytes);
        }
    }
}
