//! A certificate that nobody has signed.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;

use super::NAME;

/// Shows it, whatever is asked for.
#[derive(Debug)]
pub(crate) struct Shown(Arc<CertifiedKey>);

impl Shown {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let chain = vec![made.cert.der().clone()];
        Self(Arc::new(
            CertifiedKey::from_der(chain, key, &tailwharf_tls::provider()).unwrap(),
        ))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
