//! A checked policy: every name is defined, every rule is understood.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value as Json;
use tailwharf_wire::tailcfg::{DerpMap, PortRange};

use crate::hujson::Position;
use crate::ipset::IpSet;
use crate::posture::{Attributes, Posture};
use crate::{PolicyError, Role, Tag};

/// A checked policy document.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Group → logins in lower case, groups in groups resolved.
    pub(crate) groups: BTreeMap<String, BTreeSet<String>>,
    pub(crate) tag_owners: BTreeMap<Tag, Vec<Selector>>,
    /// `None` if neither `acls` nor `grants` is given: everything is allowed.
    pub(crate) rules: Option<Vec<Rule>>,
    pub(crate) ssh: Vec<SshEntry>,
    pub(crate) node_attributes: Vec<NodeAttributes>,
    pub(crate) approvers: Approvers,
    pub(crate) tests: Vec<Test>,
    pub(crate) ssh_tests: Vec<SshTest>,
    pub(crate) settings: Settings,
    pub(crate) derp_map: Option<DerpMap>,
    pub(crate) warnings: Vec<PolicyError>,
}

/// Who or what a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Selector {
    Any,
    /// The login in lower case.
    User(String),
    /// Users whose login ends with `@` and this, in lower case.
    Domain(String),
    Group(String),
    Tag(Tag),
    /// An address, a prefix, a range, a host or an IP set.
    Addresses(Arc<IpSet>),
    /// A VIP Service, with its prefix `svc:`.
    Service(String),
    Auto(Autogroup),
}

/// A set that is defined by what its members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Autogroup {
    /// Devices of users.
    Member,
    /// Tagged devices.
    Tagged,
    /// Devices of users with this role. Administrators include owners.
    Role(Role),
    /// As a destination: other devices of the same user.
    OwnDevices,
    /// As a destination: the public internet by way of exit nodes.
    Internet,
    /// Devices of other tailnets that were shared with this one. There are none.
    Shared,
    /// In `ssh`: every user of a machine but root.
    NonRoot,
    /// As a source: every address there is.
    DangerAll,
    /// The public gateway. No policy can name it.
    FunnelGateway,
}

/// The postures that a source needs: one of them must hold. None: every source is good.
pub(crate) type Postures = Vec<Arc<Posture>>;

/// One entry of `acls` or `grants`.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// The line of the entry, from 1; 0 for a rule that no entry says.
    pub(crate) line: u32,
    pub(crate) sources: Vec<Selector>,
    pub(crate) postures: Postures,
    pub(crate) flows: Vec<Flow>,
    pub(crate) application: Option<Application>,
    /// The tags of the routers by which the destinations are reached. None: any router.
    pub(crate) via: BTreeSet<Tag>,
}

/// Destinations and ports that a rule opens for one choice of protocols.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// IP protocol numbers. None: TCP, UDP, ICMP and ICMPv6.
    pub(crate) protocols: Vec<u8>,
    pub(crate) targets: Vec<(Selector, Arc<[PortRange]>)>,
}

/// The node attribute with which a node may be reached from the internet.
pub const FUNNEL: &str = "funnel";
/// The capability by which nodes know the gateway.
const INGRESS: &str = "https://tailscale.com/cap/ingress";

/// Protocols that have ports: TCP, UDP, DCCP, SCTP.
pub(crate) const WITH_PORTS: &[u8] = &[6, 17, 33, 132];

/// Capabilities that a rule gives to its sources at its destinations.
#[derive(Clone, Debug)]
pub(crate) struct Application {
    pub(crate) destinations: Vec<Selector>,
    pub(crate) capabilities: BTreeMap<String, Vec<Json>>,
    /// The recorders that these name by tags.
    pub(crate) recorders: Vec<Recorders>,
}

/// Recorders of sessions that one value of a capability names. Nodes are told their addresses.
#[derive(Clone, Debug)]
pub(crate) struct Recorders {
    pub(crate) capability: String,
    /// Which of its values, counted from zero.
    pub(crate) position: usize,
    pub(crate) selectors: Vec<Selector>,
}

/// The capability whose values may name recorders.
pub(crate) const KUBERNETES: &str = "tailscale.com/cap/kubernetes";

/// One entry of `ssh`.
#[derive(Clone, Debug)]
pub(crate) struct SshEntry {
    pub(crate) sources: Vec<Selector>,
    pub(crate) postures: Postures,
    pub(crate) destinations: Vec<Selector>,
    pub(crate) users: SshUsers,
    /// `None` accepts; otherwise a sign-in is asked for that is not older than this.
    pub(crate) check: Option<CheckPeriod>,
    pub(crate) accept_env: Vec<String>,
    pub(crate) recorders: Vec<Selector>,
    /// Whether there is no session without a recorder.
    pub(crate) enforce_recorder: bool,
}

/// How old a sign-in may be, in seconds. 0: it is asked for each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckPeriod(pub(crate) u64);

/// The users of a machine as whom somebody may log in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SshUsers {
    pub(crate) names: BTreeSet<String>,
    /// Every user but root.
    pub(crate) nonroot: bool,
    /// The domains of `localpart:*@domain`: a login of the domain may be used by whoever has it, up to its `@`.
    pub(crate) local_parts: BTreeSet<String>,
}

/// One entry of `nodeAttrs`.
#[derive(Clone, Debug)]
pub(crate) struct NodeAttributes {
    pub(crate) targets: Vec<Selector>,
    pub(crate) attributes: BTreeMap<String, Vec<Json>>,
    /// Where the addresses of the targets come from.
    pub(crate) ip_pool: Vec<IpNet>,
}

