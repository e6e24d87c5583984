//! Signing people in by an identity provider: OpenID Connect, the authorization code flow with PKCE (RFC 7636).
//!
//! A browser leaves for the provider with a random state, and comes back with that state and a code; a cookie says that it is the same browser. The code
//! is traded for a token that names the person, and only what that token says counts.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use rand::{CryptoRng, Rng};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};
use zeroize::Zeroizing;

use crate::config::OidcConfig;
use crate::secret::random_text;
use crate::workload::{Claims, FetchError, Issuer, IssuerError, Token, TokenError};

/// How long a person may take at the provider.
const AWAY: SignedDuration = SignedDuration::from_mins(10);
/// Browsers that may be away at one time. The one that left first makes room.
const AWAY_LIMIT: usize = 1_000;
/// Letters and digits of states, nonces and cookies: 190 bits.
const TOKEN_LENGTH: usize = 32;
/// Letters and digits of a PKCE verifier (RFC 7636, 4.1: 43 to 128).
const VERIFIER_LENGTH: usize = 64;
/// How long what the provider publishes about itself is believed.
const ENDPOINTS_LIFE: Duration = Duration::from_secs(3600);
/// How old a sign-in may be that was asked for anew.
const FRESH: SignedDuration = SignedDuration::from_mins(5);

/// Why a person is not signed in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignInError {
    #[error("This sign-in was not begun in this browser, or too long ago. Begin again")]
    UnknownState,
    #[error("The identity provider refused the sign-in: {0}")]
    RefusedByProvider(String),
    #[error("The identity provider cannot be reached. Try again in a minute")]
    Issuer(#[from] IssuerError),
    #[error("The identity provider does not answer at {url}. Try again in a minute")]
    Fetch {
        url: String,
        #[source]
        source: FetchError,
    },
    #[error("The identity provider does not say `{0}` about itself, so that nobody can sign in by it")]
    Endpoint(&'static str),
    #[error("The identity provider's answer cannot be read")]
    Answer(#[source] serde_json::Error),
    #[error("The identity provider's token is refused")]
    Token(#[from] TokenError),
    #[error("The identity provider's token is not for this sign-in")]
    OtherSignIn,
    #[error("The identity provider did not ask you to sign in anew, which this needs")]
    NotFresh,
    #[error("The identity provider tells no e-mail address of yours that it has verified")]
    NoAddress,
    #[error("{0} may not sign in here. Ask whoever runs this server to add you to `[oidc]`")]
    NotAllowed(String),
}

impl SignInError {
    /// What the provider said in place of a code. Its words come by way of the browser, so they are kept short and plain.
    pub(crate) fn refused_by_provider(error: &str, description: &str) -> Self {
        let text = if description.is_empty() {
            error
        } else {
            description
        };
        let plain = text.chars().filter(|c| !c.is_control()).take(200).collect();
        Self::RefusedByProvider(plain)
    }
}

/// What the browser wants that leaves.
#[derive(Clone, Debug)]
pub(crate) struct Departure {
    /// The path of ours to go to afterwards.
    pub(crate) to: String,
    /// Whether the provider shall ask the person anew.
    pub(crate) again: bool,
}

/// A browser that left for the provider.
pub(crate) struct Waiting {
    pub(crate) departure: Departure,
    cookie: [u8; 32],
    nonce: String,
    verifier: Zeroizing<String>,
    expires: Timestamp,
}

/// Whom the provider named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// The e-mail address in lower case.
    pub(crate) login: String,
    /// The name for people; may be empty.
    pub(crate) name: String,
}

/// Where the provider takes what.
#[derive(Clone, Debug, Deserialize)]
struct Endpoints {
    authorization_endpoint: Option<Url>,
    token_endpoint: Option<Url>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    id_token: String,
}

/// The identity provider of the configuration.
pub(crate) struct Provider {
    config: OidcConfig,
    secret: Option<Zeroizing<String>>,
    issuer: Issuer,
    callback: Url,
    away: Mutex<HashMap<String, Waiting>>,
    endpoints: tokio::sync::Mutex<Option<(Instant, Arc<Endpoints>)>>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("issuer", &self.config.issuer)
            .finish_non_exhaustive()
    }
}

/// Why the provider of a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The file with the client's secret cannot be read.
    #[error("the client secret {} cannot be read", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The certificates to trust cannot be read.
    #[error("{0}")]
    Certificates(String),
}

