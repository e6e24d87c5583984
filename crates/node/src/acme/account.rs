//! The key of an ACME account, and requests signed with it (RFC 7515, RFC 8555 chapter 6).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use url::Url;
use zeroize::Zeroizing;

use super::AcmeError;

/// An account at an ACME server. It is made there with the first certificate; keep [`AcmeAccount::to_pkcs8`] to use it again.
pub struct AcmeAccount {
    directory: Url,
    pkcs8: Zeroizing<Vec<u8>>,
    key: EcdsaKeyPair,
}

impl AcmeAccount {
    /// A new account at the server with this directory.
    ///
    /// # Errors
    /// [`AcmeError::Key`] when the system gives no randomness.
    pub fn generate(directory: Url) -> Result<Self, AcmeError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| AcmeError::Key)?;
        Self::from_pkcs8(directory, document.as_ref())
    }

    /// The account that has this key.
    ///
    /// # Errors
    /// [`AcmeError::Key`] when it is no P-256 key in PKCS #8.
    pub fn from_pkcs8(directory: Url, pkcs8: &[u8]) -> Result<Self, AcmeError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())
            .map_err(|_| AcmeError::Key)?;
        Ok(Self {
            directory,
            pkcs8: pkcs8.to_vec().into(),
            key,
        })
    }

    /// The private key of the account.
    #[must_use]
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(super) fn directory(&self) -> &Url {
        &self.directory
    }

    /// The public key (RFC 7517), with its members in the order that a thumbprint needs.
    fn jwk(&self) -> Value {
        // An uncompressed point: a byte that says so, then both coordinates.
        let point = &self.key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        json!({"crv": "P-256", "kty": "EC", "x": BASE64URL.encode(x), "y": BASE64URL.encode(y)})
    }

    /// What binds a challenge to this account (RFC 8555, 8.1).
    pub(super) fn key_authorization(&self, token: &str) -> String {
        let thumbprint = digest::digest(&digest::SHA256, self.jwk().to_string().as_bytes());
        format!("{token}.{}", BASE64URL.encode(thumbprint))
    }

    /// What a TXT record must hold to prove control over a name (RFC 8555, 8.4).
    pub(super) fn dns_proof(&self, token: &str) -> String {
        let authorization = self.key_authorization(token);
        BASE64URL.encode(digest::digest(&digest::SHA256, authorization.as_bytes()))
    }

    /// A signed request to `url`: as the account `location`, or before that is known with the key itself. No payload reads.
    pub(super) fn sign(
        &self,
        url: &str,
        nonce: &str,
        location: Option<&str>,
        payload: Option<&Value>,
    ) -> Result<Vec<u8>, AcmeError> {
        let mut header = json!({"alg": "ES256", "nonce": nonce, "url": url});
        match location {
            Some(location) => header["kid"] = json!(location),
            None => header["jwk"] = self.jwk(),
        }
        let protected = BASE64URL.encode(header.to_string());
        let payload = BASE64URL.encode(payload.map(Value::to_string).unwrap_or_default());
        let signed = format!("{protected}.{payload}");
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| AcmeError::Key)?;
        let signature = BASE64URL.encode(signature);
        let request = json!({"protected": protected, "payload": payload, "signature": signature});
        Ok(request.to_string().into_bytes())
    }
}

impl fmt::Debug for AcmeAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcmeAccount")
            .field("directory", &self.directory.as_str())
            .finish_non_exhaustive()
    }
}
