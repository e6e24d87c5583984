//! Who may log in to a node by SSH.

use std::collections::{BTreeMap, BTreeSet};

use tailwharf_wire::tailcfg::{
    NodeId, SshAction, SshPolicy, SshPrincipal, SshRecorderFailureAction, SshRule,
};

use super::peers::same_user;
use super::plan::SshPlan;
use super::{Entry, Graph, Slot};
use crate::model::{CheckPeriod, SshUsers};

impl Graph {
    /// Who may log in to a node by SSH, and as whom. `None` if the policy has no SSH rule for the node.
    ///
    /// `check_url` is where a node asks for the verdict of a rule with action `check`; Go's placeholders such as
    /// `$SRC_NODE_ID` may stand in it, and `$CHECK_PERIOD` for the rule's period in seconds. Without one, such a rule refuses, since nobody could be asked.
    pub fn ssh_policy_for(&self, node: NodeId, check_url: Option<&str>) -> Option<SshPolicy> {
        let slot = *self.by_id.get(&node)?;
        let mut rules = Vec::new();
        for plan in &self.plan.ssh {
            let sources = self.ssh_sources(plan, slot);
            if sources.is_empty() {
                continue;
            }
            let action = self.ssh_action(plan, check_url);
            let mut add = |principals: Vec<SshPrincipal>, ssh_users: BTreeMap<String, String>| {
                if !principals.is_empty() && !ssh_users.is_empty() {
                    rules.push(SshRule {
                        principals,
                        ssh_users,
                        action: Some(action.clone()),
                        accept_env: plan.entry.accept_env.clone(),
                        ..SshRule::default()
                    });
                }
            };
            let principals = sources.iter().flat_map(|entry| principals(entry)).collect();
            add(principals, plan.entry.users.to_map());
            for (name, entries) in local_parts(&plan.entry.users, &sources) {
                let principals = entries.iter().flat_map(|entry| self::principals(entry)).collect();
                add(principals, BTreeMap::from([(name.clone(), name)]));
            }
        }
        (!rules.is_empty()).then_some(SshPolicy { rules })
    }

    /// The nodes that a rule lets log in to a node.
    fn ssh_sources(&self, plan: &SshPlan, slot: Slot) -> Vec<&Entry> {
        let Some(target) = self.entry(slot) else {
            return Vec::new();
        };
        let reached = self.members(plan.target).contains(slot);
        let is_person = target.user.is_some();
        if !(reached || (plan.own && is_person)) {
            return Vec::new();
        }
        let mut sources = self.entries(self.members(plan.source));
        sources.retain(|source| reached || same_user(source, target));
        sources
    }

    fn ssh_action(&self, plan: &SshPlan, check_url: Option<&str>) -> SshAction {
        const NANOS: u64 = 1_000_000_000;
        let allowed = |accept: bool| SshAction {
            accept,
            allow_agent_forwarding: true,
            allow_local_port_forwarding: true,
            allow_remote_port_forwarding: true,
            ..SshAction::default()
        };
        let mut action = match (plan.entry.check, check_url) {
            (None, _) => allowed(true),
            (Some(CheckPeriod(seconds)), Some(url)) => SshAction {
                hold_and_delegate: url.replace("$CHECK_PERIOD", &seconds.to_string()),
                session_duration: i64::try_from(seconds * NANOS).unwrap_or(i64::MAX),
                ..allowed(false)
            },
            (Some(_), None) => SshAction {
                reject: true,
                message: "This tailnet asks for a fresh sign-in, which its control server cannot do.\n"
                    .to_owned(),
                ..SshAction::default()
            },
        };
        if let Some(party) = plan.recorders {
            action.recorders = self.recorders(party);
            if plan.entry.enforce_recorder {
                action.on_recording_failure = Some(SshRecorderFailureAction {
                    reject_session_with_message: "This session must be recorded, and no recorder answers."
                        .to_owned(),
                    terminate_session_with_message:
                        "This session must be recorded, and the recorder is gone.".to_owned(),
                    ..SshRecorderFailureAction::default()
                });
            }
        }
        action
    }
}

fn principals(entry: &Entry) -> impl Iterator<Item = SshPrincipal> + use<> {
    let addresses = entry.node.addresses.clone();
    addresses.into_iter().map(|ip| SshPrincipal {
        node_ip: ip.to_string(),
        ..SshPrincipal::default()
    })
}

/// The devices of those who may log in under the first part of their own login.
fn local_parts<'a>(users: &SshUsers, sources: &[&'a Entry]) -> BTreeMap<String, Vec<&'a Entry>> {
    let mut parts: BTreeMap<String, Vec<&Entry>> = BTreeMap::new();
    for entry in sources {
        let login = entry.login.as_deref().map(str::to_ascii_lowercase);
        if let Some(name) = login.and_then(|login| users.local_part(&login).map(str::to_owned)) {
            parts.entry(name).or_default().push(entry);
        }
    }
    parts
}

impl SshUsers {
    /// The users of a machine in the form of the protocol.
    fn to_map(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        if self.nonroot {
            map.insert("*".to_owned(), "=".to_owned());
            map.insert("root".to_owned(), String::new());
        }
        let names: BTreeSet<&String> = self.names.iter().collect();
        map.extend(names.into_iter().map(|name| (name.clone(), name.clone())));
        map
    }

    /// The user of a machine that somebody with this login, in lower case, is by `localpart:`.
    pub(super) fn local_part<'a>(&self, login: &'a str) -> Option<&'a str> {
        let (name, domain) = login.rsplit_once('@')?;
        self.local_parts.contains(domain).then_some(name)
    }

    /// Whether somebody with this login may log in as a user of a machine.
    pub(super) fn allows(&self, login: Option<&str>, user: &str) -> bool {
        self.names.contains(user)
            || (self.nonroot && user != "root")
            || login.is_some_and(|login| self.local_part(&login.to_ascii_lowercase()) == Some(user))
    }
}
