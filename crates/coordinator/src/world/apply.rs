//! How a world takes up changes, and what follows from them.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use tailwharf_policy::{self as policy, Graph, Tailnet};
use tailwharf_wire::tailcfg::{DerpMap, NodeId, UserId};

use super::{
    ActivePolicy, Change, Counters, Effects, Facts, Index, PeerRecord, Presence, Table, World, classify,
};
use crate::{
    model::{
        Confirmation, DnsSettings, LogEntry, Node, PendingRegistration, RegistrationId, ServiceName,
        Settings, VipService,
    },
    store::Saved,
};

/// Entries of the log that are kept.
pub(crate) const LOG_LIMIT: i64 = 10_000;

impl World {
    /// A world without users and nodes.
    pub fn empty(facts: Facts, counters: Counters, policy: ActivePolicy) -> Self {
        let tailnet = Tailnet {
            prefixes: facts.prefixes.both().to_vec(),
            ..Tailnet::default()
        };
        let graph = Graph::new(policy.policy.clone(), &tailnet);
        Self {
            facts: Arc::new(facts),
            counters,
            users: Table::default(),
            nodes: Table::default(),
            services: Table::default(),
            index: Index::default(),
            presence: Table::default(),
            records: Table::default(),
            primaries: Default::default(),
            hosts: Default::default(),
            auth_keys: Table::default(),
            oauth_clients: Table::default(),
            tokens: Table::default(),
            dns_txt: Table::default(),
            registrations: Table::default(),
            checks: Table::default(),
            confirmations: Table::default(),
            log: Table::default(),
            settings: Arc::new(Settings::default()),
            dns: Arc::new(DnsSettings::default()),
            derp_map: Arc::default(),
            policy: Arc::new(policy),
            graph,
            classified: Table::default(),
        }
    }

    /// The world that a store holds.
    pub(crate) fn load(
        facts: Facts,
        policy: ActivePolicy,
        derp_map: DerpMap,
        saved: Saved,
        now: Timestamp,
    ) -> Self {
        let mut world = Self::empty(facts, saved.counters, policy);
        world.derp_map = Arc::new(derp_map);
        let mut effects = Effects::default();
        let ended = Presence {
            expired: true,
            ..Presence::default()
        };
        let ended: Vec<_> = (saved.nodes.iter())
            .filter(|node| node.is_expired(now))
            .map(|node| Change::SetPresence(node.id, ended))
            .collect();
        fn puts<T>(rows: Vec<T>, put: fn(Arc<T>) -> Change) -> impl Iterator<Item = Change> {
            rows.into_iter().map(move |row| put(Arc::new(row)))
        }
        let all = puts(saved.users, Change::PutUser)
            .chain(puts(saved.nodes, Change::PutNode))
            .chain(puts(saved.services, Change::PutService))
            .chain(puts(saved.auth_keys, Change::PutAuthKey))
            .chain(puts(saved.oauth_clients, Change::PutOauthClient))
            .chain(puts(saved.tokens, Change::PutToken))
            .chain(puts(saved.dns_txt, Change::PutDnsTxt))
            .chain(puts(saved.confirmations, Change::PutConfirmation))
            .chain(puts(saved.log, Change::Log))
            .chain(
                saved
                    .settings
                    .map(|settings| Change::PutSettings(Arc::new(settings))),
            )
            .chain(saved.dns.map(|dns| Change::PutDns(Arc::new(dns))))
            .chain(ended);
        for change in all {
            world.apply(&change, &mut effects);
        }
        world.counters = saved.counters;
        // All at once, for that is cheaper than one after the other.
        effects.pending = Default::default();
        let tailnet = world.tailnet();
        world.graph = Graph::new(world.policy.policy.clone(), &tailnet);
        world.classified = tailnet
            .nodes
            .into_iter()
            .map(|node| (node.id, Arc::new(node)))
            .collect();
        world.settle(&mut effects);
        world
    }

