#![no_main]

#[path = "../../crates/wire/tests/decoders/mod.rs"]
#[allow(dead_code, reason = "each target runs one of the decoders")]
mod decoders;

libfuzzer_sys::fuzz_target!(|input: &[u8]| decoders::key(input));
