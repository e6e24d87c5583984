//! Signed requests: flattened JWS (RFC 7515) as ACME uses them (RFC 8555, section 6.2).

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::problem::{Kind, Problem};

/// The algorithms that a request may be signed with.
pub(crate) const ALGORITHMS: &[&str] = &["ES256", "ES384", "RS256", "EdDSA"];

/// A request as it is sent.
#[derive(Deserialize)]
struct Envelope {
    protected: String,
    payload: String,
    signature: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    nonce: String,
    url: String,
    jwk: Option<Jwk>,
    kid: Option<String>,
    crit: Option<Value>,
}

/// Who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signer {
    /// Whoever has this key.
    Key(Jwk),
    /// The account with this URL.
    Account(String),
}

/// A request whose signature was not checked yet.
pub(crate) struct Unverified {
    pub(crate) signer: Signer,
    pub(crate) nonce: String,
    pub(crate) url: String,
    algorithm: String,
    signed: String,
    signature: Vec<u8>,
    payload: Vec<u8>,
}

impl Unverified {
    /// Reads a request.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let envelope: Envelope = serde_json::from_slice(body)
            .map_err(|error| Problem::malformed(format!("the request is not a flattened JWS: {error}")))?;
        let header: Header = serde_json::from_slice(&decode("protected", &envelope.protected)?)
            .map_err(|error| Problem::malformed(format!("the protected header cannot be read: {error}")))?;
        if header.crit.is_some() {
            return Err(Problem::malformed(
                "the protected header names extensions that are not known here",
            ));
        }
        let signer = match (header.jwk, header.kid) {
            (Some(key), None) => Signer::Key(key),
            (None, Some(account)) => Signer::Account(account),
            _ => {
                return Err(Problem::malformed(
                    "the protected header has to have either `jwk` or `kid`",
                ));
            }
        };
        Ok(Self {
            signer,
            nonce: header.nonce,
            url: header.url,
            algorithm: header.alg,
            signature: decode("signature", &envelope.signature)?,
            payload: decode("payload", &envelope.payload)?,
            signed: format!("{}.{}", envelope.protected, envelope.payload),
        })
    }

    /// The payload, if `key` signed it. An empty one stands for a plain read (POST-as-GET).
    pub(crate) fn verify(self, key: &Jwk) -> Result<Vec<u8>, Problem> {
        if !ALGORITHMS.contains(&self.algorithm.as_str()) {
            let detail = format!("`{}` is not known here", self.algorithm);
            return Err(Problem::new(Kind::BadSignatureAlgorithm, detail));
        }
        if self.algorithm != key.algorithm() {
            return Err(Problem::malformed("the algorithm does not go with the key"));
        }
        if key.signed(self.signed.as_bytes(), &self.signature)? {
            Ok(self.payload)
        } else {
            Err(Problem::malformed("the signature is not valid"))
        }
    }
}

/// A public key (RFC 7517), coordinates and numbers in base64url.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub(crate) enum Jwk {
    #[serde(rename = "EC")]
    Ec { crv: Curve, x: String, y: String },
    #[serde(rename = "OKP")]
    Okp { crv: Edwards, x: String },
    #[serde(rename = "RSA")]
    Rsa { e: String, n: String },
}

/// Curves of ECDSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Curve {
    #[serde(rename = "P-256")]
    P256,
    #[serde(rename = "P-384")]
    P384,
}

/// Curves of `EdDSA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Edwards {
    Ed25519,
}

