//! What may be done without asking an administrator: tags, routes and services of one's own devices.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::model::{Autogroup, Selector};
use crate::{Policy, Role, Tag};

/// Who asks for something: a person, or whatever acts in the name of tags (an OAuth client, a tagged node).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A user.
    User {
        /// The user's login.
        login: String,
        /// What the user may do.
        role: Role,
    },
    /// A set of tags.
    Tags(BTreeSet<Tag>),
}

impl Policy {
    /// Whether the principal may give the tag to a device. Administrators may give every tag of `tagOwners`; tags may give
    /// themselves and what they own.
    pub fn may_assign_tag(&self, owner: &Principal, tag: &Tag) -> bool {
        let Some(owners) = self.tag_owners.get(tag) else {
            return false;
        };
        match owner {
            Principal::User { role, .. } if *role >= Role::NetworkAdmin => true,
            Principal::Tags(own) if own.contains(tag) => true,
            _ => self.names(owners, owner),
        }
    }

    /// Whether a route that this principal's device advertises is approved without asking. `0.0.0.0/0` and `::/0` are the
    /// routes of exit nodes.
    pub fn may_advertise(&self, owner: &Principal, route: &IpNet) -> bool {
        if route.prefix_len() == 0 {
            return self.names(&self.approvers.exit_node, owner);
        }
        let approved = |(prefix, approvers): &(IpNet, Vec<Selector>)| {
            prefix.contains(route) && self.names(approvers, owner)
        };
        self.approvers.routes.iter().any(approved)
    }

    /// Whether this principal's device may host a VIP Service, which may have tags, without asking.
    pub fn may_host(&self, owner: &Principal, service: &str, tags: &BTreeSet<Tag>) -> bool {
        let speaks_of_it = |selector: &Selector| match selector {
            Selector::Service(name) => name == service,
            Selector::Tag(tag) => tags.contains(tag),
            _ => false,
        };
        let approved = |(what, approvers): &(Selector, Vec<Selector>)| {
            speaks_of_it(what) && self.names(approvers, owner)
        };
        self.approvers.services.iter().any(approved)
    }

    /// The prefixes that the addresses of this principal's devices come from (`ipPool`): those of the first entry of
    /// `nodeAttrs` that names the principal and has any. Empty if none does.
    pub fn ip_pools(&self, owner: &Principal) -> &[IpNet] {
        let entry = self
            .node_attributes
            .iter()
            .find(|entry| !entry.ip_pool.is_empty() && self.names(&entry.targets, owner));
        entry.map_or(&[], |entry| &entry.ip_pool)
    }

