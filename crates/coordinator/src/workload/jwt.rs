//! Signed tokens: JWT (RFC 7519) in the compact form of JWS (RFC 7515).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::jwk::{Algorithm, KeySet};
use crate::model::Federation;

/// The longest token that is read. Those of ServiceAccounts have some 1,000 bytes.
const LENGTH_LIMIT: usize = 16 * 1024;
/// How far the clocks of an issuer and this machine may be apart.
const SKEW: SignedDuration = SignedDuration::from_secs(30);

/// Why a token is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token is not a signed JWT of at most {LENGTH_LIMIT} bytes")]
    Malformed,
    #[error("the token is signed by `{0}`; RS256, ES256 and ES384 are known")]
    Algorithm(String),
    #[error("the token asks for an extension that is not known")]
    Critical,
    #[error("the token is signed by no key of its issuer")]
    UnknownKey,
    #[error("the signature of the token is wrong")]
    Signature,
    #[error("the token has expired: ask your platform for a new one")]
    Expired,
    #[error("the token is not valid yet: compare the clocks of this server and of the issuer")]
    NotYet,
    #[error("the token is not for this client: {0} differs from what the client is bound to")]
    Bound(&'static str),
}

/// What the issuer says about the bearer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Claims {
    /// Who says it.
    pub(crate) iss: String,
    /// Whom it is about.
    pub(crate) sub: String,
    aud: Audience,
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

/// A token that was taken apart and not checked yet.
pub(crate) struct Token<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Claims,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// Takes a token apart. Nothing that it says may be believed before [`Token::verify`].
    pub(crate) fn parse(text: &'a str) -> Result<Self, TokenError> {
        if text.len() > LENGTH_LIMIT {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = decode(header)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        Ok(Self {
            algorithm: Algorithm::named(&header.alg)
                .ok_or_else(|| TokenError::Algorithm(header.alg.chars().take(16).collect()))?,
            key_id: header.kid,
            claims: decode(claims)?,
            signed,
            signature: BASE64_URL_SAFE_NO_PAD
                .decode(signature)
                .map_err(|_| TokenError::Malformed)?,
        })
    }

    /// Who is said to have signed it.
    pub(crate) fn issuer(&self) -> &str {
        &self.claims.iss
    }

    /// By which of its keys.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// What the token says, if one of the issuer's keys signed it and it is valid at `now`.
    pub(crate) fn verify(self, keys: &KeySet, now: Timestamp) -> Result<Claims, TokenError> {
        let candidates: Vec<_> = keys.candidates(self.key_id(), self.algorithm).collect();
        if candidates.is_empty() {
            return Err(TokenError::UnknownKey);
        }
        let signed = self.signed.as_bytes();
        if !candidates.iter().any(|key| key.verifies(signed, &self.signature)) {
            return Err(TokenError::Signature);
        }
        let at = |seconds| Timestamp::from_second(seconds).map_err(|_| TokenError::Malformed);
        let earliest = now.saturating_sub(SKEW).map_err(|_| TokenError::Malformed)?;
        let latest = now.saturating_add(SKEW).map_err(|_| TokenError::Malformed)?;
        if at(self.claims.exp)? <= earliest {
            return Err(TokenError::Expired);
        }
        if let Some(nbf) = self.claims.nbf
            && at(nbf)? > latest
        {
            return Err(TokenError::NotYet);
        }
        Ok(self.claims)
    }
}

impl Claims {
    /// The claim with this name, of those that are not registered for every token.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.more.get(name)
    }

    /// Whether the token was made for this client, and for it alone if it names the one who asked for it.
    pub(crate) fn is_for(&self, client: &str) -> bool {
        let named = match &self.aud {
            Audience::One(audience) => audience == client,
            Audience::Many(all) => all.iter().any(|audience| audience == client),
        };
        let party = self.get("azp").and_then(Value::as_str);
        named && party.is_none_or(|party| party == client)
    }

    /// Refuses claims that are not those of a client's binding.
    pub(crate) fn check(&self, bound: &Federation) -> Result<(), TokenError> {
        let audience = match &self.aud {
            Audience::One(audience) => *audience == bound.audience,
            Audience::Many(all) => all.contains(&bound.audience),
        };
        let claim = |(name, wanted): (&String, &String)| match find(&self.more, name) {
            Some(Value::String(text)) => matches(wanted, text),
            Some(Value::Array(values)) => values
                .iter()
                .any(|value| value.as_str().is_some_and(|text| matches(wanted, text))),
            Some(Value::Bool(flag)) => flag.to_string() == *wanted,
            Some(Value::Number(number)) => number.to_string() == *wanted,
            _ => false,
        };
        for (holds, what) in [
            (self.iss == bound.issuer, "the issuer"),
            (matches(&bound.subject, &self.sub), "the subject"),
            (audience, "the audience"),
            (bound.claims.iter().all(claim), "a claim"),
        ] {
            if !holds {
                return Err(TokenError::Bound(what));
            }
        }
        Ok(())
    }
}

/// The claim with this name; a dot leads into an object, as in `kubernetes.io.namespace`. Names may hold dots themselves, so the longest one wins.
fn find<'v>(claims: impl IntoIterator<Item = (&'v String, &'v Value)>, path: &str) -> Option<&'v Value> {
    let mut found: Option<(usize, &Value)> = None;
    for (name, value) in claims {
        let inner = match path.strip_prefix(name.as_str()) {
            Some("") => Some(value),
            Some(rest) => rest
                .strip_prefix('.')
                .zip(value.as_object())
                .and_then(|(rest, object)| find(object, rest)),
            None => None,
        };
        if let Some(inner) = inner.filter(|_| found.is_none_or(|(length, _)| name.len() > length)) {
            found = Some((name.len(), inner));
        }
    }
    found.map(|(_, value)| value)
}

/// Whether a text is what a pattern says; `*` in a pattern stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    true
}

fn decode<T: DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let json = BASE64_URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests;