    /// Applies a change and says whom it concerns.
    pub(crate) fn apply(&mut self, change: &Change, effects: &mut Effects) {
        match change {
            Change::PutUser(user) => {
                self.counters.next_user = self.counters.next_user.max(user.id.0 + 1);
                self.forget_user(user.id);
                self.index.insert_user(user);
                self.users.insert_mut(user.id, user.clone());
                effects.users.insert(user.id);
                effects.tell(policy::Change::PutUser(classify::user(user)));
            }
            Change::DeleteUser(id) => {
                self.forget_user(*id);
                effects.tell(policy::Change::DeleteUser(*id));
            }
            Change::PutNode(node) => self.put_node(node, effects),
            Change::DeleteNode(id) => self.delete_node(*id, effects),
            Change::SetPresence(id, presence) => self.set_presence(*id, *presence, effects),
            Change::PutService(service) => self.put_service(service, effects),
            Change::DeleteService(name) => self.delete_service(name, effects),
            Change::PutAuthKey(key) => self.auth_keys.insert_mut(key.id.clone(), key.clone()),
            Change::DeleteAuthKey(id) => {
                self.auth_keys.remove_mut(id);
            }
            Change::PutOauthClient(client) => {
                self.oauth_clients.insert_mut(client.id.clone(), client.clone());
            }
            Change::DeleteOauthClient(id) => {
                self.oauth_clients.remove_mut(id);
            }
            Change::PutToken(token) => self.tokens.insert_mut(token.id.clone(), token.clone()),
            Change::DeleteToken(id) => {
                self.tokens.remove_mut(id);
            }
            Change::PutDnsTxt(record) => self.dns_txt.insert_mut(record.name.clone(), record.clone()),
            Change::DeleteDnsTxt(name) => {
                self.dns_txt.remove_mut(name);
            }
            Change::PutConfirmation(confirmation) => {
                let id = Confirmation::id(confirmation.source, &confirmation.target);
                self.confirmations.insert_mut(id, confirmation.clone());
            }
            Change::DeleteConfirmation(id) => {
                self.confirmations.remove_mut(id);
            }
            Change::PutCheck(check) => {
                if check.denied {
                    effects.answered.insert(check.id.clone());
                }
                self.checks.insert_mut(check.id.clone(), check.clone());
            }
            Change::DeleteCheck(id) => {
                self.checks.remove_mut(id);
                effects.answered.insert(id.clone());
            }
            Change::Log(entry) => self.append(entry),
            Change::PutRegistration(registration) => self.put_registration(registration, effects),
            Change::DeleteRegistration(id) => self.decide_registration(id, effects),
            Change::PutSettings(settings) => {
                self.settings = settings.clone();
                effects.everyone = true;
            }
            Change::PutDns(dns) => {
                self.dns = dns.clone();
                effects.everyone = true;
            }
            Change::SetDerpMap(derp_map) => {
                self.derp_map = derp_map.clone();
                effects.everyone = true;
            }
            Change::PutPolicy(policy) => {
                self.policy = policy.clone();
                // Who may host a service is part of the policy.
                effects.services.extend(self.services.keys().cloned());
                effects.tell(policy::Change::SetPolicy(policy.policy.clone()));
            }
        }
    }

    /// Brings what is derived from the tables up to date, once all changes of a batch are applied.
    pub(crate) fn settle(&mut self, effects: &mut Effects) {
        for change in std::mem::take(&mut effects.pending.0) {
            effects.affected.extend(self.graph.apply(change));
        }
        let mut services = std::mem::take(&mut effects.services);
        for node in effects.nodes.iter().filter_map(|id| self.node(*id)) {
            services.extend(node.services.iter().cloned());
        }
        let offering = services
            .iter()
            .flat_map(|name| self.nodes_offering(name))
            .map(|node| node.id);
        let concerned: BTreeSet<NodeId> = effects.nodes.iter().copied().chain(offering).collect();
        for id in &concerned {
            self.classify(*id, effects);
        }

        let mut primaries = self.primaries.clone();
        let mut moved = primaries.settle(self, &concerned);
        self.primaries = primaries;
        let mut hosts = self.hosts.clone();
        for name in services {
            if let Some(nodes) = hosts.settle(self, &name) {
                moved.extend(nodes);
                effects.services.insert(name);
            }
        }
        self.hosts = hosts;

        effects.nodes.extend(moved);
        effects.nodes = std::mem::take(&mut effects.nodes)
            .into_iter()
            .filter(|id| self.renew_record(*id))
            .collect();
    }