impl Provider {
    /// The provider of a configuration. It is asked when the first person signs in.
    ///
    /// # Errors
    /// When one of the files is of no use.
    pub(crate) fn new(config: &OidcConfig, server_url: &Url) -> Result<Self, OidcError> {
        let secret = config.client_secret_file.as_ref().map(|path| {
            let text = std::fs::read_to_string(path).map(Zeroizing::new);
            let text = text.map_err(|source| OidcError::Secret {
                path: path.clone(),
                source,
            })?;
            Ok(Zeroizing::new(text.trim().to_owned()))
        });
        let mut callback = server_url.clone();
        callback.set_path(&format!(
            "{}/login/callback",
            server_url.path().trim_end_matches('/')
        ));
        Ok(Self {
            secret: secret.transpose()?,
            issuer: Issuer::discovered(&config.issuer, config.ca_file.as_deref())
                .map_err(OidcError::Certificates)?,
            config: config.clone(),
            callback,
            away: Mutex::default(),
            endpoints: tokio::sync::Mutex::default(),
        })
    }

    /// Where to send a browser, and the secret that it has to bring back.
    pub(crate) async fn depart(
        &self,
        departure: Departure,
        now: Timestamp,
        rng: &mut (impl Rng + CryptoRng),
    ) -> Result<(Url, Zeroizing<String>), SignInError> {
        let endpoints = self.endpoints().await?;
        let mut url = endpoints
            .authorization_endpoint
            .clone()
            .ok_or(SignInError::Endpoint("authorization_endpoint"))?;
        let [state, nonce] = [(); 2].map(|()| random_text(TOKEN_LENGTH, rng));
        let secret = Zeroizing::new(random_text(TOKEN_LENGTH, rng));
        let verifier = Zeroizing::new(random_text(VERIFIER_LENGTH, rng));
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
        let again = departure.again;
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.config.client_id)
            .append_pair("redirect_uri", self.callback.as_str())
            .append_pair("scope", &self.config.scopes.join(" "))
            .append_pair("state", &state)
            .append_pair("nonce", &nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        if again {
            url.query_pairs_mut()
                .append_pair("prompt", "login")
                .append_pair("max_age", "0");
        }
        let waiting = Waiting {
            departure,
            cookie: Sha256::digest(secret.as_bytes()).into(),
            nonce,
            verifier,
            expires: now.saturating_add(AWAY).unwrap_or(now),
        };
        let mut away = self.away();
        away.retain(|_, waiting| waiting.expires > now);
        if away.len() >= AWAY_LIMIT {
            let first = away
                .iter()
                .min_by_key(|(_, waiting)| waiting.expires)
                .map(|(state, _)| state.clone());
            first.and_then(|state| away.remove(&state));
        }
        away.insert(state, waiting);
        Ok((url, secret))
    }

    /// The browser that left with this state, if it brings back its secret. Good for once.
    pub(crate) fn take(&self, state: &str, secret: &str, now: Timestamp) -> Result<Waiting, SignInError> {
        let cookie: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let mut away = self.away();
        let same = away
            .get(state)
            .is_some_and(|waiting| waiting.cookie == cookie && waiting.expires > now);
        same.then(|| away.remove(state))
            .flatten()
            .ok_or(SignInError::UnknownState)
    }

