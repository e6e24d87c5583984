//! The policy's own tests: each is tried on a small tailnet made of just its source and its destination.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tailwharf_wire::tailcfg::{NodeId, UserId};

use crate::model::{Selector, Test};
use crate::{Attributes, Node, Owner, Policy, PolicyError, Problem, Role, Tailnet, User, compile};

/// IP protocol number of TCP, which tests without a protocol mean.
const TCP: u8 = 6;

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

/// Ids of the users that stand for logins that the tailnet does not have.
const UNKNOWN_USERS: i64 = i64::MAX >> 1;

impl Policy {
    /// Runs the policy's own tests. Users, groups and tags are tried with a device made up for the test, so that a test
    /// holds whatever devices there are; an address that a node has is tried as that node.
    ///
    /// # Errors
    ///
    /// Every expectation that does not hold, at the place of its destination.
    pub fn check(&self, tailnet: &Tailnet) -> Result<(), Vec<PolicyError>> {
        let failures: Vec<_> = self
            .tests
            .iter()
            .flat_map(|test| self.check_test(test, tailnet))
            .collect();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }

    fn check_test(&self, test: &Test, tailnet: &Tailnet) -> Vec<PolicyError> {
        let mut failures = Vec::new();
        for source in self.stand_for(&test.source) {
            let probes = test.accept.iter().map(|probe| (probe, "accepted"));
            for (probe, expected) in probes.chain(test.deny.iter().map(|probe| (probe, "denied"))) {
                for destination in self.stand_for(&probe.target) {
                    let allowed = self.try_one(tailnet, &source, test, &destination, probe.port);
                    let found = if allowed { "accepted" } else { "denied" };
                    if found != expected {
                        let (source, destination) = (source.to_string(), probe.text.clone());
                        let what = Problem::TestFailed {
                            source_name: source,
                            destination,
                            found,
                            expected,
                        };
                        failures.push(PolicyError::new(probe.at, what));
                    }
                }
            }
        }
        failures
    }

    /// The single things that a selector stands for: a group stands for each of its members.
    fn stand_for(&self, selector: &Selector) -> Vec<Selector> {
        match selector {
            Selector::Group(group) => self
                .groups
                .get(group)
                .into_iter()
                .flatten()
                .cloned()
                .map(Selector::User)
                .collect(),
            other => vec![other.clone()],
        }
    }

    fn try_one(
        &self,
        tailnet: &Tailnet,
        source: &Selector,
        test: &Test,
        destination: &Selector,
        port: u16,
    ) -> bool {
        let mut stage = Tailnet {
            prefixes: tailnet.prefixes.clone(),
            users: tailnet.users.clone(),
            nodes: Vec::new(),
            services: Vec::new(),
        };
        let from = place(
            &mut stage,
            tailnet,
            source,
            stand_in(tailnet, 0),
            &test.attributes,
        );
        let to = place(
            &mut stage,
            tailnet,
            destination,
            stand_in(tailnet, 1),
            &Attributes::new(),
        );
        compile(self, &stage).allows(from, to, test.protocol.unwrap_or(TCP), port)
    }
}

/// Puts the device that a selector stands for on the stage, and gives its address.
fn place(
    stage: &mut Tailnet,
    tailnet: &Tailnet,
    who: &Selector,
    address: IpAddr,
    attributes: &Attributes,
) -> IpAddr {
    let owner = match who {
        Selector::Tag(tag) => Owner::Tags([tag.clone()].into()),
        Selector::User(login) => Owner::User(user_id(stage, login)),
        Selector::Range(range) => {
            let ip = range.first();
            let known = tailnet.nodes.iter().find(|node| node.addresses.contains(&ip));
            if let Some(node) = known.filter(|node| stage.nodes.iter().all(|placed| placed.id != node.id)) {
                let mut node = node.clone();
                node.attributes.extend(attributes.clone());
                stage.nodes.push(node);
            }
            return ip;
        }
        // The parser lets neither of these into a test; groups were taken apart.
        Selector::Any | Selector::Auto(_) | Selector::Group(_) => return address,
    };
    let id = NodeId(i64::MAX - i64::try_from(stage.nodes.len()).unwrap_or(0));
    let attributes = attributes.clone();
    stage.nodes.push(Node {
        id,
        owner,
        addresses: vec![address],
        routes: Vec::new(),
        services: Default::default(),
        attributes,
    });
    address
}

/// The id of a user, who joins the stage if need be.
fn user_id(stage: &mut Tailnet, login: &str) -> UserId {
    if let Some(user) = stage
        .users
        .iter()
        .find(|user| user.login.eq_ignore_ascii_case(login))
    {
        return user.id;
    }
    let id = UserId(UNKNOWN_USERS + i64::try_from(stage.users.len()).unwrap_or(0));
    stage.users.push(User {
        id,
        login: login.to_owned(),
        role: Role::Member,
    });
    id
}