    /// Tells the policy of a node that looks different to it than before.
    fn classify(&mut self, id: NodeId, effects: &mut Effects) {
        let next = self.node(id).filter(|node| node.authorized);
        let next = next.map(|node| classify::node(self, node));
        let former = self.classified.get(&id);
        match next {
            Some(node) if former.is_some_and(|former| **former == node) => {}
            Some(node) => {
                effects
                    .affected
                    .extend(self.graph.apply(policy::Change::PutNode(node.clone())));
                effects.own.insert(id);
                self.classified.insert_mut(id, Arc::new(node));
            }
            None if former.is_none() => {}
            None => {
                effects
                    .affected
                    .extend(self.graph.apply(policy::Change::DeleteNode(id)));
                self.classified.remove_mut(&id);
            }
        }
    }

    /// Whether the node looks different to its peers than before.
    fn renew_record(&mut self, id: NodeId) -> bool {
        let Some(record) = PeerRecord::new(self, id) else {
            return self.records.remove_mut(&id);
        };
        let differs = self.records.get(&id).is_none_or(|former| **former != record);
        if differs {
            self.records.insert_mut(id, Arc::new(record));
        }
        differs
    }

    fn forget_user(&mut self, id: UserId) {
        if let Some(user) = self.users.get(&id).cloned() {
            self.index.remove_user(&user);
            self.users.remove_mut(&id);
        }
    }

    fn put_node(&mut self, node: &Arc<Node>, effects: &mut Effects) {
        self.counters.next_node = self.counters.next_node.max(node.id.0 + 1);
        let old = self.nodes.get(&node.id).cloned();
        self.nodes.insert_mut(node.id, node.clone());
        if !old.as_ref().is_some_and(|old| Index::covers(old, node)) {
            if let Some(old) = &old {
                self.index.remove(old);
                effects.services.extend(old.services.iter().cloned());
            } else {
                self.counters.last_v4 = Some(node.ipv4);
            }
            self.index.insert(node);
        }
        effects.nodes.insert(node.id);
        effects.own.insert(node.id);
        let same = old
            .is_some_and(|old| old.authorized == node.authorized && old.home_region() == node.home_region());
        if !same {
            effects.moved.insert(node.id);
        }
    }

    fn delete_node(&mut self, id: NodeId, effects: &mut Effects) {
        if let Some(node) = self.nodes.get(&id).cloned() {
            self.nodes.remove_mut(&id);
            self.index.remove(&node);
            self.presence.remove_mut(&id);
            effects.nodes.insert(id);
            effects.services.extend(node.services.iter().cloned());
        }
    }

    fn set_presence(&mut self, id: NodeId, presence: Presence, effects: &mut Effects) {
        let old = self.presence(id);
        self.presence.insert_mut(id, presence);
        effects.nodes.insert(id);
        if old.expired != presence.expired {
            effects.moved.insert(id);
        }
    }

    fn put_service(&mut self, service: &Arc<VipService>, effects: &mut Effects) {
        if let Some(old) = self.services.get(&service.name).cloned() {
            self.index.remove_service(&old);
        } else {
            self.counters.last_v4 = Some(service.ipv4);
        }
        self.index.insert_service(service);
        self.services.insert_mut(service.name.clone(), service.clone());
        effects.services.insert(service.name.clone());
        effects.tell(policy::Change::PutService(classify::service(service)));
    }

    fn delete_service(&mut self, name: &ServiceName, effects: &mut Effects) {
        if let Some(old) = self.services.get(name).cloned() {
            self.index.remove_service(&old);
            self.services.remove_mut(name);
            effects.services.insert(name.clone());
            effects.tell(policy::Change::DeleteService(name.to_string()));
        }
    }

    fn append(&mut self, entry: &Arc<LogEntry>) {
        self.log.insert_mut(entry.id, entry.clone());
        self.log.remove_mut(&(entry.id - LOG_LIMIT));
    }

    fn put_registration(&mut self, registration: &Arc<PendingRegistration>, effects: &mut Effects) {
        if registration.denied {
            effects.decided.insert(registration.id.clone());
        }
        self.registrations
            .insert_mut(registration.id.clone(), registration.clone());
    }

    fn decide_registration(&mut self, id: &RegistrationId, effects: &mut Effects) {
        if self.registrations.remove_mut(id) {
            effects.decided.insert(id.clone());
        }
    }
}
