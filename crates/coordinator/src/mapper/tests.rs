//! The mapper against a model of a client: whatever happens, the deltas lead to what a fresh map would say.

mod posture;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use proptest::prelude::*;
use tailwharf_wire::{
    key::DiscoPrivate,
    tailcfg::{
        DnsConfig, EndpointType, FilterRule, Hostinfo, MapResponse, Node as WireNode, NodeId, UserProfile,
    },
};

use super::*;
use crate::{
    lab::{Lab, active, hostinfo_at, tags},
    model::{Endpoint, Node, NodeOwner, User},
    ops::{removal, replacement},
    poll,
    secret::Secret,
    sessions::{Session, Update},
    world::{Change, Presence},
};

/// What an official client keeps of a map stream.
#[derive(Clone, Debug, Default, PartialEq)]
struct Client {
    node: Option<WireNode>,
    peers: BTreeMap<NodeId, WireNode>,
    filters: BTreeMap<String, Vec<FilterRule>>,
    dns: Option<DnsConfig>,
    profiles: BTreeMap<i64, UserProfile>,
    /// The profiles that `tailscale status` shows: those of the last map that the client built anew.
    shown: BTreeMap<i64, UserProfile>,
}

impl Client {
    fn receive(&mut self, message: MapResponse) {
        let sorted = |nodes: &[WireNode]| nodes.is_sorted_by_key(|node| node.id);
        assert!(sorted(&message.peers) && sorted(&message.peers_changed));
        for profile in message.user_profiles {
            self.profiles.insert(profile.id.0, profile);
        }
        let is_built_anew = !message.peers.is_empty()
            || message.node.is_some()
            || message.dns_config.is_some()
            || message.derp_map.is_some();
        if !message.peers.is_empty() {
            self.peers.clear();
        }
        self.node = message.node.or_else(|| self.node.take());
        self.dns = message.dns_config.or_else(|| self.dns.take());
        for node in message.peers.into_iter().chain(message.peers_changed) {
            assert!(
                self.profiles.contains_key(&node.user.0),
                "a peer comes with its user"
            );
            self.peers.insert(node.id, node);
        }
        for id in message.peers_removed {
            self.peers.remove(&id).expect("only known peers are removed");
        }
        for patch in message.peers_changed_patch {
            let peer = self
                .peers
                .get_mut(&patch.node_id)
                .expect("only known peers are patched");
            if !patch.derp_region.is_none() {
                peer.home_derp = patch.derp_region;
                peer.legacy_derp = format!("127.3.3.40:{}", patch.derp_region);
            }
            if !patch.endpoints.is_empty() {
                peer.endpoints = patch.endpoints;
            }
            if patch.cap.0 != 0 {
                peer.cap = patch.cap;
            }
            peer.key = patch.key.unwrap_or(peer.key);
            peer.disco_key = patch.disco_key.unwrap_or(peer.disco_key);
            peer.online = patch.online.or(peer.online);
            peer.last_seen = patch.last_seen.or(peer.last_seen);
            peer.key_expiry = patch.key_expiry.or(peer.key_expiry);
        }
        for (name, rules) in message.packet_filters.unwrap_or_default() {
            self.filters.insert(name, rules.expect("no part is removed"));
        }
        if is_built_anew {
            self.shown = self.visible_profiles();
        }
        for (id, profile) in self.visible_profiles() {
            assert_eq!(
                self.shown.get(&id),
                Some(&profile),
                "the owner of a peer is shown"
            );
        }
    }

    fn visible_profiles(&self) -> BTreeMap<i64, UserProfile> {
        let mut profiles = self.profiles.clone();
        let users: Vec<i64> = self
            .peers
            .values()
            .chain(&self.node)
            .map(|node| node.user.0)
            .collect();
        profiles.retain(|id, _| users.contains(id));
        profiles
    }

    /// What matters: when a peer that is online was last seen does not, and profiles of peers that are gone may stay.
    fn settled(mut self) -> Self {
        for peer in self.peers.values_mut().filter(|peer| peer.online == Some(true)) {
            peer.last_seen = None;
        }
        self.profiles = self.visible_profiles();
        self.shown.clear();
        self
    }
}

/// A client and its stream.
struct Follower {
    id: NodeId,
    session: Arc<Session>,
    client: Client,
}

impl Follower {
    fn open(lab: &Lab, id: NodeId) -> Self {
        let (session, world) = lab.sessions.open(id);
        let mut client = Client::default();
        client.receive(full(&world, id, Timestamp::UNIX_EPOCH).unwrap().into_response());
        Self { id, session, client }
    }

