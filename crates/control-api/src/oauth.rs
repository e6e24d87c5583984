//! Access tokens by client credentials (RFC 6749, 4.4), kept until shortly before they end.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::Error;
use crate::secret::Secret;

/// A token is renewed this long before it ends, so that none ends under way.
const MARGIN: Duration = Duration::from_secs(60);

/// The answer of the token endpoint.
#[derive(Deserialize)]
pub(crate) struct TokenBody {
    pub(crate) access_token: Secret,
    #[serde(default = "default_lifetime")]
    expires_in: u64,
}

/// What Tailscale gives; used when the server does not tell.
fn default_lifetime() -> u64 {
    3600
}

#[derive(Clone)]
struct Cached {
    token: Secret,
    renew_at: Instant,
}

/// One token for all calls. While one call fetches it the others wait for that answer.
#[derive(Default)]
pub(crate) struct TokenCache {
    cached: Mutex<Option<Cached>>,
}

impl TokenCache {
    pub(crate) async fn get(
        &self,
        fetch: impl Future<Output = Result<TokenBody, Error>>,
    ) -> Result<Secret, Error> {
        let mut cached = self.cached.lock().await;
        if let Some(fresh) = cached.as_ref().filter(|entry| Instant::now() < entry.renew_at) {
            return Ok(fresh.token.clone());
        }
        let body = fetch.await?;
        // A lifetime shorter than twice the margin is used for half of its length.
        let lifetime = Duration::from_secs(body.expires_in.min(86_400));
        let renew_in = lifetime.saturating_sub(MARGIN).max(lifetime / 2);
        *cached = Some(Cached {
            token: body.access_token.clone(),
            renew_at: Instant::now() + renew_in,
        });
        Ok(body.access_token)
    }

    /// Forgets `token`, which the server no longer accepts. One that another call fetched meanwhile stays.
    pub(crate) async fn discard(&self, token: &Secret) {
        let mut cached = self.cached.lock().await;
        if cached.as_ref().is_some_and(|entry| entry.token == *token) {
            *cached = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn fetch(count: &AtomicU32, expires_in: u64) -> Result<TokenBody, Error> {
        let n = count.fetch_add(1, Ordering::Relaxed);
        Ok(TokenBody {
            access_token: Secret::new(format!("token-{n}")),
            expires_in,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_until_shortly_before_its_end() {
        let (cache, count) = (TokenCache::default(), AtomicU32::new(0));
        for _ in 0..3 {
            cache.get(fetch(&count, 3600)).await.unwrap();
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(3539)).await;
        cache.get(fetch(&count, 3600)).await.unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        cache.get(fetch(&count, 3600)).await.unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_refused_token_is_forgotten() {
        let (cache, count) = (TokenCache::default(), AtomicU32::new(0));
        let first = cache.get(fetch(&count, 3600)).await.unwrap();
        cache.discard(&first).await;
        let second = cache.get(fetch(&count, 3600)).await.unwrap();
        cache.discard(&first).await;
        assert_eq!(cache.get(fetch(&count, 3600)).await.unwrap(), second);
    }
}
