//! TLS connections that move batches.
//!
//! A relay carries many small packets over few connections, and holds many connections that carry nothing. So a read takes up
//! to 64 KiB of records from the socket at once, a write seals as much into full records, both by way of buffers that belong
//! to the thread, and a connection that waits holds no buffer at all.

#![forbid(unsafe_code)]

mod session;
mod stream;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{ALL_CIPHER_SUITES, default_provider};
use rustls::{CipherSuite, SupportedCipherSuite};

pub use self::session::Session;
pub use self::stream::{ClientTls, ServerTls, TlsStream, accept, connect};

/// The cryptography of all TLS connections: ring, with the suite first that is cheapest on this machine.
///
/// AES with 128 bits costs a quarter less than with 256, and is what peers that choose by cost choose. Where the processor has
/// no AES, ChaCha20 is several times cheaper.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut suites = ALL_CIPHER_SUITES.to_vec();
    // The sort is stable: TLS 1.3 stays before TLS 1.2.
    suites.sort_by_key(|suite| cost(*suite, has_aes()));
    Arc::new(CryptoProvider {
        cipher_suites: suites,
        ..default_provider()
    })
}

/// A rank of a suite among those of one version of TLS; the versions are never mixed.
fn cost(suite: SupportedCipherSuite, has_aes: bool) -> (bool, u8) {
    let is_old = suite.tls13().is_none();
    let aes = |rank| if has_aes { rank } else { rank + 10 };
    let rank = match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => aes(0),
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => aes(1),
        _ => 5,
    };
    (is_old, rank)
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_suite_is_first_and_new_tls_before_old() {
        let ordered = |has_aes| {
            let mut suites = ALL_CIPHER_SUITES.to_vec();
            suites.sort_by_key(|suite| cost(*suite, has_aes));
            suites
        };
        assert_eq!(ordered(true)[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(
            ordered(false)[0].suite(),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        );
        for suites in [ordered(true), ordered(false)] {
            assert!(suites.is_sorted_by_key(|suite| suite.tls13().is_none()));
            assert_eq!(suites.len(), ALL_CIPHER_SUITES.len());
        }
    }
}
