//! What is kept over restarts: accounts, and which certificates are revoked.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::CaError;
use crate::file;
use crate::jws::Jwk;
use crate::problem::{Kind, Problem};

const FILE_NAME: &str = "ca-accounts.json";
const MAX_ACCOUNTS: usize = 10_000;
const MAX_REVOKED: usize = 10_000;
const MAX_CONTACTS: usize = 10;
const MAX_CONTACT: usize = 254;

/// Someone who asks for certificates.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) key: Jwk,
    pub(crate) contact: Vec<String>,
    pub(crate) deactivated: bool,
    created: Timestamp,
}

/// A certificate that is not to be trusted any more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Revoked {
    pub(crate) serial: Vec<u8>,
    pub(crate) at: Timestamp,
    pub(crate) reason: u8,
    /// When the certificate would have ended; then it needs no mention.
    pub(crate) ends: Timestamp,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Content {
    accounts: BTreeMap<String, Account>,
    revoked: Vec<Revoked>,
}

/// The file and what it holds. A change is on the disk before it counts.
#[derive(Debug)]
pub(crate) struct Book {
    path: PathBuf,
    content: Content,
    /// Ids of accounts by the thumbprint of their key.
    by_key: HashMap<String, String>,
}

impl Book {
    /// Reads the file, if there is one.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, CaError> {
        let path = data_dir.join(FILE_NAME);
        let content: Content = file::read(&path)?.unwrap_or_default();
        let by_key = content
            .accounts
            .iter()
            .map(|(id, account)| (account.key.thumbprint(), id.clone()))
            .collect();
        Ok(Self {
            path,
            content,
            by_key,
        })
    }

    /// The account that works with this key.
    pub(crate) fn of_key(&self, key: &Jwk) -> Option<&str> {
        self.by_key.get(&key.thumbprint()).map(String::as_str)
    }

    /// An account that may ask for something.
    pub(crate) fn account(&self, id: &str) -> Result<&Account, Problem> {
        let unknown = || {
            Problem::new(
                Kind::AccountDoesNotExist,
                "there is no such account here: register the key again",
            )
        };
        let account = self.content.accounts.get(id).ok_or_else(unknown)?;
        if account.deactivated {
            return Err(Problem::new(
                Kind::Unauthorized,
                "this account was deactivated: use another key",
            ));
        }
        Ok(account)
    }

    /// Opens an account.
    pub(crate) fn register(
        &mut self,
        id: &str,
        key: Jwk,
        contact: Vec<String>,
        now: Timestamp,
    ) -> Result<(), Problem> {
        if self.content.accounts.len() >= MAX_ACCOUNTS {
            return Err(Problem::new(
                Kind::RateLimited,
                "there are too many accounts: use one for several names",
            ));
        }
        let account = Account {
            contact: checked(contact)?,
            key,
            deactivated: false,
            created: now,
        };
        let thumbprint = account.key.thumbprint();
        self.change(|content| {
            content.accounts.insert(id.to_owned(), account);
        })?;
        self.by_key.insert(thumbprint, id.to_owned());
        Ok(())
    }

    /// Sets how to reach an account's owner.
    pub(crate) fn set_contact(&mut self, id: &str, contact: Vec<String>) -> Result<(), Problem> {
        let contact = checked(contact)?;
        self.change(|content| {
            content
                .accounts
                .entry(id.to_owned())
                .and_modify(|account| account.contact = contact);
        })
    }

    /// Ends an account for ever.
    pub(crate) fn deactivate(&mut self, id: &str) -> Result<(), Problem> {
        self.change(|content| {
            content
                .accounts
                .entry(id.to_owned())
                .and_modify(|account| account.deactivated = true);
        })
    }

    /// Gives an account another key.
    pub(crate) fn change_key(&mut self, id: &str, key: Jwk) -> Result<(), Problem> {
        let (old, new) = (self.account(id)?.key.thumbprint(), key.thumbprint());
        self.change(|content| {
            content
                .accounts
                .entry(id.to_owned())
                .and_modify(|account| account.key = key);
        })?;
        self.by_key.remove(&old);
        self.by_key.insert(new, id.to_owned());
        Ok(())
    }

    /// The certificates that are revoked and have not ended.
    pub(crate) fn revoked(&self) -> &[Revoked] {
        &self.content.revoked
    }

    /// Revokes a certificate.
    pub(crate) fn revoke(&mut self, revoked: Revoked) -> Result<(), Problem> {
        if self
            .content
            .revoked
            .iter()
            .any(|known| known.serial == revoked.serial)
        {
            return Err(Problem::new(
                Kind::AlreadyRevoked,
                "this certificate is revoked already",
            ));
        }
        if self.content.revoked.len() >= MAX_REVOKED {
            return Err(Problem::new(
                Kind::RateLimited,
                "too many certificates are revoked; wait until some have ended",
            ));
        }
        self.change(|content| {
            content.revoked.retain(|known| revoked.at < known.ends);
            content.revoked.push(revoked);
        })
    }

    fn change(&mut self, change: impl FnOnce(&mut Content)) -> Result<(), Problem> {
        let mut content = self.content.clone();
        change(&mut content);
        file::write(&self.path, &content).map_err(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a change of the certificate authority was not stored and is refused"
            );
            Problem::internal()
        })?;
        self.content = content;
        Ok(())
    }
}

fn checked(contact: Vec<String>) -> Result<Vec<String>, Problem> {
    if contact.len() <= MAX_CONTACTS && contact.iter().all(|one| one.len() <= MAX_CONTACT) {
        Ok(contact)
    } else {
        Err(Problem::malformed(format!(
            "an account has at most {MAX_CONTACTS} contacts of {MAX_CONTACT} bytes"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jws::Edwards;

    fn key(text: &str) -> Jwk {
        Jwk::Okp {
            crv: Edwards::Ed25519,
            x: text.to_owned(),
        }
    }

    #[test]
    fn accounts_are_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        book.register("1", key("a"), Vec::new(), Timestamp::UNIX_EPOCH)
            .unwrap();
        book.register(
            "2",
            key("b"),
            vec!["mailto:b@example.com".to_owned()],
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        book.change_key("1", key("c")).unwrap();
        book.deactivate("2").unwrap();
        let book = Book::open(dir.path()).unwrap();
        assert_eq!(
            (book.of_key(&key("a")), book.of_key(&key("c"))),
            (None, Some("1"))
        );
        assert_eq!(book.account("2").unwrap_err().kind, Kind::Unauthorized);
        assert_eq!(book.account("3").unwrap_err().kind, Kind::AccountDoesNotExist);
    }

    #[test]
    fn what_cannot_be_stored_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        drop(dir);
        let refused = book.register("1", key("a"), Vec::new(), Timestamp::UNIX_EPOCH);
        assert_eq!(refused.unwrap_err().kind, Kind::ServerInternal);
        assert_eq!(book.of_key(&key("a")), None);
    }

    #[test]
    fn revoked_certificates_are_forgotten_when_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        let revoked = |serial: u8, at: i64| Revoked {
            serial: vec![serial],
            at: Timestamp::from_second(at).unwrap(),
            reason: 0,
            ends: Timestamp::from_second(at + 10).unwrap(),
        };
        book.revoke(revoked(1, 0)).unwrap();
        assert_eq!(book.revoke(revoked(1, 5)).unwrap_err().kind, Kind::AlreadyRevoked);
        book.revoke(revoked(2, 20)).unwrap();
        assert_eq!(book.revoked().len(), 1);
    }
}