    /// Trades the code for the person whom the provider has signed in.
    pub(crate) async fn arrive(
        &self,
        waiting: Waiting,
        code: &str,
        now: Timestamp,
    ) -> Result<Person, SignInError> {
        let text = self.id_token(&waiting, code).await?;
        let token = Token::parse(&text)?;
        let keys = self.issuer.keys(token.key_id()).await?;
        let claims = token.verify(&keys, now)?;
        if claims.iss != self.config.issuer
            || !claims.is_for(&self.config.client_id)
            || claims.get("nonce").and_then(Value::as_str) != Some(waiting.nonce.as_str())
        {
            return Err(SignInError::OtherSignIn);
        }
        if waiting.departure.again && !is_fresh(&claims, now) {
            return Err(SignInError::NotFresh);
        }
        self.person(&claims)
    }

    async fn id_token(&self, waiting: &Waiting, code: &str) -> Result<Zeroizing<String>, SignInError> {
        let endpoints = self.endpoints().await?;
        let url = endpoints
            .token_endpoint
            .as_ref()
            .ok_or(SignInError::Endpoint("token_endpoint"))?;
        let basic = self.secret.as_ref().map(|secret| {
            // Both parts are form-encoded first (RFC 6749, 2.3.1).
            let encode = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
            let pair = format!("{}:{}", encode(&self.config.client_id), encode(secret));
            Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair)))
        });
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", self.callback.as_str()),
            ("code_verifier", waiting.verifier.as_str()),
        ];
        if basic.is_none() {
            form.push(("client_id", &self.config.client_id));
        }
        let form = Serializer::new(String::new()).extend_pairs(form).finish();
        let authorization = basic.as_ref().map(|basic| basic.as_str());
        let body = self
            .issuer
            .post_form(url.as_str(), form, authorization)
            .await
            .map_err(|source| SignInError::Fetch {
                url: url.to_string(),
                source,
            })?;
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(SignInError::Answer)?;
        Ok(Zeroizing::new(answer.id_token))
    }

    /// The person, if the configuration lets them in.
    fn person(&self, claims: &Claims) -> Result<Person, SignInError> {
        let text = |name| claims.get(name).and_then(Value::as_str).unwrap_or_default();
        let verified = match claims.get("email_verified") {
            None => !self.config.require_verified_email,
            Some(Value::Bool(verified)) => *verified,
            Some(Value::String(verified)) => verified == "true",
            Some(_) => false,
        };
        let login = text("email").trim().to_ascii_lowercase();
        let (_, domain) = login
            .rsplit_once('@')
            .filter(|_| verified)
            .ok_or(SignInError::NoAddress)?;
        let OidcConfig {
            allowed_domains,
            allowed_users,
            allowed_groups,
            groups_claim,
            ..
        } = &self.config;
        let in_group = |group: &str| allowed_groups.iter().any(|allowed| allowed == group);
        let of_group = match claims.get(groups_claim) {
            Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).any(in_group),
            Some(Value::String(group)) => in_group(group),
            _ => false,
        };
        let of_domain = allowed_domains
            .iter()
            .any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(domain));
        let by_name = allowed_users.iter().any(|user| user.eq_ignore_ascii_case(&login));
        if of_domain || by_name || of_group {
            let name = text("name")
                .chars()
                .filter(|c| !c.is_control())
                .take(100)
                .collect();
            Ok(Person { login, name })
        } else {
            Err(SignInError::NotAllowed(login))
        }
    }

    async fn endpoints(&self) -> Result<Arc<Endpoints>, SignInError> {
        let mut known = self.endpoints.lock().await;
        if let Some((read, endpoints)) = &*known
            && read.elapsed() < ENDPOINTS_LIFE
        {
            return Ok(endpoints.clone());
        }
        let endpoints: Arc<Endpoints> = Arc::new(self.issuer.document().await?);
        *known = Some((Instant::now(), endpoints.clone()));
        Ok(endpoints)
    }

    fn away(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the provider says that the person signed in a moment ago.
fn is_fresh(claims: &Claims, now: Timestamp) -> bool {
    let at = claims.get("auth_time").and_then(Value::as_i64);
    at.and_then(|at| Timestamp::from_second(at).ok())
        .is_some_and(|at| now.duration_since(at) <= FRESH)
}
