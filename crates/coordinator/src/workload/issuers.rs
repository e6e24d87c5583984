//! The issuers that the configuration names, and their keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::fetch::{FetchError, Fetcher};
use super::jwk::KeySet;
use crate::config::IssuerConfig;

/// After how long keys are read again, so that one that was taken back is not believed for ever.
const KEYS_LIFE: Duration = Duration::from_secs(3600);
/// How often keys are read at most, however many tokens name a key that is not known.
const READ_INTERVAL: Duration = Duration::from_secs(10);

/// Why there are no keys to check a token by.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssuerError {
    #[error(
        "the issuer `{0}` is not believed here: add it to `[[issuers]]` in the coordinator's configuration"
    )]
    Unknown(String),
    #[error("the keys of the issuer `{issuer}` cannot be read from {}", path.display())]
    File {
        issuer: String,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the keys of the issuer `{issuer}` cannot be fetched from {url}")]
    Fetch {
        issuer: String,
        url: String,
        source: FetchError,
    },
    #[error("what the issuer `{issuer}` publishes at {url} is not what OpenID Connect Discovery says")]
    Document {
        issuer: String,
        url: String,
        source: serde_json::Error,
    },
    #[error("the document at {url} is of another issuer than `{issuer}`")]
    Other { issuer: String, url: String },
    #[error("the keys of the issuer `{issuer}` could not be read: try again in {} s", READ_INTERVAL.as_secs())]
    Away { issuer: String },
}

/// Where the keys of an issuer come from.
#[derive(Debug)]
enum Source {
    File(PathBuf),
    Discovery(Box<Fetcher>),
}

/// One issuer, and what it published last.
#[derive(Debug)]
pub(crate) struct Issuer {
    url: String,
    source: Source,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    keys: Arc<KeySet>,
    tried: Option<Instant>,
    read: Option<Instant>,
}

/// What OpenID Connect Discovery publishes, as far as it matters here.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// All issuers that are believed.
#[derive(Debug, Default)]
pub(crate) struct Issuers(BTreeMap<String, Issuer>);

impl Issuers {
    /// The issuers of a configuration. Keys are read when the first token comes.
    ///
    /// # Errors
    /// What is wrong with the certificates of one, in words.
    pub(crate) fn new(configured: &[IssuerConfig]) -> Result<Self, String> {
        let mut issuers = BTreeMap::new();
        for IssuerConfig {
            url,
            jwks_file,
            ca_file,
        } in configured
        {
            let source = match jwks_file {
                Some(file) => Source::File(file.clone()),
                None => Source::Discovery(Box::new(Fetcher::new(ca_file.as_deref())?)),
            };
            issuers.insert(url.clone(), Issuer::new(url, source));
        }
        Ok(Self(issuers))
    }

    /// Whether the configuration names the issuer.
    pub(crate) fn knows(&self, url: &str) -> bool {
        self.0.contains_key(url)
    }

    /// The keys of an issuer, read again if none has the id.
    pub(crate) async fn keys(&self, url: &str, key_id: Option<&str>) -> Result<Arc<KeySet>, IssuerError> {
        let issuer = self
            .0
            .get(url)
            .ok_or_else(|| IssuerError::Unknown(url.chars().take(256).collect()))?;
        issuer.keys(key_id).await
    }
}

impl Issuer {
    /// An issuer that publishes its keys by `OpenID Connect Discovery`.
    ///
    /// # Errors
    /// What is wrong with the certificates to trust, in words.
    pub(crate) fn discovered(url: &str, ca_file: Option<&Path>) -> Result<Self, String> {
        let fetcher = Fetcher::new(ca_file)?;
        Ok(Self::new(url, Source::Discovery(Box::new(fetcher))))
    }

    fn new(url: &str, source: Source) -> Self {
        Self {
            url: url.to_owned(),
            source,
            known: Mutex::default(),
        }
    }

    /// The keys, read again if none has the id.
    pub(crate) async fn keys(&self, key_id: Option<&str>) -> Result<Arc<KeySet>, IssuerError> {
        let mut known = self.known.lock().await;
        let fresh = known.read.is_some_and(|read| read.elapsed() < KEYS_LIFE);
        let tried_lately = known.tried.is_some_and(|tried| tried.elapsed() < READ_INTERVAL);
        if fresh && (known.keys.has(key_id) || tried_lately) {
            return Ok(known.keys.clone());
        }
        if tried_lately {
            let issuer = self.url.clone();
            return Err(IssuerError::Away { issuer });
        }
        known.tried = Some(Instant::now());
        match self.read().await {
            Ok(keys) => {
                known.keys = Arc::new(keys);
                known.read = known.tried;
                Ok(known.keys.clone())
            }
            // An issuer that is away for a while does not take the keys with it that it published before.
            Err(error) if fresh => {
                tracing::warn!(%error, "the keys of an issuer could not be read again");
                Ok(known.keys.clone())
            }
            Err(error) => Err(error),
        }
    }

    /// What the issuer publishes about itself.
    pub(crate) async fn document<T: DeserializeOwned>(&self) -> Result<T, IssuerError> {
        let Source::Discovery(fetcher) = &self.source else {
            return Err(IssuerError::Unknown(self.url.clone()));
        };
        let url = self.document_url();
        let text = self.fetch(fetcher, &url).await?;
        let about: Discovery = self.parse(&url, &text, |text| serde_json::from_slice(text))?;
        if about.issuer != self.url {
            return Err(IssuerError::Other {
                issuer: self.url.clone(),
                url,
            });
        }
        self.parse(&url, &text, |text| serde_json::from_slice(text))
    }

    /// Sends a form to one of the issuer's addresses.
    pub(crate) async fn post_form(
        &self,
        url: &str,
        form: String,
        authorization: Option<&str>,
    ) -> Result<bytes::Bytes, FetchError> {
        match &self.source {
            Source::Discovery(fetcher) => fetcher.post_form(url, form, authorization).await,
            Source::File(_) => Err(FetchError::Address),
        }
    }

    fn document_url(&self) -> String {
        format!(
            "{}/.well-known/openid-configuration",
            self.url.trim_end_matches('/')
        )
    }

    async fn read(&self) -> Result<KeySet, IssuerError> {
        let fetcher = match &self.source {
            Source::File(path) => {
                let text = tokio::fs::read(path).await.map_err(|source| IssuerError::File {
                    issuer: self.url.clone(),
                    path: path.clone(),
                    source,
                })?;
                return self.parse(&path.display().to_string(), &text, KeySet::parse);
            }
            Source::Discovery(fetcher) => fetcher,
        };
        let discovery: Discovery = self.document().await?;
        let keys = self.fetch(fetcher, &discovery.jwks_uri).await?;
        self.parse(&discovery.jwks_uri, &keys, KeySet::parse)
    }

    async fn fetch(&self, fetcher: &Fetcher, url: &str) -> Result<bytes::Bytes, IssuerError> {
        fetcher.get(url).await.map_err(|source| IssuerError::Fetch {
            issuer: self.url.clone(),
            url: url.to_owned(),
            source,
        })
    }

    fn parse<T>(
        &self,
        url: &str,
        text: &[u8],
        read: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>,
    ) -> Result<T, IssuerError> {
        read(text).map_err(|source| IssuerError::Document {
            issuer: self.url.clone(),
            url: url.to_owned(),
            source,
        })
    }
}
