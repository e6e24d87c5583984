//! Names of the objects tailwharf makes.

use sha2::{Digest, Sha256};

use crate::contract::{DEFAULT_POOL, MAX_IDENTITY_NAME, MAX_POOL_NAME, PARKED_POOL};

/// The identity of the operator's own device.
pub const OPERATOR_IDENTITY: &str = "ts-operator";
/// The pool of the API-server proxy, which hosts that identity where it is on. Its objects are the administrator's.
pub const API_SERVER_PROXY_POOL: &str = "apiserver-proxy";

const PREFIX: &str = "ts-";
const POOL_PREFIX: &str = "tailwharf-";
const SUFFIX: usize = 5;
/// The characters of Kubernetes' own generated suffixes: no vowels and no digits that look like letters, so no words.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether a device with this full name got a number after the name that it asked for, as it does where another device of the tailnet has that name.
#[must_use]
pub fn is_numbered(fqdn: &str, hostname: &str) -> bool {
    let label = fqdn.split('.').next().unwrap_or_default();
    let Some((name, number)) = label.rsplit_once('-') else {
        return false;
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number && name.eq_ignore_ascii_case(hostname)
}

/// The name of the identity made for a parent: `ts-<parent>-<5 characters>`, at most 52 bytes.
///
/// The suffix is drawn from the parent's UID, so that the name is known before the object exists: making it twice makes it once.
#[must_use]
pub fn identity_name(parent: &str, uid: &str) -> String {
    name_within(MAX_IDENTITY_NAME, parent, uid)
}

/// The name of one of several identities made for a parent: `ts-<parent>-<5 characters>-<ordinal>`, at most 52 bytes.
#[must_use]
pub fn replica_name(parent: &str, uid: &str, ordinal: usize) -> String {
    let ending = format!("-{ordinal}");
    name_within(MAX_IDENTITY_NAME - ending.len(), parent, uid) + &ending
}

fn name_within(limit: usize, parent: &str, uid: &str) -> String {
    let room = limit - PREFIX.len() - SUFFIX - 1;
    let base: String = parent
        .chars()
        .map(|c| if c == '.' { '-' } else { c })
        .take(room)
        .collect();
    format!("{PREFIX}{}-{}", base.trim_end_matches('-'), suffix(uid))
}

fn suffix(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .take(SUFFIX)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

/// The pool whose pods are as a ProxyClass says: of the same name, if a pool may have it.
#[must_use]
pub fn pool_of_class(class: &str) -> String {
    let taken = [DEFAULT_POOL, API_SERVER_PROXY_POOL, PARKED_POOL].contains(&class);
    match taken || class.contains('.') {
        true => pool_like(class),
        false => pool_named(class),
    }
}

/// The pool of an identity that needs a pod of its own.
#[must_use]
pub fn pool_of_identity(identity: &str) -> String {
    pool_named(identity)
}

fn pool_named(name: &str) -> String {
    match name.len() <= MAX_POOL_NAME {
        true => name.to_owned(),
        false => pool_like(name),
    }
}

fn pool_like(name: &str) -> String {
    let base: String = name
        .chars()
        .map(|c| if c == '.' { '-' } else { c })
        .take(MAX_POOL_NAME - SUFFIX - 1)
        .collect();
    format!("{}-{}", base.trim_end_matches('-'), suffix(name))
}

/// The name of an identity's state Secret.
#[must_use]
pub fn secret_name(identity: &str) -> String {
    format!("{identity}-0")
}

/// The name of an egress Service's EndpointSlice for one address family.
#[must_use]
pub fn endpoint_slice_name(identity: &str, ipv6: bool) -> String {
    format!("{identity}-{}", if ipv6 { "ipv6" } else { "ipv4" })
}

/// The name of the Secret with the certificates that people provide for an identity's own names. The operator alone writes it.
#[must_use]
pub fn certificates_name(identity: &str) -> String {
    format!("{identity}-certs")
}

/// The name of the Secret with a pool's accounts at certificate authorities. The operator makes it empty, the pool's pods write into it.
#[must_use]
pub fn account_secret_name(pool: &str) -> String {
    format!("{}-acme", pool_objects_name(pool))
}

/// The name of a pool's StatefulSet, ServiceAccount, Role, RoleBinding and PodDisruptionBudget.
#[must_use]
pub fn pool_objects_name(pool: &str) -> String {
    format!("{POOL_PREFIX}{pool}")
}

/// The pool of a pod, by the pod's name.
#[must_use]
pub fn pool_of_pod(pod: &str) -> Option<&str> {
    let (set, ordinal) = pod.rsplit_once('-')?;
    ordinal.parse::<u32>().ok()?;
    set.strip_prefix(POOL_PREFIX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_show_the_parent() {
        assert_eq!(
            identity_name("nginx", "11111111-2222-3333-4444-555555555555"),
            identity_name("nginx", "11111111-2222-3333-4444-555555555555")
        );
        assert!(identity_name("nginx", "a").starts_with("ts-nginx-"));
        assert_ne!(identity_name("nginx", "a"), identity_name("nginx", "b"));
    }

    #[test]
    fn pools_have_the_name_of_their_class_or_one_like_it() {
        assert_eq!(pool_of_class("fast"), "fast");
        assert_ne!(pool_of_class("default"), "default");
        assert_ne!(pool_of_class("none"), "none");
        assert!(pool_of_class("gpu.example.com").starts_with("gpu-example-com-"));
    }

    proptest! {
        #[test]
        fn names_of_pools_are_dns_labels_within_their_limit(class in "[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?") {
            let name = pool_of_class(&class);
            prop_assert!(name.len() <= MAX_POOL_NAME, "{name}");
            prop_assert!(name.parse::<crate::Hostname>().is_ok(), "{name}");
        }

        #[test]
        fn replicas_differ_in_their_ordinal(parent in "[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", ordinal in 0..50_usize) {
            let name = replica_name(&parent, "uid", ordinal);
            prop_assert!(name.len() <= MAX_IDENTITY_NAME, "{name}");
            prop_assert!(name.ends_with(&format!("-{ordinal}")), "{name}");
        }

        #[test]
        fn names_are_dns_labels_within_their_limit(parent in "[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", uid in "[0-9a-f-]{36}") {
            let name = identity_name(&parent, &uid);
            prop_assert!(name.len() <= MAX_IDENTITY_NAME);
            prop_assert!(name.parse::<crate::Hostname>().is_ok(), "{name}");
            let (rest, suffix) = name.rsplit_once('-').unwrap_or_default();
            prop_assert!(suffix.len() == SUFFIX && !rest.ends_with('-'), "{name}");
        }
    }
}
