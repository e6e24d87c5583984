//! Links the binary so that its relocations take a bit each instead of 24 bytes: they are read at each start and stay in memory.

#![expect(
    clippy::disallowed_methods,
    reason = "so Cargo tells a build script the target"
)]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("musl") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
