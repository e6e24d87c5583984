//! Which member of a pool hosts which identity: rendezvous hashing over the live members.
//!
//! Every member computes the same answer from the same live set, without talking. When a member leaves, only what it
//! hosted moves; when one joins, it takes its share from all others evenly.

use sha2::{Digest, Sha256};

/// The members in the order in which they are to host `identity`: the owner first, then who takes over from it.
pub(crate) fn ranking<'a>(identity: &str, members: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut ranked: Vec<([u8; 32], &str)> = members
        .into_iter()
        .map(|member| (weight(member, identity), member))
        .collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().map(|(_, member)| member).collect()
}

/// The weight of one member for one identity. The separator cannot be part of a Kubernetes name, so that no two pairs
/// of names hash the same text.
fn weight(member: &str, identity: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(member.as_bytes());
    hash.update(b"/");
    hash.update(identity.as_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn owners(identities: &[String], members: &BTreeSet<String>) -> BTreeMap<String, String> {
        identities
            .iter()
            .map(|i| {
                (
                    i.clone(),
                    ranking(i, members.iter().map(String::as_str))[0].to_owned(),
                )
            })
            .collect()
    }

    #[test]
    fn golden_owners() {
        let members = [
            "tailwharf-default-0",
            "tailwharf-default-1",
            "tailwharf-default-2",
        ];
        let owner = |identity| ranking(identity, members);
        assert_eq!(
            owner("ts-nginx-abcde"),
            [
                "tailwharf-default-0",
                "tailwharf-default-1",
                "tailwharf-default-2"
            ]
        );
        assert_eq!(ranking("ts-nginx-abcde", []), Vec::<&str>::new());
    }

    #[test]
    fn spreads_evenly() {
        let identities: Vec<String> = (0..3000).map(|n| format!("ts-service-{n}")).collect();
        let members: BTreeSet<String> = (0..3).map(|n| format!("tailwharf-default-{n}")).collect();
        let mut share = BTreeMap::new();
        for owner in owners(&identities, &members).into_values() {
            *share.entry(owner).or_insert(0) += 1;
        }
        assert!(share.values().all(|n| (850..=1150).contains(n)), "{share:?}");
    }

    proptest! {
        #[test]
        fn only_identities_of_the_lost_member_move(
            identities in prop::collection::vec("[a-z0-9-]{1,20}", 1..40),
            members in prop::collection::btree_set("[a-z0-9-]{1,12}", 2..8),
            lost in any::<prop::sample::Index>(),
        ) {
            let lost = members.iter().nth(lost.index(members.len())).unwrap().clone();
            let mut left = members.clone();
            left.remove(&lost);
            let (before, after) = (owners(&identities, &members), owners(&identities, &left));
            for identity in &identities {
                if before[identity] == lost {
                    let second = ranking(identity, members.iter().map(String::as_str))[1];
                    prop_assert_eq!(&after[identity], second);
                } else {
                    prop_assert_eq!(&after[identity], &before[identity]);
                }
            }
        }

        #[test]
        fn the_order_of_members_does_not_matter(
            identity in "[a-z0-9-]{1,20}",
            members in prop::collection::btree_set("[a-z0-9-]{1,12}", 1..8),
        ) {
            let forward = ranking(&identity, members.iter().map(String::as_str));
            let backward = ranking(&identity, members.iter().rev().map(String::as_str));
            prop_assert_eq!(forward, backward);
        }
    }
}
