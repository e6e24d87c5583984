//! Who is signed in at the console.
//!
//! A person signs in by a link that an administrator of the machine makes: it is good for one sign-in and for minutes. What a browser keeps afterwards
//! is a random cookie. Of both only hashes are kept, in memory: a restart signs everybody out.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use rand::{CryptoRng, Rng};
use sha2::{Digest, Sha256};
use tailwharf_wire::tailcfg::UserId;
use zeroize::Zeroizing;

use crate::secret::random_text;

/// Letters and digits of a link's token, of a cookie and of a form's token: 190 bits.
const TOKEN_LENGTH: usize = 32;
/// How long a link is good for.
const LINK_LIFE: SignedDuration = SignedDuration::from_mins(10);
/// How long a session lasts, however busy it is.
const SESSION_LIFE: SignedDuration = SignedDuration::from_hours(12);
/// How long a session lasts that nobody uses.
const IDLE_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// How long a sign-in is fresh.
const FRESH: SignedDuration = SignedDuration::from_mins(5);
/// Links, and sessions, at one time. The one that ends first makes room.
const ENTRY_LIMIT: usize = 1_000;

type Hash = [u8; 32];

/// A link that was just made.
pub(crate) struct Invitation {
    /// The unguessable part of the link.
    pub(crate) token: Zeroizing<String>,
    /// From when on it is worth nothing.
    pub(crate) expires: Timestamp,
}

/// A person who is signed in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) user: UserId,
    /// What each form must send back, so that no other site can send one in this person's name.
    pub(crate) form_token: String,
    /// When the identity provider signed the person in; none when a link did.
    proved: Option<Timestamp>,
    ends: Timestamp,
    idle_ends: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    user: UserId,
    expires: Timestamp,
}

#[derive(Debug, Default)]
struct Tables {
    links: HashMap<Hash, Link>,
    sessions: HashMap<Hash, Session>,
}

/// All links and sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Tables>);

impl Sessions {
    /// Makes a link for a person.
    pub(crate) fn invite(
        &self,
        user: UserId,
        now: Timestamp,
        rng: &mut (impl Rng + CryptoRng),
    ) -> Invitation {
        let token = Zeroizing::new(random_text(TOKEN_LENGTH, rng));
        let expires = after(now, LINK_LIFE);
        let mut tables = self.lock();
        tables.links.retain(|_, link| link.expires > now);
        make_room(&mut tables.links, |link| link.expires);
        tables.links.insert(hash(&token), Link { user, expires });
        Invitation { token, expires }
    }

    /// For whom a link is. Asking does not use it up: programs that look at links in messages ask, too.
    pub(crate) fn invited(&self, token: &str, now: Timestamp) -> Option<UserId> {
        let tables = self.lock();
        let link = tables.links.get(&hash(token))?;
        (link.expires > now).then_some(link.user)
    }

    /// Signs in by a link, which is worth nothing afterwards. The cookie of the new session.
    pub(crate) fn sign_in(
        &self,
        token: &str,
        now: Timestamp,
        rng: &mut (impl Rng + CryptoRng),
    ) -> Option<Zeroizing<String>> {
        let mut tables = self.lock();
        let link = tables
            .links
            .remove(&hash(token))
            .filter(|link| link.expires > now)?;
        drop(tables);
        Some(self.open(link.user, None, now, rng))
    }

    /// Signs a person in who was proved to be it. The cookie of the new session.
    pub(crate) fn open(
        &self,
        user: UserId,
        proved: Option<Timestamp>,
        now: Timestamp,
        rng: &mut (impl Rng + CryptoRng),
    ) -> Zeroizing<String> {
        let cookie = Zeroizing::new(random_text(TOKEN_LENGTH, rng));
        let session = Session {
            user,
            form_token: random_text(TOKEN_LENGTH, rng),
            proved,
            ends: after(now, SESSION_LIFE),
            idle_ends: after(now, IDLE_LIFE),
        };
        let mut tables = self.lock();
        tables.sessions.retain(|_, session| session.is_open(now));
        make_room(&mut tables.sessions, |session| session.idle_ends);
        tables.sessions.insert(hash(&cookie), session);
        cookie
    }

