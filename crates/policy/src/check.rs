//! The policy's own tests: each is tried on a small tailnet made of just its source and its destination.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use tailwharf_wire::tailcfg::{NodeId, UserId};

use crate::graph::SshQuestion;
use crate::model::{Probe, Selector, SshTest, Test};
use crate::{
    Attributes, Change, Graph, Node, Owner, Policy, PolicyError, Problem, Role, Service, Tailnet, User,
};

/// IP protocol number of TCP, which tests without a protocol mean.
const TCP: u8 = 6;

/// Ids of the users that stand for logins that the tailnet does not have.
const UNKNOWN_USERS: i64 = i64::MAX >> 1;

/// How many failures are told.
const MAX_FAILURES: usize = 50;

/// One end of what a test tries.
struct End {
    address: IpAddr,
    node: Option<NodeId>,
}

/// Runs the tests of one policy.
struct Stage<'a> {
    policy: &'a Policy,
    tailnet: &'a Tailnet,
    /// The users of the tailnet by login in lower case.
    users: HashMap<String, UserId>,
    /// The logins of the tests that the tailnet does not have, in order.
    strangers: Vec<&'a str>,
    nodes: HashMap<IpAddr, &'a Node>,
    /// The policy with the users and services of the tailnet, without nodes.
    empty: Graph,
    failures: Vec<PolicyError>,
}

impl Policy {
    /// Runs the policy's own tests. Users, groups and tags are tried with a device made up for the test, so that a test
    /// holds whatever devices there are; an address that a node has is tried as that node.
    ///
    /// # Errors
    ///
    /// The expectations that do not hold, at most 50, each at its place in the text.
    pub fn check(&self, tailnet: &Tailnet) -> Result<(), Vec<PolicyError>> {
        if self.tests.is_empty() && self.ssh_tests.is_empty() {
            return Ok(());
        }
        let users: HashMap<String, UserId> = tailnet
            .users
            .iter()
            .map(|user| (user.login.to_ascii_lowercase(), user.id))
            .collect();
        let mut stage = Stage {
            policy: self,
            tailnet,
            strangers: self.strangers(&users),
            users,
            nodes: tailnet
                .nodes
                .iter()
                .flat_map(|node| node.addresses.iter().map(move |ip| (*ip, node)))
                .collect(),
            empty: Graph::new(
                Arc::new(self.clone()),
                &Tailnet {
                    nodes: Vec::new(),
                    ..tailnet.clone()
                },
            ),
            failures: Vec::new(),
        };
        for test in &self.tests {
            stage.run(test);
        }
        for test in &self.ssh_tests {
            stage.run_ssh(test);
        }
        stage.failures.truncate(MAX_FAILURES);
        match stage.failures.is_empty() {
            true => Ok(()),
            false => Err(stage.failures),
        }
    }

    /// How many rules all tests look at.
    pub(crate) fn test_steps(&self) -> usize {
        let count = |selector: &Selector| match selector {
            Selector::Group(group) => self.groups.get(group).map_or(1, |members| members.len().max(1)),
            _ => 1,
        };
        let flows = self.tests.iter().map(|test| {
            let probes = test.accept.iter().chain(&test.deny);
            count(&test.source) * probes.map(|probe| count(&probe.target)).sum::<usize>()
        });
        let logins = self.ssh_tests.iter().map(|test| {
            let targets: usize = test.destinations.iter().map(count).sum();
            count(&test.source) * targets * test.expected.len()
        });
        let rules = self.rules.as_ref().map_or(1, Vec::len) + self.ssh.len();
        flows.chain(logins).sum::<usize>().saturating_mul(rules)
    }

    /// The logins that tests name and that are none of these.
    fn strangers(&self, known: &HashMap<String, UserId>) -> Vec<&str> {
        let tests = self.tests.iter().flat_map(|test| {
            let probes = test.accept.iter().chain(&test.deny).map(|probe| &probe.target);
            probes.chain([&test.source])
        });
        let ssh = self
            .ssh_tests
            .iter()
            .flat_map(|test| test.destinations.iter().chain([&test.source]));
        let mut names = BTreeSet::new();
        for selector in tests.chain(ssh) {
            match selector {
                Selector::User(login) => {
                    names.insert(login.as_str());
                }
                Selector::Group(group) => {
                    names.extend(self.groups.get(group).into_iter().flatten().map(String::as_str));
                }
                _ => {}
            }
        }
        names
            .into_iter()
            .filter(|login| !known.contains_key(*login))
            .collect()
    }

    /// The single things that a selector stands for: a group stands for each of its members.
    fn stand_for(&self, selector: &Selector) -> Vec<Selector> {
        match selector {
            Selector::Group(group) => {
                let members = self.groups.get(group).into_iter().flatten();
                members.cloned().map(Selector::User).collect()
            }
            other => vec![other.clone()],
        }
    }
}