    fn catch_up(&mut self) {
        if let Some(Update {
            base, latest, dirty, ..
        }) = self.session.take().and_then(|due| due.update)
            && let Some(message) = delta(&base, &latest, self.id, &dirty)
        {
            self.client.receive(message.into_response());
        }
    }
}

const POLICIES: [&str; 4] = [
    crate::lab::POLICY,
    "{}",
    r#"{"acls": []}"#,
    r#"{"tagOwners": {"tag:k8s": []}, "grants": [
        {"src": ["tag:k8s"], "dst": ["autogroup:member"], "ip": ["tcp:443"]},
        {"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]}
    ]}"#,
];

/// One thing that happens to a tailnet. Nodes are named by a number that is taken modulo those that exist.
#[derive(Clone, Copy, Debug)]
enum Event {
    Join { key: usize, hostname: u8 },
    Leave(usize),
    Rename(usize, u8),
    Retag(usize),
    Region(usize, u8),
    Endpoints(usize, u8),
    Disco(usize, u8),
    Online(usize, bool),
    Reveal(usize),
    Expire(usize),
    Authorize(usize, bool),
    Route(usize),
    Policy(usize),
    Promote(bool),
    Follow(usize),
    CatchUp(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0..8_usize;
    prop_oneof![
        6 => (0..3_usize, 0..3_u8).prop_map(|(key, hostname)| Event::Join { key, hostname }),
        1 => node.clone().prop_map(Event::Leave),
        1 => (node.clone(), 0..3_u8).prop_map(|(node, name)| Event::Rename(node, name)),
        1 => node.clone().prop_map(Event::Retag),
        3 => (node.clone(), 0..3_u8).prop_map(|(node, region)| Event::Region(node, region)),
        2 => (node.clone(), 0..3_u8).prop_map(|(node, count)| Event::Endpoints(node, count)),
        2 => (node.clone(), 1..4_u8).prop_map(|(node, seed)| Event::Disco(node, seed)),
        4 => (node.clone(), any::<bool>()).prop_map(|(node, online)| Event::Online(node, online)),
        3 => node.clone().prop_map(Event::Reveal),
        1 => node.clone().prop_map(Event::Expire),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, yes)| Event::Authorize(node, yes)),
        2 => node.clone().prop_map(Event::Route),
        1 => (0..POLICIES.len()).prop_map(Event::Policy),
        1 => any::<bool>().prop_map(Event::Promote),
        4 => node.clone().prop_map(Event::Follow),
        4 => node.prop_map(Event::CatchUp),
    ]
}

struct Play {
    lab: Lab,
    keys: [Secret; 3],
    followers: BTreeMap<NodeId, Follower>,
    joined: u8,
}

impl Play {
    fn new() -> Self {
        let mut lab = Lab::new();
        let keys = [
            lab.auth_key(Some(1), &[], |_| {}),
            lab.auth_key(Some(2), &[], |_| {}),
            lab.auth_key(None, &["tag:k8s"], |_| {}),
        ];
        Self {
            lab,
            keys,
            followers: BTreeMap::new(),
            joined: 0,
        }
    }

    fn node(&self, index: usize) -> Option<Arc<Node>> {
        let nodes: Vec<_> = self.lab.world.nodes().cloned().collect();
        nodes.get(index.checked_rem(nodes.len())?).cloned()
    }

    fn edit(&mut self, index: usize, edit: impl FnOnce(&crate::world::World, &mut Node)) {
        if let Some(node) = self.node(index) {
            let mut next = node.as_ref().clone();
            edit(&self.lab.world, &mut next);
            let changes = replacement(&self.lab.world, &self.lab.context, &Arc::new(next));
            self.lab.apply(&changes);
        }
    }

    fn presence(&mut self, index: usize, edit: impl FnOnce(&mut Presence)) {
        if let Some(node) = self.node(index) {
            let mut presence = self.lab.world.presence(node.id);
            edit(&mut presence);
            self.lab.apply(&[Change::SetPresence(node.id, presence)]);
        }
    }

