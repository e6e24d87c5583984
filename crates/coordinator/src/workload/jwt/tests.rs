use std::collections::BTreeMap;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const SUBJECT: &str = "system:serviceaccount:tailscale:operator";
const NOW: i64 = 1_800_000_000;

/// A platform that signs.
struct Platform {
    key: EcdsaKeyPair,
    id: &'static str,
}

impl Platform {
    fn new(id: &'static str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self { key, id }
    }

    fn jwk(&self) -> Value {
        let point = self.key.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.id, "x": base64(&point[1..33]), "y": base64(&point[33..])})
    }

    fn keys(&self) -> KeySet {
        KeySet::parse(
            json!({"keys": [{"kty": "oct", "k": "AAAA"}, self.jwk()]})
                .to_string()
                .as_bytes(),
        )
        .unwrap()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            base64(header.to_string().as_bytes()),
            base64(claims.to_string().as_bytes())
        );
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64(signature.as_ref()))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "kid": self.id}), claims)
    }
}

fn base64(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": SUBJECT, "aud": ["other", "tailwharf"], "exp": NOW + 600, "nbf": NOW,
           "kubernetes.io": {"namespace": "tailscale", "node": {"name": "n1"}}})
}

fn federation() -> Federation {
    Federation {
        issuer: ISSUER.to_owned(),
        subject: SUBJECT.to_owned(),
        audience: "tailwharf".to_owned(),
        claims: BTreeMap::new(),
    }
}

fn check(text: &str, keys: &KeySet, seconds: i64) -> Result<Claims, TokenError> {
    Token::parse(text)?.verify(keys, Timestamp::from_second(seconds).unwrap())
}

#[test]
fn a_token_of_the_platform_is_taken() {
    let platform = Platform::new("a");
    let claims = check(&platform.token(&claims()), &platform.keys(), NOW).unwrap();
    assert_eq!(claims.check(&federation()), Ok(()));
}

#[test]
fn tokens_of_others_are_not() {
    let (platform, stranger) = (Platform::new("a"), Platform::new("a"));
    let forged = stranger.token(&claims());
    assert_eq!(check(&forged, &platform.keys(), NOW), Err(TokenError::Signature));
    let unknown = Platform::new("b").token(&claims());
    assert_eq!(
        check(&unknown, &platform.keys(), NOW),
        Err(TokenError::UnknownKey)
    );

    let good = platform.token(&claims());
    let mut other = claims();
    other["sub"] = json!("system:serviceaccount:kube-system:default");
    let (head, signature) = (good.split('.').next().unwrap(), good.rsplit('.').next().unwrap());
    let changed = format!("{head}.{}.{signature}", base64(other.to_string().as_bytes()));
    assert_eq!(check(&changed, &platform.keys(), NOW), Err(TokenError::Signature));
}

#[test]
fn the_algorithm_is_that_of_the_key() {
    let platform = Platform::new("a");
    for (alg, error) in [
        ("none", TokenError::Algorithm("none".to_owned())),
        ("HS256", TokenError::Algorithm("HS256".to_owned())),
        ("RS256", TokenError::UnknownKey),
        ("ES384", TokenError::UnknownKey),
    ] {
        let token = platform.sign(&json!({"alg": alg, "kid": "a"}), &claims());
        assert_eq!(check(&token, &platform.keys(), NOW), Err(error));
    }
    let critical = platform.sign(
        &json!({"alg": "ES256", "kid": "a", "crit": ["b64"], "b64": false}),
        &claims(),
    );
    assert_eq!(check(&critical, &platform.keys(), NOW), Err(TokenError::Critical));
}

#[test]
fn tokens_have_their_time() {
    let platform = Platform::new("a");
    let token = platform.token(&claims());
    for (at, outcome) in [
        (NOW - 31, Err(TokenError::NotYet)),
        (NOW - 30, Ok(())),
        (NOW + 629, Ok(())),
        (NOW + 630, Err(TokenError::Expired)),
    ] {
        assert_eq!(check(&token, &platform.keys(), at).map(drop), outcome, "{at}");
    }
    let mut endless = claims();
    endless["exp"] = json!(i64::MAX);
    assert_eq!(
        check(&platform.token(&endless), &platform.keys(), NOW).map(drop),
        Err(TokenError::Malformed)
    );
}

#[test]
fn each_binding_is_checked() {
    let platform = Platform::new("a");
    let claims = check(&platform.token(&claims()), &platform.keys(), NOW).unwrap();
    let rule = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let bound = federation;
    for (binding, outcome) in [
        (
            Federation {
                issuer: "https://other".to_owned(),
                ..bound()
            },
            Err(TokenError::Bound("the issuer")),
        ),
        (
            Federation {
                subject: "system:serviceaccount:*:other".to_owned(),
                ..bound()
            },
            Err(TokenError::Bound("the subject")),
        ),
        (
            Federation {
                subject: "system:serviceaccount:tailscale:*".to_owned(),
                ..bound()
            },
            Ok(()),
        ),
        (
            Federation {
                audience: "api".to_owned(),
                ..bound()
            },
            Err(TokenError::Bound("the audience")),
        ),
        (
            Federation {
                audience: "*".to_owned(),
                ..bound()
            },
            Err(TokenError::Bound("the audience")),
        ),
        (
            Federation {
                claims: rule("kubernetes.io.namespace", "tailscale"),
                ..bound()
            },
            Ok(()),
        ),
        (
            Federation {
                claims: rule("kubernetes.io.node.name", "n*"),
                ..bound()
            },
            Ok(()),
        ),
        (
            Federation {
                claims: rule("kubernetes.io.namespace", "default"),
                ..bound()
            },
            Err(TokenError::Bound("a claim")),
        ),
        (
            Federation {
                claims: rule("missing", "*"),
                ..bound()
            },
            Err(TokenError::Bound("a claim")),
        ),
    ] {
        assert_eq!(claims.check(&binding), outcome, "{binding:?}");
    }
}

#[test]
fn what_is_no_token_is_refused() {
    for text in ["", ".", "..", "a.b.c", "e30.e30.", &"x".repeat(LENGTH_LIMIT + 1)] {
        assert!(Token::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_star_stands_for_any_text() {
    for (pattern, text, outcome) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a*", "ab", true),
        ("*b", "ab", true),
        ("a*c", "abbc", true),
        ("a*c*e", "abcde", true),
        ("a*c*e", "ae", false),
        ("ab*ba", "aba", false),
        ("", "", true),
    ] {
        assert_eq!(matches(pattern, text), outcome, "{pattern} {text}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,64}") {
        let _ = Token::parse(&text);
        let _ = KeySet::parse(text.as_bytes());
    }
}