impl Stage<'_> {
    fn run(&mut self, test: &Test) {
        for source in self.policy.stand_for(&test.source) {
            let probes = test.accept.iter().map(|probe| (probe, "accepted"));
            for (probe, expected) in probes.chain(test.deny.iter().map(|probe| (probe, "denied"))) {
                self.run_probe(test, &source, probe, expected);
            }
        }
    }

    fn run_probe(&mut self, test: &Test, source: &Selector, probe: &Probe, expected: &'static str) {
        for destination in self.policy.stand_for(&probe.target) {
            let mut graph = self.empty.clone();
            let from = self.place(&mut graph, source, 0, &test.attributes);
            let to = self.place(&mut graph, &destination, 1, &Attributes::new());
            let protocol = test.protocol.unwrap_or(TCP);
            let allowed = graph.allows(from.address, to.address, protocol, probe.port);
            let found = if allowed { "accepted" } else { "denied" };
            if found != expected {
                let what = Problem::TestFailed {
                    source_name: source.to_string(),
                    destination: probe.text.clone(),
                    found,
                    expected,
                };
                self.failures.push(PolicyError::new(probe.at, what));
            }
        }
    }

    fn run_ssh(&mut self, test: &SshTest) {
        let destinations: Vec<Selector> = test
            .destinations
            .iter()
            .flat_map(|destination| self.policy.stand_for(destination))
            .collect();
        for source in self.policy.stand_for(&test.source) {
            for destination in &destinations {
                let mut graph = self.empty.clone();
                let from = self.place(&mut graph, &source, 0, &test.attributes);
                let to = self.place(&mut graph, destination, 1, &Attributes::new());
                for (at, user, expected) in &test.expected {
                    let found = match (from.node, to.node) {
                        (Some(source), Some(target)) => {
                            graph.ssh_verdict(&SshQuestion { source, target, user })
                        }
                        _ => crate::model::SshVerdict::Deny,
                    };
                    if found != *expected {
                        let what = Problem::TestFailed {
                            source_name: source.to_string(),
                            destination: format!("{user} on {destination}"),
                            found: found.name(),
                            expected: expected.name(),
                        };
                        self.failures.push(PolicyError::new(*at, what));
                    }
                }
            }
        }
    }

    /// Puts the device that a selector stands for on the stage. Sources have number 0, destinations 1.
    fn place(&self, graph: &mut Graph, who: &Selector, number: u8, attributes: &Attributes) -> End {
        let address = stand_in(self.tailnet, number);
        let owner = match who {
            Selector::Tag(tag) => Owner::Tags([tag.clone()].into()),
            Selector::User(login) => Owner::User(self.user(graph, login)),
            Selector::Addresses(set) => {
                let address = set.first().unwrap_or(address);
                return self.place_address(graph, address, attributes);
            }
            Selector::Service(name) => return self.place_service(graph, name, address),
            // The parser lets none of these into a test; groups were taken apart.
            Selector::Any | Selector::Auto(_) | Selector::Group(_) | Selector::Domain(_) => {
                return End { address, node: None };
            }
        };
        let id = NodeId(i64::MAX - i64::from(number));
        graph.apply(Change::PutNode(Node {
            id,
            owner,
            addresses: vec![address],
            routes: Vec::new(),
            services: Default::default(),
            attributes: attributes.clone(),
        }));
        End {
            address,
            node: Some(id),
        }
    }

    /// An address that a node has is that node.
    fn place_address(&self, graph: &mut Graph, address: IpAddr, attributes: &Attributes) -> End {
        let known = self.nodes.get(&address);
        if let Some(node) = known {
            let mut node = Node::clone(node);
            node.attributes.extend(attributes.clone());
            graph.apply(Change::PutNode(node));
        }
        End {
            address,
            node: known.map(|node| node.id),
        }
    }

    /// A service that does not exist yet gets an address for the test.
    fn place_service(&self, graph: &mut Graph, name: &str, address: IpAddr) -> End {
        let known = self.tailnet.services.iter().find(|service| service.name == *name);
        let known = known.and_then(|service| service.addresses.first().copied());
        if known.is_none() {
            graph.apply(Change::PutService(Service {
                name: name.to_owned(),
                addresses: vec![address],
                tags: Default::default(),
            }));
        }
        End {
            address: known.unwrap_or(address),
            node: None,
        }
    }

    /// The id of a user, who joins the stage if need be. Names of users have lower case in policies.
    fn user(&self, graph: &mut Graph, login: &str) -> UserId {
        if let Some(id) = self.users.get(login) {
            return *id;
        }
        let position = self.strangers.binary_search(&login).unwrap_or_else(|next| next);
        let id = UserId(UNKNOWN_USERS + i64::try_from(position).unwrap_or_default());
        graph.apply(Change::PutUser(User {
            id,
            login: login.to_owned(),
            role: Role::Member,
        }));
        id
    }
}

/// The address of a device that stands for a source (0) or a destination (1): among the last ones of the tailnet's first
/// prefix, so that `*` and prefixes mean it as they mean any device.
fn stand_in(tailnet: &Tailnet, number: u8) -> IpAddr {
    match tailnet.prefixes.first().map(IpNet::broadcast) {
        Some(IpAddr::V4(last)) => {
            Ipv4Addr::from_bits(last.to_bits().saturating_sub(1 + u32::from(number))).into()
        }
        Some(IpAddr::V6(last)) => {
            Ipv6Addr::from_bits(last.to_bits().saturating_sub(1 + u128::from(number))).into()
        }
        None => Ipv4Addr::new(100, 64, 0, 1 + number).into(),
    }
}
