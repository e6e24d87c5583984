//! Which rules concern somebody or something, before a policy is put in force.

use std::net::IpAddr;

use tailwharf_wire::tailcfg::PortRange;

use crate::model::{Autogroup, Rule, Selector};
use crate::{Node, Owner, Policy, Role, Tailnet};

/// A rule that concerns what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The line of the rule in the policy, from 1.
    pub line: u32,
    /// Its sources, as they are written.
    pub sources: Vec<String>,
    /// What it opens, each as `destination:ports`.
    pub openings: Vec<String>,
}

impl Policy {
    /// The rules that let a person reach something, in their order.
    pub fn preview_user(&self, tailnet: &Tailnet, login: &str) -> Vec<Match> {
        let login = login.to_ascii_lowercase();
        let user = tailnet
            .users
            .iter()
            .find(|user| user.login.eq_ignore_ascii_case(&login));
        let role = user.map(|user| user.role).unwrap_or_default();
        self.matches(|rule| {
            let named = rule
                .sources
                .iter()
                .any(|source| self.names_user(source, &login, role));
            named.then(|| openings(rule, |_, _| true))
        })
    }

    /// The rules that let somebody reach an address at a port, in their order.
    pub fn preview_address(&self, tailnet: &Tailnet, address: IpAddr, port: u16) -> Vec<Match> {
        let node = tailnet
            .nodes
            .iter()
            .find(|node| node.addresses.contains(&address));
        let service = tailnet
            .services
            .iter()
            .find(|service| service.addresses.contains(&address));
        let is_meant = |target: &Selector| match target {
            Selector::Any => true,
            Selector::Addresses(set) => set.contains(address),
            Selector::Service(name) => service.is_some_and(|service| service.name == *name),
            Selector::Tag(tag) if service.is_some_and(|service| service.tags.contains(tag)) => true,
            Selector::Auto(Autogroup::OwnDevices) => {
                node.is_some_and(|node| matches!(node.owner, Owner::User(_)))
            }
            target => node.is_some_and(|node| self.names_node(tailnet, target, node)),
        };
        self.matches(|rule| {
            let open = openings(rule, |target, ports| {
                (ports.first..=ports.last).contains(&port) && is_meant(target)
            });
            (!open.is_empty()).then_some(open)
        })
    }

    fn matches(&self, openings: impl Fn(&Rule) -> Option<Vec<String>>) -> Vec<Match> {
        let rules = self.rules.iter().flatten();
        rules
            .filter_map(|rule| {
                Some(Match {
                    line: rule.line,
                    openings: openings(rule)?,
                    sources: rule.sources.iter().map(ToString::to_string).collect(),
                })
            })
            .collect()
    }

    fn names_node(&self, tailnet: &Tailnet, selector: &Selector, node: &Node) -> bool {
        match &node.owner {
            Owner::User(id) => {
                let user = tailnet.users.iter().find(|user| user.id == *id);
                user.is_some_and(|user| {
                    self.names_user(selector, &user.login.to_ascii_lowercase(), user.role)
                })
            }
            Owner::Tags(tags) => match selector {
                Selector::Tag(tag) => tags.contains(tag),
                Selector::Auto(Autogroup::Tagged) => true,
                _ => false,
            },
            Owner::FunnelGateway => false,
        }
    }

    /// Whether a selector means the devices of a person, whose login is in lower case.
    fn names_user(&self, selector: &Selector, login: &str, role: Role) -> bool {
        match selector {
            Selector::Any | Selector::Auto(Autogroup::DangerAll) => true,
            Selector::User(name) => name == login,
            Selector::Domain(domain) => login.rsplit_once('@').is_some_and(|(_, own)| own == domain),
            Selector::Group(group) => self
                .groups
                .get(group)
                .is_some_and(|members| members.contains(login)),
            Selector::Auto(group) => group.has_role(role),
            Selector::Tag(_) | Selector::Addresses(_) | Selector::Service(_) => false,
        }
    }
}

/// What a rule opens, as far as it is wanted.
fn openings(rule: &Rule, wanted: impl Fn(&Selector, &PortRange) -> bool) -> Vec<String> {
    let targets = rule.flows.iter().flat_map(|flow| &flow.targets);
    let mut openings: Vec<String> = Vec::new();
    for (selector, ports) in targets {
        let texts = ports.iter().filter(|ports| wanted(selector, ports));
        openings.extend(texts.map(|ports| format!("{selector}:{}", text(*ports))));
    }
    openings.dedup();
    openings
}

fn text(ports: PortRange) -> String {
    match (ports.first, ports.last) {
        (0, u16::MAX) => "*".to_owned(),
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    }
}

#[cfg(test)]
mod tests {
    use tailwharf_wire::tailcfg::{NodeId, UserId};

    use super::*;
    use crate::User;

    const POLICY: &str = r#"{
        "groups": {"group:dev": ["bob@example.com"]},
        "tagOwners": {"tag:web": []},
        "acls": [
            {"action": "accept", "src": ["autogroup:admin"], "dst": ["*:*"]},
            {"action": "accept", "src": ["group:dev"], "dst": ["tag:web:80,443", "10.0.0.0/8:22-30"]},
        ],
        "grants": [
            {"src": ["*"], "dst": ["tag:web"], "ip": ["udp:53"]},
        ],
    }"#;

    fn tailnet() -> Tailnet {
        let user = |id, login: &str, role| User {
            id: UserId(id),
            login: login.to_owned(),
            role,
        };
        Tailnet {
            users: vec![
                user(1, "Alice@example.com", Role::Owner),
                user(2, "bob@example.com", Role::Member),
            ],
            nodes: vec![Node {
                id: NodeId(1),
                owner: Owner::Tags(["tag:web".parse().unwrap()].into()),
                addresses: vec!["100.64.0.1".parse().unwrap()],
                routes: Vec::new(),
                services: Default::default(),
                attributes: Default::default(),
            }],
            ..Tailnet::default()
        }
    }

    fn lines(matches: &[Match]) -> Vec<u32> {
        matches.iter().map(|found| found.line).collect()
    }

    #[test]
    fn the_rules_of_a_person_are_found() {
        let policy = Policy::parse(POLICY).unwrap();
        assert_eq!(
            lines(&policy.preview_user(&tailnet(), "alice@example.com")),
            [5, 9]
        );
        let bob = policy.preview_user(&tailnet(), "BOB@example.com");
        assert_eq!(lines(&bob), [6, 9]);
        assert_eq!(bob[0].sources, ["group:dev"]);
        assert_eq!(bob[0].openings, ["tag:web:80", "tag:web:443", "10.0.0.0/8:22-30"]);
        assert_eq!(lines(&policy.preview_user(&tailnet(), "eve@example.com")), [9]);
    }

    #[test]
    fn the_rules_that_lead_to_an_address_are_found() {
        let policy = Policy::parse(POLICY).unwrap();
        let find = |ip: &str, port| policy.preview_address(&tailnet(), ip.parse().unwrap(), port);
        assert_eq!(lines(&find("100.64.0.1", 443)), [5, 6]);
        assert_eq!(lines(&find("100.64.0.1", 53)), [5, 9]);
        assert_eq!(find("10.1.2.3", 25)[1].openings, ["10.0.0.0/8:22-30"]);
        assert_eq!(lines(&find("192.0.2.1", 443)), [5]);
    }
}