    /// The session of a cookie, which is used by this.
    pub(crate) fn find(&self, cookie: &str, now: Timestamp) -> Option<Session> {
        let mut tables = self.lock();
        let session = tables.sessions.get_mut(&hash(cookie))?;
        if !session.is_open(now) {
            return None;
        }
        session.idle_ends = after(now, IDLE_LIFE);
        Some(session.clone())
    }

    /// Ends the session of a cookie.
    pub(crate) fn sign_out(&self, cookie: &str) {
        self.lock().sessions.remove(&hash(cookie));
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Whether the person may confirm with this session that it is they: where there is an identity provider, it has to have signed them in a moment
    /// ago; where there is none, they are asked no more than to be signed in.
    pub(crate) fn is_fresh(&self, has_provider: bool, now: Timestamp) -> bool {
        !has_provider
            || self
                .proved
                .is_some_and(|at| at <= now && now.duration_since(at) <= FRESH)
    }

    fn is_open(&self, now: Timestamp) -> bool {
        self.ends > now && self.idle_ends > now
    }
}

fn make_room<T>(entries: &mut HashMap<Hash, T>, ends: impl Fn(&T) -> Timestamp) {
    if entries.len() >= ENTRY_LIMIT {
        let first = entries
            .iter()
            .min_by_key(|(_, entry)| ends(entry))
            .map(|(hash, _)| *hash);
        first.and_then(|hash| entries.remove(&hash));
    }
}

/// Tables are searched by the hash, so that the time of a search tells nothing about a token.
fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

fn after(now: Timestamp, life: SignedDuration) -> Timestamp {
    now.saturating_add(life).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const USER: UserId = UserId(1);

    fn setup() -> (Sessions, StdRng, Timestamp) {
        (
            Sessions::default(),
            StdRng::seed_from_u64(1),
            "2026-01-01T00:00:00Z".parse().unwrap(),
        )
    }

    #[test]
    fn a_link_signs_in_once() {
        let (sessions, mut rng, now) = setup();
        let link = sessions.invite(USER, now, &mut rng);
        assert_eq!(sessions.invited(&link.token, now), Some(USER));
        let cookie = sessions.sign_in(&link.token, now, &mut rng).unwrap();
        assert_eq!(sessions.find(&cookie, now).unwrap().user, USER);
        assert!(sessions.sign_in(&link.token, now, &mut rng).is_none(), "replayed");
        assert!(sessions.invited(&link.token, now).is_none());
        assert!(sessions.find("other", now).is_none());
        sessions.sign_out(&cookie);
        assert!(sessions.find(&cookie, now).is_none());
    }

    #[test]
    fn links_and_sessions_end() {
        let (sessions, mut rng, now) = setup();
        let link = sessions.invite(USER, now, &mut rng);
        let late = after(now, LINK_LIFE);
        assert!(sessions.invited(&link.token, late).is_none());
        assert!(sessions.sign_in(&link.token, late, &mut rng).is_none());

        let link = sessions.invite(USER, now, &mut rng);
        let cookie = sessions.sign_in(&link.token, now, &mut rng).unwrap();
        let mut at = now;
        for _ in 0..24 {
            at = after(at, SignedDuration::from_mins(29));
            assert!(sessions.find(&cookie, at).is_some(), "{at}");
        }
        at = after(at, SignedDuration::from_mins(29));
        assert!(
            sessions.find(&cookie, at).is_none(),
            "busy for longer than a session lasts"
        );

        let link = sessions.invite(USER, now, &mut rng);
        let cookie = sessions.sign_in(&link.token, now, &mut rng).unwrap();
        assert!(sessions.find(&cookie, after(now, IDLE_LIFE)).is_none());
    }

    #[test]
    fn there_is_room_for_so_many_links() {
        let (sessions, mut rng, now) = setup();
        let first = sessions.invite(USER, now, &mut rng);
        for _ in 0..ENTRY_LIMIT {
            sessions.invite(USER, after(now, SignedDuration::from_secs(1)), &mut rng);
        }
        assert_eq!(sessions.lock().links.len(), ENTRY_LIMIT);
        assert!(sessions.invited(&first.token, now).is_none());
    }
}
