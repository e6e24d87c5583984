//! A checked policy: every name is defined, every rule is understood.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value as Json;
use tailwharf_wire::tailcfg::PortRange;

use crate::hujson::Position;
use crate::ipset::IpRange;
use crate::posture::{Assertion, Attributes};
use crate::{PolicyError, Role, Tag};

/// A checked policy document.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Group → logins in lower case.
    pub(crate) groups: BTreeMap<String, BTreeSet<String>>,
    pub(crate) tag_owners: BTreeMap<Tag, Vec<Selector>>,
    /// `None` if neither `acls` nor `grants` is given: everything is allowed.
    pub(crate) rules: Option<Vec<Rule>>,
    pub(crate) node_attributes: Vec<NodeAttributes>,
    pub(crate) approvers: Approvers,
    pub(crate) tests: Vec<Test>,
    pub(crate) warnings: Vec<PolicyError>,
}

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

/// Who or what a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Selector {
    Any,
    /// The login in lower case.
    User(String),
    Group(String),
    Tag(Tag),
    Range(IpRange),
    Auto(Autogroup),
}

/// A set that is defined by what its members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Autogroup {
    /// Devices of users.
    Member,
    /// Tagged devices.
    Tagged,
    /// Devices of administrators, owners included.
    Admin,
    /// Devices of owners.
    Owner,
    /// As a destination: other devices of the same user.
    OwnDevices,
    /// As a destination: the public internet by way of exit nodes.
    Internet,
    /// As a source: every address there is.
    DangerAll,
}

/// One entry of `acls` or `grants`.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) sources: Vec<Selector>,
    /// One of them must hold for a source. None: every source is good.
    pub(crate) postures: Vec<Arc<[Assertion]>>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) application: Option<Application>,
}

/// Destinations and ports that a rule opens for one choice of protocols.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// IP protocol numbers. None: TCP, UDP, ICMP and ICMPv6.
    pub(crate) protocols: Vec<u8>,
    pub(crate) targets: Vec<(Selector, Vec<PortRange>)>,
}

/// Protocols that have ports: TCP, UDP, DCCP, SCTP.
pub(crate) const WITH_PORTS: &[u8] = &[6, 17, 33, 132];

/// Capabilities that a rule gives to its sources at its destinations.
#[derive(Clone, Debug)]
pub(crate) struct Application {
    pub(crate) destinations: Vec<Selector>,
    pub(crate) capabilities: BTreeMap<String, Vec<Json>>,
}

/// One entry of `nodeAttrs`.
#[derive(Clone, Debug)]
pub(crate) struct NodeAttributes {
    pub(crate) targets: Vec<Selector>,
    pub(crate) attributes: BTreeMap<String, Vec<Json>>,
}

/// The section `autoApprovers`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Approvers {
    pub(crate) routes: Vec<(IpNet, Vec<Selector>)>,
    pub(crate) exit_node: Vec<Selector>,
}

/// One entry of `tests`.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) source: Selector,
    pub(crate) attributes: Attributes,
    pub(crate) protocol: Option<u8>,
    pub(crate) accept: Vec<Probe>,
    pub(crate) deny: Vec<Probe>,
}

/// A destination that a test tries.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) at: Position,
    pub(crate) text: String,
    pub(crate) target: Selector,
    pub(crate) port: u16,
}

impl Policy {
    /// The policy of a tailnet that has none: everything is allowed.
    pub fn allow_all() -> Self {
        Self {
            groups: BTreeMap::new(),
            tag_owners: BTreeMap::new(),
            rules: None,
            node_attributes: Vec::new(),
            approvers: Approvers::default(),
            tests: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Parts of the document that are well formed but have no effect on this server.
    pub fn warnings(&self) -> &[PolicyError] {
        &self.warnings
    }

    /// Whether `tagOwners` has the tag.
    pub fn has_tag(&self, tag: &Tag) -> bool {
        self.tag_owners.contains_key(tag)
    }

    /// Whether the principal may give the tag to a device. Administrators may give every tag of `tagOwners`; tags may give
    /// themselves and what they own.
    pub fn may_assign_tag(&self, owner: &Principal, tag: &Tag) -> bool {
        let Some(owners) = self.tag_owners.get(tag) else {
            return false;
        };
        match owner {
            Principal::User {
                role: Role::Admin | Role::Owner,
                ..
            } => true,
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

    /// Whether one of the selectors names the principal.
    fn names(&self, selectors: &[Selector], principal: &Principal) -> bool {
        selectors.iter().any(|selector| match (selector, principal) {
            (Selector::Any, _) => true,
            (Selector::User(name), Principal::User { login, .. }) => name.eq_ignore_ascii_case(login),
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

impl Rule {
    /// What holds if a policy has no rules: everything in the tailnet may reach everything.
    pub(crate) fn allow_all() -> Self {
        let targets = vec![(Selector::Any, vec![PortRange::ANY])];
        let flows = vec![Flow {
            protocols: Vec::new(),
            targets,
        }];
        Self {
            sources: vec![Selector::Any],
            postures: Vec::new(),
            flows,
            application: None,
        }
    }
}

impl Selector {
    /// Whether this names nodes by whose they are. Others speak of addresses.
    pub(crate) fn is_identity(&self) -> bool {
        !matches!(
            self,
            Self::Any | Self::Range(_) | Self::Auto(Autogroup::DangerAll)
        )
    }

    /// Whether this is `autogroup:self`.
    pub(crate) fn is_own_devices(&self) -> bool {
        *self == Self::Auto(Autogroup::OwnDevices)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::User(name) | Self::Group(name) => f.write_str(name),
            Self::Tag(tag) => tag.fmt(f),
            Self::Range(range) => range.fmt(f),
            Self::Auto(group) => f.write_str(group.name()),
        }
    }
}

impl Autogroup {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Member,
        Self::Tagged,
        Self::Admin,
        Self::Owner,
        Self::OwnDevices,
        Self::Internet,
        Self::DangerAll,
    ];

    /// The name in policies.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Member => "autogroup:member",
            Self::Tagged => "autogroup:tagged",
            Self::Admin => "autogroup:admin",
            Self::Owner => "autogroup:owner",
            Self::OwnDevices => "autogroup:self",
            Self::Internet => "autogroup:internet",
            Self::DangerAll => "autogroup:danger-all",
        }
    }

    /// Whether users with this role are members.
    pub(crate) fn has_role(self, role: Role) -> bool {
        match self {
            Self::Member => true,
            Self::Admin => role >= Role::Admin,
            Self::Owner => role == Role::Owner,
            Self::Tagged | Self::OwnDevices | Self::Internet | Self::DangerAll => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Policy, Principal};
    use crate::Role;

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
            },
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
}
