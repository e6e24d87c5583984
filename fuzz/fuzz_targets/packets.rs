#![no_main]

#[path = "../../crates/node-core/tests/packets/mod.rs"]
mod packets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    packets::run(input);
});
