//! The certificate of the coordinator's own address: ordered before the coordinator listens, renewed while it runs.
//!
//! ```text
//! no certificate ── order ──► file ──► the coordinator starts, and reads the file again when it changes
//!       ▲               │       │
//!       └─ a pause ◄─ refused   └── two thirds of its life, or when the authority says ──► order
//! ```

mod pages;
mod stored;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::OsRng;
use tailwharf_coordinator::Config;
use tailwharf_coordinator::config::AcmeSettings;
use tailwharf_node::acme::{self, AcmeAccount, AcmeError, Certificate, LETS_ENCRYPT, Lifetime, Method};
use tailwharf_node::{Backoff, Host, HostConfig, HostError, write_atomically};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::pages::Pages;

/// The file in the data directory with the key of the account, in PKCS #8.
const ACCOUNT_FILE: &str = "acme-account.der";
/// The pause after the first order that failed; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
/// The longest pause that we choose ourselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 60 * 60);
/// How often the authority is asked when it wants the certificate to be renewed.
const LOOK_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// Why there can be no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// `listen` of `[acme]` cannot be used.
    #[error("cannot listen on {addr} for the certificate authority: choose another `listen` in `[acme]`")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the data directory cannot be used.
    #[error("{} cannot be used", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The account's key is damaged.
    #[error("{} holds no account key: remove the file, and there will be a new account", path.display())]
    Account {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: AcmeError,
    },
    /// `ca_file` of `[acme]` cannot be used.
    #[error("`ca_file` in `[acme]` cannot be used")]
    Trust(#[from] HostError),
    /// The directory is no URL.
    #[error("the directory of `[acme]` is no URL")]
    Directory(#[from] url::ParseError),
}

/// Returns when there is a certificate for the host of `server_url`, and has it renewed until `stop` is cancelled. Without one it goes on trying.
///
/// # Errors
/// When a setting or a file cannot be used.
pub(crate) async fn certify(
    config: &Config,
    settings: &AcmeSettings,
    stop: CancellationToken,
) -> Result<(), AddressError> {
    let mut keeper = Keeper::open(config, settings, &stop).await?;
    while keeper.stored()?.is_none() {
        let pause = keeper.round().await?;
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return Ok(());
        }
    }
    tokio::spawn(async move { stop.run_until_cancelled(keeper.keep()).await });
    Ok(())
}

struct Keeper {
    name: String,
    file: PathBuf,
    directory: Url,
    account: AcmeAccount,
    host: Host,
    pages: Pages,
    backoff: Backoff,
}

impl Keeper {
    async fn open(
        config: &Config,
        settings: &AcmeSettings,
        stop: &CancellationToken,
    ) -> Result<Self, AddressError> {
        let extra_ca_pem = match &settings.ca_file {
            Some(path) => Some(read(path)?),
            None => None,
        };
        let host = Host::new(&HostConfig {
            extra_ca_pem,
            ..HostConfig::default()
        })?;
        let directory = match &settings.directory {
            Some(directory) => directory.clone(),
            None => LETS_ENCRYPT.parse()?,
        };
        let mut dir = std::fs::DirBuilder::new();
        dir.recursive(true).mode(0o700);
        dir.create(&config.data_dir)
            .map_err(|source| AddressError::File {
                path: config.data_dir.clone(),
                source,
            })?;
        Ok(Self {
            name: config.server_url.domain().unwrap_or_default().to_owned(),
            file: config.acme_file(),
            account: account(&config.data_dir.join(ACCOUNT_FILE), &directory)?,
            directory,
            host,
            pages: Pages::serve(settings.listen, config.server_url.clone(), stop.clone()).await?,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        })
    }

    async fn keep(mut self) {
        loop {
            let pause = self.round().await.unwrap_or_else(|error| {
                tracing::error!(%error, "the certificate cannot be renewed");
                LOOK_EVERY
            });
            sleep(pause).await;
        }
    }