    fn happen(&mut self, event: Event) {
        self.lab.pass(1);
        let now = self.lab.context.now;
        match event {
            Event::Join { key, hostname } => {
                self.joined += 1;
                let key = self.keys[key].clone();
                self.lab.join(self.joined, &key, &format!("host{hostname}"));
            }
            Event::Leave(index) => {
                if let Some(node) = self.node(index) {
                    self.followers.remove(&node.id);
                    let changes = removal(&self.lab.world, node.id);
                    self.lab.apply(&changes);
                }
            }
            Event::Rename(index, name) => self.edit(index, |world, node| {
                poll::take_hostinfo(
                    world,
                    node,
                    Hostinfo {
                        hostname: format!("other{name}"),
                        ..node.hostinfo.clone()
                    },
                );
            }),
            Event::Retag(index) => {
                self.edit(index, |_, node| node.owner = NodeOwner::Tags(tags(&["tag:k8s"])));
            }
            Event::Region(index, region) => self.edit(index, |world, node| {
                let hostname = node.hostinfo.hostname.clone();
                poll::take_hostinfo(world, node, hostinfo_at(&hostname, i32::from(region)));
            }),
            Event::Endpoints(index, count) => self.edit(index, |_, node| {
                let addr = |port| std::net::SocketAddr::from(([192, 0, 2, 1], port));
                let list = (0..u16::from(count)).map(|n| Endpoint {
                    addr: addr(n + 1),
                    kind: EndpointType::LOCAL,
                });
                node.endpoints = list.collect();
            }),
            Event::Disco(index, seed) => self.edit(index, |_, node| {
                node.disco_key = Some(DiscoPrivate::from_bytes([seed; 32]).public());
            }),
            Event::Online(index, online) => {
                self.edit(index, |_, node| node.last_seen = Some(now));
                self.presence(index, |presence| presence.online = online);
            }
            Event::Reveal(index) => self.presence(index, |presence| presence.held = false),
            Event::Expire(index) => self.edit(index, |_, node| node.expires = Some(now)),
            Event::Authorize(index, yes) => self.edit(index, |_, node| node.authorized = yes),
            Event::Route(index) => self.edit(index, |_, node| {
                let routes = ["10.0.0.0/8", "0.0.0.0/0", "::/0"].map(|route| route.parse().unwrap());
                node.hostinfo.routable_ips = routes.to_vec();
                node.approved_routes = routes.into();
            }),
            Event::Policy(which) => {
                let version = self.lab.world.policy().version.version + 1;
                self.lab
                    .apply(&[Change::PutPolicy(Arc::new(active(version, POLICIES[which])))]);
            }
            Event::Promote(up) => {
                let user = self.lab.world.users().nth(1).unwrap().as_ref().clone();
                let role = if up {
                    crate::model::Role::Admin
                } else {
                    crate::model::Role::Member
                };
                let display_name = format!("Bob the {role:?}");
                self.lab.apply(&[Change::PutUser(Arc::new(User {
                    role,
                    display_name,
                    ..user
                }))]);
            }
            Event::Follow(index) => {
                if let Some(node) = self.node(index) {
                    self.followers.insert(node.id, Follower::open(&self.lab, node.id));
                }
            }
            Event::CatchUp(index) => {
                if let Some(follower) = self.node(index).and_then(|node| self.followers.get_mut(&node.id)) {
                    follower.catch_up();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn deltas_lead_to_the_fresh_map(events in proptest::collection::vec(event(), 1..60)) {
        let mut play = Play::new();
        for event in events {
            play.happen(event);
        }
        for (id, mut follower) in std::mem::take(&mut play.followers) {
            follower.catch_up();
            let fresh = Follower::open(&play.lab, id).client;
            prop_assert_eq!(follower.client.settled(), fresh.settled());
        }
    }
}

fn three_nodes() -> Play {
    let mut play = Play::new();
    for (key, hostname) in [(0, 0), (1, 1), (2, 2)] {
        play.happen(Event::Join { key, hostname });
    }
    for index in 0..3 {
        play.happen(Event::Reveal(index));
    }
    play
}

fn message(play: &Play, follower: &Follower) -> Option<MapResponse> {
    let Update {
        base, latest, dirty, ..
    } = follower.session.take()?.update?;
    let _ = play;
    delta(&base, &latest, follower.id, &dirty).map(Message::into_response)
}

#[test]
fn the_first_message() {
    let play = three_nodes();
    let message = full(&play.lab.world, NodeId(1), Timestamp::UNIX_EPOCH).unwrap();
    let mut message = message.into_response();
    for node in message.node.iter_mut().chain(&mut message.peers) {
        node.stable_id.0 = "n…CNTRL".to_owned();
    }
    insta::assert_json_snapshot!(message);
}

#[test]
fn what_a_patch_can_say_is_a_patch() {
    let mut play = three_nodes();
    let follower = Follower::open(&play.lab, NodeId(1));
    play.happen(Event::Region(2, 2));
    play.happen(Event::Disco(2, 1));
    play.happen(Event::Endpoints(2, 1));
    let message = message(&play, &follower).unwrap();
    // The first home region comes with a first network report; name and owner stay.
    assert_eq!(message.peers_changed, []);
    insta::assert_json_snapshot!(message);
}

#[test]
fn the_first_tagged_peer_comes_with_its_owner_and_the_node_itself() {
    let mut play = three_nodes();
    let leave = Event::Leave(2);
    play.happen(leave);
    let follower = Follower::open(&play.lab, NodeId(1));
    for (key, hostname) in [(2, 2), (2, 1)] {
        play.happen(Event::Join { key, hostname });
    }
    play.happen(Event::Reveal(2));
    let first = message(&play, &follower).unwrap();
    assert_eq!(
        first.node.map(|node| node.id),
        Some(NodeId(1)),
        "clients show new owners with it"
    );
    assert_eq!(
        first
            .user_profiles
            .iter()
            .map(|profile| profile.login_name.as_str())
            .collect::<Vec<_>>(),
        ["alice@example.com", "tagged-devices"]
    );
    play.happen(Event::Reveal(3));
    let second = message(&play, &follower).unwrap();
    assert_eq!(
        (second.peers_changed.len(), second.node),
        (1, None),
        "and know them afterwards"
    );
}

#[test]
fn a_peer_that_comes_online_is_a_patch() {
    let mut play = three_nodes();
    play.happen(Event::Online(2, false));
    let follower = Follower::open(&play.lab, NodeId(1));
    play.happen(Event::Online(2, true));
    let message = message(&play, &follower).unwrap();
    assert_eq!(
        (message.peers_changed.len(), message.peers_changed_patch.len()),
        (0, 1)
    );
    assert_eq!(message.peers_changed_patch[0].online, Some(true));
}

#[test]
fn a_change_wakes_only_those_whom_it_concerns() {
    let mut play = three_nodes();
    // Bob's node does not see alice's under this policy but for her being an administrator: a policy without rules separates all.
    play.happen(Event::Policy(2));
    let follower = Follower::open(&play.lab, NodeId(2));
    play.happen(Event::Region(0, 2));
    assert!(
        follower.session.take().unwrap().update.is_none(),
        "an unconcerned stream keeps no world"
    );
}

#[test]
fn nodes_are_held_back_until_they_can_be_reached() {
    let mut play = Play::new();
    play.happen(Event::Join { key: 0, hostname: 0 });
    let follower = Follower::open(&play.lab, NodeId(1));
    play.happen(Event::Join { key: 2, hostname: 1 });
    assert_eq!(
        message(&play, &follower)
            .map(|message| message.peers_changed.len())
            .unwrap_or_default(),
        0
    );
    play.happen(Event::Region(1, 2));
    let message = message(&play, &follower).unwrap();
    assert_eq!(
        message
            .peers_changed
            .iter()
            .map(|node| node.home_derp.0)
            .collect::<Vec<_>>(),
        [2]
    );
}

#[test]
fn an_expired_node_sees_nobody_and_is_told_why() {
    let mut play = three_nodes();
    play.happen(Event::Expire(0));
    let message = full(&play.lab.world, NodeId(1), Timestamp::UNIX_EPOCH).unwrap();
    let message = message.into_response();
    let node = message.node.unwrap();
    assert!(node.expired && node.key_expiry.is_some());
    assert_eq!(message.peers, []);
    assert_eq!(message.packet_filters.unwrap()["base"], Some(Vec::new()));
}

#[test]
fn one_node_serves_a_route_and_another_takes_over() {
    let mut play = three_nodes();
    for index in [1, 2] {
        play.happen(Event::Route(index));
        play.happen(Event::Online(index, true));
    }
    let routes = |play: &Play| [2, 3].map(|id| play.lab.world.primary_routes(NodeId(id)).len());
    assert_eq!(routes(&play), [1, 0]);
    play.happen(Event::Online(1, false));
    assert_eq!(routes(&play), [0, 1]);
    play.happen(Event::Online(1, true));
    assert_eq!(
        routes(&play),
        [0, 1],
        "who came back does not take the route away"
    );
}

#[test]
fn a_new_stream_ends_the_former_one() {
    let play = three_nodes();
    let (former, _) = play.lab.sessions.open(NodeId(1));
    let (latter, _) = play.lab.sessions.open(NodeId(1));
    assert!(former.take().is_none());
    assert!(!play.lab.sessions.close(&former), "the node has another stream");
    assert!(play.lab.sessions.close(&latter));
    assert!(!play.lab.sessions.was_last(&former));
    assert!(play.lab.sessions.was_last(&latter));
}