impl Jwk {
    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Ec { crv: Curve::P256, .. } => "ES256",
            Self::Ec { crv: Curve::P384, .. } => "ES384",
            Self::Okp { .. } => "EdDSA",
            Self::Rsa { .. } => "RS256",
        }
    }

    /// The key's bytes as certificates hold them: an uncompressed point, or the key itself. None for RSA.
    pub(crate) fn point(&self) -> Result<Option<Vec<u8>>, Problem> {
        Ok(match self {
            Self::Ec { crv, x, y } => {
                let size = if *crv == Curve::P256 { 32 } else { 48 };
                let (x, y) = (coordinate(x, size)?, coordinate(y, size)?);
                Some([&[4][..], &x, &y].concat())
            }
            Self::Okp { x, .. } => Some(coordinate(x, 32)?),
            Self::Rsa { .. } => None,
        })
    }

    fn signed(&self, message: &[u8], signature: &[u8]) -> Result<bool, Problem> {
        if let Self::Rsa { e, n } = self {
            let (n, e) = (number(n)?, number(e)?);
            let key = RsaPublicKeyComponents { n, e };
            return Ok(key
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok());
        }
        let Some(point) = self.point()? else {
            return Ok(false);
        };
        Ok(match self {
            Self::Ec { crv: Curve::P256, .. } => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Self::Ec { crv: Curve::P384, .. } => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            _ => UnparsedPublicKey::new(&ED25519, point).verify(message, signature),
        }
        .is_ok())
    }

    /// The key's thumbprint (RFC 7638) in base64url.
    pub(crate) fn thumbprint(&self) -> String {
        // The members in the order of their names, without white space.
        let text = match self {
            Self::Ec { crv, x, y } => {
                let crv = if *crv == Curve::P256 { "P-256" } else { "P-384" };
                format!(r#"{{"crv":"{crv}","kty":"EC","x":"{x}","y":"{y}"}}"#)
            }
            Self::Okp {
                crv: Edwards::Ed25519,
                x,
            } => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#),
            Self::Rsa { e, n } => format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#),
        };
        BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()))
    }

    /// Refuses keys whose parts are not what they should be, so that one key has one thumbprint.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        match self {
            Self::Ec { .. } | Self::Okp { .. } => self.point().map(drop),
            Self::Rsa { e, n } => {
                let (e, n) = (number(e)?, number(n)?);
                if (256..=1024).contains(&n.len())
                    && e.len() <= 8
                    && n.first() != Some(&0)
                    && e.first() != Some(&0)
                {
                    Ok(())
                } else {
                    Err(bad_key("use 2048 to 8192 bits"))
                }
            }
        }
    }
}

fn decode(part: &str, text: &str) -> Result<Vec<u8>, Problem> {
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| Problem::malformed(format!("`{part}` is not base64url: {error}")))
}

fn number(text: &str) -> Result<Vec<u8>, Problem> {
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| bad_key("its numbers have to be base64url"))
}

fn coordinate(text: &str, size: usize) -> Result<Vec<u8>, Problem> {
    number(text)
        .ok()
        .filter(|bytes| bytes.len() == size)
        .ok_or_else(|| bad_key("a coordinate has the wrong size"))
}

fn bad_key(what: &str) -> Problem {
    Problem::new(Kind::BadPublicKey, format!("the key cannot be used: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7638, section 3.1.
    #[test]
    fn thumbprints_are_those_of_the_standard() {
        let key: Jwk = serde_json::from_value(serde_json::json!({
            "kty": "RSA", "alg": "RS256", "kid": "2011-04-29", "e": "AQAB",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        }))
        .unwrap();
        assert_eq!(key.thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        key.check().unwrap();
    }

    /// The example of RFC 7515, appendix A.3.
    #[test]
    fn the_signature_of_the_standard_is_valid_and_another_is_not() {
        let key = Jwk::Ec {
            crv: Curve::P256,
            x: "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU".to_owned(),
            y: "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0".to_owned(),
        };
        let message = b"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let mut signature = decode(
            "signature",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        )
        .unwrap();
        assert!(key.signed(message, &signature).unwrap());
        signature[0] ^= 1;
        assert!(!key.signed(message, &signature).unwrap());
    }

    #[test]
    fn what_is_no_signed_request_is_named() {
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        for (protected, said) in [
            ("{}", "cannot be read"),
            (r#"{"alg":"ES256","url":"u"}"#, "either"),
            (
                r#"{"alg":"ES256","url":"u","kid":"k","crit":["b64"]}"#,
                "extensions",
            ),
            (
                r#"{"alg":"ES256","url":"u","kid":"k","jwk":{"kty":"OKP","crv":"Ed25519","x":""}}"#,
                "either",
            ),
        ] {
            let body = serde_json::json!({"protected": encode(protected), "payload": "", "signature": ""});
            let problem = Unverified::parse(body.to_string().as_bytes()).err().unwrap();
            assert!(problem.detail.contains(said), "{protected}: {}", problem.detail);
        }
        assert!(Unverified::parse(b"\xff").is_err());
        assert!(
            Jwk::Okp {
                crv: Edwards::Ed25519,
                x: "AA".to_owned()
            }
            .check()
            .is_err()
        );
    }
}
