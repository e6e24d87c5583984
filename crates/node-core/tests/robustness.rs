//! No peer makes a node panic, loop or grow: the corpus of the fuzz target `packets` as it is, changed at random, and random bytes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows the body of a test from the helpers of one only where it stands in a `cfg(test)` module"
)]

mod packets;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/packets");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn a_node_survives_the_corpus() {
    let seeds = corpus();
    assert!(!seeds.is_empty());
    let accepted: usize = seeds.iter().map(|seed| packets::run(seed)).sum();
    assert!(
        accepted >= 7,
        "the corpus no longer gets into connections: {accepted}"
    );
}

proptest! {
    #[test]
    fn a_node_survives_changes_of_the_corpus(pick: usize, at: usize, change: Vec<u8>, cut: usize) {
        let seeds = corpus();
        let mut seed = seeds[pick % seeds.len()].clone();
        let at = at % seed.len();
        let end = (at + change.len().min(cut % 8)).min(seed.len());
        seed.splice(at..end, change);
        packets::run(&seed);
    }

    #[test]
    fn a_node_survives_random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        packets::run(&bytes);
    }
}