/// The section `autoApprovers`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Approvers {
    pub(crate) routes: Vec<(IpNet, Vec<Selector>)>,
    pub(crate) exit_node: Vec<Selector>,
    /// A service or a tag of services → whose devices may host it.
    pub(crate) services: Vec<(Selector, Vec<Selector>)>,
}

/// Settings of the whole tailnet that a policy may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) randomize_client_port: bool,
    pub(crate) disable_ipv4: bool,
    pub(crate) one_cgnat_route: Option<bool>,
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

/// One entry of `sshTests`.
#[derive(Clone, Debug)]
pub(crate) struct SshTest {
    pub(crate) source: Selector,
    pub(crate) attributes: Attributes,
    pub(crate) destinations: Vec<Selector>,
    /// Users of the machine, and what should happen to whoever asks for them.
    pub(crate) expected: Vec<(Position, String, SshVerdict)>,
}

/// What happens to somebody who logs in by SSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SshVerdict {
    Accept,
    Check,
    Deny,
}

impl SshVerdict {
    /// The word for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accept => "accepted",
            Self::Check => "checked",
            Self::Deny => "denied",
        }
    }
}

impl Policy {
    /// The policy of a tailnet that has none: everything is allowed.
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// Parts of the document that are well formed but have no effect on this server.
    pub fn warnings(&self) -> &[PolicyError] {
        &self.warnings
    }

    /// The relays that the policy gives, if it does.
    pub fn derp_map(&self) -> Option<&DerpMap> {
        self.derp_map.as_ref()
    }

    /// Whether nodes get no IPv4 address (`disableIPv4`).
    pub fn is_ipv4_disabled(&self) -> bool {
        self.settings.disable_ipv4
    }

    /// Whether `tagOwners` has the tag.
    pub fn has_tag(&self, tag: &Tag) -> bool {
        self.tag_owners.contains_key(tag)
    }
}

impl Rule {
    /// What holds if a policy has no rules: everything in the tailnet may reach everything.
    pub(crate) fn allow_all() -> Self {
        let targets = vec![(Selector::Any, Arc::from([PortRange::ANY]))];
        let flows = vec![Flow {
            protocols: Vec::new(),
            targets,
        }];
        Self {
            line: 0,
            sources: vec![Selector::Any],
            postures: Vec::new(),
            flows,
            application: None,
            via: BTreeSet::new(),
        }
    }

    /// What lets the public gateway come to nodes that an entry of `nodeAttrs` gives [`FUNNEL`]. It says nothing of ports: nodes let everybody whom they
    /// see connect to their peer API, and look for this capability there.
    pub(crate) fn funnel(entry: &NodeAttributes) -> Option<Self> {
        entry.attributes.contains_key(FUNNEL).then(|| Self {
            line: 0,
            sources: vec![Selector::Auto(Autogroup::FunnelGateway)],
            postures: Vec::new(),
            flows: Vec::new(),
            application: Some(Application {
                destinations: entry.targets.clone(),
                capabilities: BTreeMap::from([(INGRESS.to_owned(), Vec::new())]),
                recorders: Vec::new(),
            }),
            via: BTreeSet::new(),
        })
    }

    /// Everything that the rule leads to, as often as it is written.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = &Selector> {
        let flows = self
            .flows
            .iter()
            .flat_map(|flow| flow.targets.iter().map(|(selector, _)| selector));
        flows.chain(
            self.application
                .iter()
                .flat_map(|application| &application.destinations),
        )
    }
}

impl Selector {
    /// Whether this can only name devices of users.
    pub(crate) fn is_people(&self) -> bool {
        matches!(
            self,
            Self::User(_)
                | Self::Domain(_)
                | Self::Group(_)
                | Self::Auto(Autogroup::Member | Autogroup::Role(_))
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
            Self::User(name) | Self::Group(name) | Self::Service(name) => f.write_str(name),
            Self::Domain(name) => write!(f, "user:*@{name}"),
            Self::Tag(tag) => tag.fmt(f),
            Self::Addresses(set) => set.fmt(f),
            Self::Auto(group) => f.write_str(group.name()),
        }
    }
}

impl Autogroup {
    /// All of them.
    pub(crate) const ALL: [Self; 13] = [
        Self::Member,
        Self::Tagged,
        Self::Role(Role::Admin),
        Self::Role(Role::Owner),
        Self::Role(Role::ItAdmin),
        Self::Role(Role::NetworkAdmin),
        Self::Role(Role::BillingAdmin),
        Self::Role(Role::Auditor),
        Self::OwnDevices,
        Self::Internet,
        Self::Shared,
        Self::NonRoot,
        Self::DangerAll,
    ];

    /// The name in policies.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Member | Self::Role(Role::Member) => "autogroup:member",
            Self::Tagged => "autogroup:tagged",
            Self::Role(Role::Admin) => "autogroup:admin",
            Self::Role(Role::Owner) => "autogroup:owner",
            Self::Role(Role::ItAdmin) => "autogroup:it-admin",
            Self::Role(Role::NetworkAdmin) => "autogroup:network-admin",
            Self::Role(Role::BillingAdmin) => "autogroup:billing-admin",
            Self::Role(Role::Auditor) => "autogroup:auditor",
            Self::OwnDevices => "autogroup:self",
            Self::Internet => "autogroup:internet",
            Self::Shared => "autogroup:shared",
            Self::NonRoot => "autogroup:nonroot",
            Self::DangerAll => "autogroup:danger-all",
            Self::FunnelGateway => "the Funnel gateway",
        }
    }

    /// Whether users with this role are members.
    pub(crate) fn has_role(self, role: Role) -> bool {
        match self {
            Self::Member => true,
            Self::Role(Role::Admin) => role >= Role::Admin,
            Self::Role(wanted) => role == wanted,
            _ => false,
        }
    }
}
