//! Registration as a state machine: requests out, answers in. The session sends and obeys.

use jiff::Timestamp;
use rand::{CryptoRng, RngCore};
use tailwharf_wire::key::{NodePrivate, NodePublic};
use tailwharf_wire::tailcfg::{
    CapabilityVersion, Hostinfo, RegisterAuth, RegisterRequest, RegisterResponse, UserProfile,
};

use crate::api::AuthKey;

/// What comes after an answer of the server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// The node key is registered.
    Registered {
        profile: UserProfile,
        /// Whether an administrator has approved the node, or need not.
        approved: bool,
    },
    /// Show the page and send [`Registration::request`] again: the server holds it until somebody has signed in there.
    Login { url: String },
    /// The node key has expired. There is a new one; keep it, then send [`Registration::request`] again.
    KeyRotated,
    /// The server refuses the node.
    Refused { reason: String },
}

/// The registration of one node.
#[derive(Debug)]
pub(crate) struct Registration {
    node_key: NodePrivate,
    old_node_key: Option<NodePublic>,
    auth_key: Option<AuthKey>,
    ephemeral: bool,
    followup: String,
    rotated: bool,
}

impl Registration {
    pub(crate) fn new(
        node_key: NodePrivate,
        old_node_key: Option<NodePublic>,
        auth_key: Option<AuthKey>,
        ephemeral: bool,
    ) -> Self {
        Self {
            node_key,
            old_node_key,
            auth_key,
            ephemeral,
            followup: String::new(),
            rotated: false,
        }
    }

    /// The key that is being registered, and the one it replaces.
    pub(crate) fn keys(&self) -> (&NodePrivate, Option<NodePublic>) {
        (&self.node_key, self.old_node_key)
    }

    /// Whether the server may hold the next request until a person has acted.
    pub(crate) fn waits_for_login(&self) -> bool {
        !self.followup.is_empty()
    }

    /// The next request.
    pub(crate) fn request(&self, hostinfo: Hostinfo) -> RegisterRequest {
        RegisterRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.node_key.public(),
            old_node_key: self.old_node_key.unwrap_or_default(),
            auth: self.auth_key.as_ref().map(|key| RegisterAuth {
                auth_key: key.expose().to_owned(),
            }),
            followup: self.followup.clone(),
            hostinfo: Some(hostinfo),
            ephemeral: self.ephemeral,
            ..RegisterRequest::default()
        }
    }

    /// Makes a new node key, which the next request registers in place of the one that the server knows.
    pub(crate) fn rotate(&mut self, rng: &mut (impl RngCore + CryptoRng)) {
        // A key that the server never took is no key that the new one could replace.
        self.old_node_key = Some(self.old_node_key.unwrap_or_else(|| self.node_key.public()));
        self.node_key = NodePrivate::generate(rng);
        self.followup.clear();
        self.rotated = true;
    }

    /// Takes the answer to the last request.
    pub(crate) fn handle(&mut self, answer: RegisterResponse, rng: &mut (impl RngCore + CryptoRng)) -> Step {
        if !answer.error.is_empty() {
            return Step::Refused { reason: answer.error };
        }
        if answer.node_key_expired {
            if self.rotated {
                return Step::Refused {
                    reason: "the control server calls even a new node key expired".to_owned(),
                };
            }
            self.rotate(rng);
            return Step::KeyRotated;
        }
        if !answer.auth_url.is_empty() {
            self.followup = answer.auth_url.clone();
            return Step::Login { url: answer.auth_url };
        }
        self.followup.clear();
        self.old_node_key = None;
        let display_name = match answer.login.display_name.is_empty() {
            true => answer.user.display_name,
            false => answer.login.display_name,
        };
        Step::Registered {
            profile: UserProfile {
                id: answer.user.id,
                login_name: answer.login.login_name,
                display_name,
                profile_pic_url: answer.login.profile_pic_url,
                groups: Vec::new(),
            },
            approved: answer.machine_authorized,
        }
    }
}