    /// Orders a certificate if one is due. How long there is nothing to do.
    async fn round(&mut self) -> Result<Duration, AddressError> {
        let stored = self.stored()?;
        if let Some(stored) = &stored {
            let left = self.until_renewal(stored).await;
            if !left.is_zero() {
                return Ok(left.min(LOOK_EVERY));
            }
        }
        let replaces = stored.as_ref().and_then(|stored| stored.renewal_id.as_deref());
        match self.order(replaces).await {
            Ok(certificate) => {
                write(&self.file, &certificate)?;
                self.backoff.reset();
                tracing::info!(name = self.name, directory = %self.directory, "a certificate was issued");
                Ok(Duration::ZERO)
            }
            Err(error) => {
                let asked = match &error {
                    AcmeError::Refused { retry_after, .. } => retry_after.unwrap_or_default(),
                    _ => Duration::ZERO,
                };
                let pause = self.backoff.next(&mut OsRng).max(asked);
                tracing::warn!(
                    name = self.name,
                    error = &error as &dyn std::error::Error,
                    again_in_seconds = pause.as_secs(),
                    "no certificate was issued; port 80 of the name has to lead to `listen` of `[acme]`"
                );
                Ok(pause)
            }
        }
    }

    async fn order(&self, replaces: Option<&str>) -> Result<Certificate, AcmeError> {
        let publish = async |proof| {
            self.pages.publish(proof);
            Ok(())
        };
        let ordered = acme::order(
            &self.host,
            &self.account,
            &self.name,
            replaces,
            Method::Http,
            publish,
        )
        .await;
        self.pages.clear();
        ordered
    }

    fn stored(&self) -> Result<Option<Lifetime>, AddressError> {
        match std::fs::read(&self.file) {
            Ok(pem) => Ok(stored::read(&pem, &self.name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AddressError::File {
                path: self.file.clone(),
                source,
            }),
        }
    }

    async fn until_renewal(&self, stored: &Lifetime) -> Duration {
        let window = match &stored.renewal_id {
            // An authority that says nothing, or cannot be asked, leaves it to us.
            Some(id) => acme::renewal_window(&self.host, &self.directory, id)
                .await
                .ok()
                .flatten(),
            None => None,
        };
        let left = stored.renew_at(window).as_second() - Timestamp::now().as_second();
        Duration::from_secs(u64::try_from(left).unwrap_or_default())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AddressError> {
    std::fs::read(path).map_err(|source| AddressError::File {
        path: path.to_owned(),
        source,
    })
}

/// The account of the file; a new one, if there is no file.
fn account(path: &Path, directory: &Url) -> Result<AcmeAccount, AddressError> {
    let unusable = |source| AddressError::Account {
        path: path.to_owned(),
        source,
    };
    match std::fs::read(path) {
        Ok(key) => AcmeAccount::from_pkcs8(directory.clone(), &key).map_err(unusable),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let account = AcmeAccount::generate(directory.clone()).map_err(unusable)?;
            let written = write_atomically(path, account.to_pkcs8());
            written.map(|()| account).map_err(|source| AddressError::File {
                path: path.to_owned(),
                source,
            })
        }
        Err(source) => Err(AddressError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Key and chain are one file, so that no crash leaves one without the other.
fn write(path: &Path, certificate: &Certificate) -> Result<(), AddressError> {
    let pem = [certificate.key_pem.as_str(), certificate.chain_pem.as_str()].concat();
    write_atomically(path, pem.as_bytes()).map_err(|source| AddressError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_made_once_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ACCOUNT_FILE);
        let directory: Url = LETS_ENCRYPT.parse().unwrap();
        let made = account(&path, &directory).unwrap();
        assert_eq!(account(&path, &directory).unwrap().to_pkcs8(), made.to_pkcs8());
        std::fs::write(&path, "x").unwrap();
        let error = account(&path, &directory).unwrap_err().to_string();
        assert!(error.contains("remove the file"), "{error}");
    }
}