    /// Whether one of the selectors names the principal.
    fn names(&self, selectors: &[Selector], principal: &Principal) -> bool {
        selectors.iter().any(|selector| match (selector, principal) {
            (Selector::Any, _) => true,
            (Selector::User(name), Principal::User { login, .. }) => name.eq_ignore_ascii_case(login),
            (Selector::Domain(domain), Principal::User { login, .. }) => login
                .rsplit_once('@')
                .is_some_and(|(_, of)| of.eq_ignore_ascii_case(domain)),
            (Selector::Group(group), Principal::User { login, .. }) => {
                let members = self.groups.get(group);
                members.is_some_and(|members| members.contains(&login.to_ascii_lowercase()))
            }
            (Selector::Tag(tag), Principal::Tags(tags)) => tags.contains(tag),
            (Selector::Auto(group), Principal::User { role, .. }) => group.has_role(*role),
            (Selector::Auto(group), Principal::Tags(_)) => *group == Autogroup::Tagged,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Policy, Principal, Role};

    fn policy() -> Policy {
        let text = r#"{
            "groups": {"group:ops": ["olga@example.com"]},
            "tagOwners": {
                "tag:k8s-operator": [],
                "tag:k8s": ["tag:k8s-operator"],
                "tag:web": ["tag:k8s", "group:ops", "bob@example.com"],
                "tag:any": ["autogroup:member"],
            },
            "autoApprovers": {
                "routes": {"10.0.0.0/8": ["tag:k8s", "bob@example.com"]},
                "exitNode": ["tag:k8s"],
                "services": {"svc:db": ["tag:k8s"], "tag:web": ["group:ops"]},
            },
            "nodeAttrs": [
                {"target": ["tag:k8s"], "ipPool": ["100.80.0.0/16", "100.90.0.0/24"]},
                {"target": ["autogroup:member"], "ipPool": ["100.100.0.0/16"]},
            ],
        }"#;
        Policy::parse(text).unwrap()
    }

    fn user(login: &str, role: Role) -> Principal {
        Principal::User {
            login: login.to_owned(),
            role,
        }
    }

    fn tags(names: &[&str]) -> Principal {
        Principal::Tags(names.iter().map(|name| name.parse().unwrap()).collect())
    }

    #[test]
    fn tags_are_given_by_their_owners() {
        let policy = policy();
        let may = |who: &Principal, tag: &str| policy.may_assign_tag(who, &tag.parse().unwrap());
        let operator = tags(&["tag:k8s-operator"]);
        assert!(may(&operator, "tag:k8s-operator"), "a tag gives itself");
        assert!(may(&operator, "tag:k8s"));
        assert!(!may(&operator, "tag:web"), "ownership does not pass on");
        assert!(!may(&operator, "tag:any"), "members are people");
        assert!(!may(&operator, "tag:undefined"));
        assert!(!may(&tags(&[]), "tag:k8s"));
        assert!(may(&user("Bob@Example.com", Role::Member), "tag:web"));
        assert!(may(&user("olga@example.com", Role::Member), "tag:web"));
        assert!(!may(&user("carol@example.com", Role::Member), "tag:web"));
        assert!(may(&user("carol@example.com", Role::Member), "tag:any"));
        assert!(may(&user("carol@example.com", Role::Admin), "tag:k8s-operator"));
        assert!(!may(&user("carol@example.com", Role::Admin), "tag:undefined"));
    }

    #[test]
    fn routes_are_approved_within_their_prefix() {
        let policy = policy();
        let may = |who: &Principal, route: &str| policy.may_advertise(who, &route.parse().unwrap());
        assert!(may(&tags(&["tag:k8s"]), "10.1.0.0/16"));
        assert!(may(&tags(&["tag:k8s"]), "10.0.0.0/8"));
        assert!(may(&user("bob@example.com", Role::Member), "10.1.2.3/32"));
        assert!(!may(&tags(&["tag:k8s"]), "0.0.0.0/1"));
        assert!(!may(&tags(&["tag:web"]), "10.1.0.0/16"));
        assert!(may(&tags(&["tag:k8s"]), "::/0"));
        assert!(!may(&user("bob@example.com", Role::Member), "0.0.0.0/0"));
    }

    #[test]
    fn services_are_approved_by_name_and_by_tag() {
        let policy = policy();
        let web = ["tag:web".parse().unwrap()].into();
        let none = Default::default();
        assert!(policy.may_host(&tags(&["tag:k8s"]), "svc:db", &none));
        assert!(!policy.may_host(&tags(&["tag:k8s"]), "svc:site", &web));
        assert!(policy.may_host(&user("olga@example.com", Role::Member), "svc:site", &web));
        assert!(!policy.may_host(&user("olga@example.com", Role::Member), "svc:db", &none));
    }

    #[test]
    fn addresses_come_from_the_pools_of_the_first_entry_that_names_the_device() {
        let policy = policy();
        let pools = |who: &Principal| {
            policy
                .ip_pools(who)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(pools(&tags(&["tag:k8s"])), ["100.80.0.0/16", "100.90.0.0/24"]);
        assert_eq!(pools(&user("bob@example.com", Role::Member)), ["100.100.0.0/16"]);
        assert!(pools(&tags(&["tag:web"])).is_empty());
    }
}