/// The request that logs `node_key` out: an expiry in the past. Go's clients send this very time.
pub(crate) fn logout_request(node_key: NodePublic) -> RegisterRequest {
    RegisterRequest {
        version: CapabilityVersion::CURRENT,
        node_key,
        expiry: Some(Timestamp::constant(123, 0)),
        ..RegisterRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tailwharf_wire::tailcfg::{Login, User, UserId};

    use super::*;

    fn start() -> (Registration, StdRng) {
        let mut rng = StdRng::seed_from_u64(1);
        let key = NodePrivate::generate(&mut rng);
        (
            Registration::new(key, None, AuthKey::new("tskey-auth-1"), false),
            rng,
        )
    }

    fn accepted() -> RegisterResponse {
        RegisterResponse {
            machine_authorized: true,
            user: User {
                id: UserId(7),
                display_name: "Alice".into(),
                ..User::default()
            },
            login: Login {
                login_name: "alice@example.com".into(),
                ..Login::default()
            },
            ..RegisterResponse::default()
        }
    }

    #[test]
    fn an_auth_key_registers_at_once() {
        let (mut registration, mut rng) = start();
        let request = registration.request(Hostinfo::default());
        assert_eq!(request.auth.unwrap().auth_key, "tskey-auth-1");
        assert!(request.old_node_key.is_zero() && request.followup.is_empty());
        let Step::Registered { profile, approved } = registration.handle(accepted(), &mut rng) else {
            panic!()
        };
        assert!(approved);
        assert_eq!(
            (profile.login_name.as_str(), profile.display_name.as_str()),
            ("alice@example.com", "Alice")
        );
    }

    #[test]
    fn a_login_page_is_followed_up_until_it_is_done() {
        let (mut registration, mut rng) = start();
        let url = "https://control.example/a/1".to_owned();
        let page = RegisterResponse {
            auth_url: url.clone(),
            ..RegisterResponse::default()
        };
        for _ in 0..2 {
            assert_eq!(
                registration.handle(page.clone(), &mut rng),
                Step::Login { url: url.clone() }
            );
            assert!(registration.waits_for_login());
            assert_eq!(registration.request(Hostinfo::default()).followup, url);
        }
        let unapproved = RegisterResponse {
            machine_authorized: false,
            ..accepted()
        };
        assert!(matches!(
            registration.handle(unapproved, &mut rng),
            Step::Registered { approved: false, .. }
        ));
        assert!(!registration.waits_for_login());
    }

    #[test]
    fn a_refusal_carries_the_servers_words() {
        let (mut registration, mut rng) = start();
        let answer = RegisterResponse {
            error: "auth key expired".into(),
            ..RegisterResponse::default()
        };
        assert_eq!(
            registration.handle(answer, &mut rng),
            Step::Refused {
                reason: "auth key expired".into()
            }
        );
    }

    #[test]
    fn an_expired_key_is_replaced_once() {
        let (mut registration, mut rng) = start();
        let old = registration.keys().0.public();
        let expired = RegisterResponse {
            node_key_expired: true,
            ..RegisterResponse::default()
        };
        assert_eq!(registration.handle(expired.clone(), &mut rng), Step::KeyRotated);
        let request = registration.request(Hostinfo::default());
        assert_eq!(request.old_node_key, old);
        assert_ne!(request.node_key, old);
        assert!(
            matches!(registration.handle(expired, &mut rng), Step::Refused { .. }),
            "no endless rotation"
        );
    }

    #[test]
    fn a_rotation_cut_short_by_a_restart_still_names_the_key_that_the_server_knows() {
        let mut rng = StdRng::seed_from_u64(2);
        let known = NodePrivate::generate(&mut rng).public();
        let mut registration = Registration::new(NodePrivate::generate(&mut rng), Some(known), None, false);
        let expired = RegisterResponse {
            node_key_expired: true,
            ..RegisterResponse::default()
        };
        assert_eq!(registration.handle(expired, &mut rng), Step::KeyRotated);
        assert_eq!(registration.request(Hostinfo::default()).old_node_key, known);
    }

    #[test]
    fn a_logout_names_a_time_in_the_past() {
        let key = NodePrivate::generate(&mut StdRng::seed_from_u64(3)).public();
        let request = logout_request(key);
        assert_eq!(request.node_key, key);
        assert_eq!(request.expiry.unwrap().as_second(), 123);
    }
}
