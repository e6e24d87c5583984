//! From what is known of a tailnet to what a person may do at a cluster. Pure.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Serialize;
use tailwharf_apiproxy::{CAPABILITIES, CAPABILITY, Caller, SystemGroups};
use tailwharf_node::{Peer, WhoIs};
use tailwharf_policy::{
    AttributeValue, Grant, Graph, Node, Owner, Policy, PolicyError, Tailnet, Unfulfilled,
};
use tailwharf_wire::tailcfg::{self, CapMap, NodeId, StableId, UserId, UserProfile};

use super::{Device, Facts};

/// The ports of API-server proxies: with a certificate, and where the tailnet has none.
const PORTS: [u16; 2] = [443, 80];
const TCP: u8 = 6;
/// Where addresses of devices come from at most control servers.
const PREFIXES: [&str; 2] = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"];

/// What a person may do at a cluster.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    user: String,
    /// Full name of the proxy's device.
    cluster: String,
    devices: Vec<FromDevice>,
}

/// What they may do from one of their devices.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FromDevice {
    device: String,
    os: String,
    version: String,
    /// Whether a rule opens the port of the proxy.
    reached: bool,
    /// Whether a grant gives the capability.
    granted: bool,
    groups: Vec<String>,
    /// Why the proxy does not let the device in, whatever it is granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recording: Option<Recording>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Check>,
    /// Whom `kubectl --as` may name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    may_act_as: Vec<String>,
    rules: Vec<RuleReport>,
}

/// Sessions are recorded.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Recording {
    recorders: Vec<String>,
    required: bool,
}

/// A fresh sign-in is asked for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    period_seconds: u64,
    reads: bool,
}

/// What a rule of the policy has to do with it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleReport {
    line: u32,
    sources: Vec<String>,
    destinations: Vec<String>,
    counts: bool,
    /// Why it does not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    why_not: Vec<String>,
}

/// Works it out.
///
/// # Errors
/// When the policy cannot be read, or person or cluster are not there.
pub(super) fn report(facts: &Facts, user: &str, cluster: &str) -> Result<Report> {
    let policy = match Policy::parse(&facts.policy) {
        Ok(policy) => policy,
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(PolicyError::to_string).collect();
            bail!("the policy cannot be read:\n{}", errors.join("\n"));
        }
    };
    let known = facts
        .users
        .iter()
        .find(|known| known.login_name.eq_ignore_ascii_case(user));
    let Some(known) = known else {
        bail!("the tailnet has no user {user}");
    };
    let mut proxies = (1..)
        .zip(&facts.devices)
        .filter(|(_, device)| device.is_called(cluster));
    let (target, proxy) = match (proxies.next(), proxies.next()) {
        (Some(found), None) => found,
        (None, _) => bail!("the tailnet has no device {cluster}"),
        (Some(_), Some(_)) => bail!("the tailnet has several devices {cluster}; give the full name"),
    };
    let graph = Graph::new(Arc::new(policy), &tailnet(facts));
    let own = (1..).zip(&facts.devices).filter(|(_, device)| device.is_of(user));
    let devices = own
        .map(|(source, device)| {
            let ends = Ends {
                source: (NodeId(source), device),
                target: (NodeId(target), proxy),
            };
            FromDevice::new(&graph, &ends, &known.login_name)
        })
        .collect();
    Ok(Report {
        user: known.login_name.clone(),
        cluster: proxy.name.trim_end_matches('.').to_owned(),
        devices,
    })
}

/// The tailnet as policies see it. Ids are positions, from 1.
fn tailnet(facts: &Facts) -> Tailnet {
    let users: Vec<tailwharf_policy::User> = (1..)
        .zip(&facts.users)
        .map(|(id, user)| tailwharf_policy::User {
            id: UserId(id),
            login: user.login_name.clone(),
            role: user.role(),
        })
        .collect();
    let owner = |device: &Device| {
        let tags = device.tags().iter().filter_map(|tag| tag.parse().ok());
        let user = users
            .iter()
            .find(|user| device.is_of(&user.login))
            .map(|user| Owner::User(user.id));
        user.unwrap_or_else(|| Owner::Tags(tags.collect()))
    };
    let nodes = (1..).zip(&facts.devices).filter(|(_, device)| device.authorized);
    let nodes = nodes.map(|(id, device)| Node {
        id: NodeId(id),
        owner: owner(device),
        addresses: device.addresses.clone(),
        routes: Vec::new(),
        services: std::collections::BTreeSet::new(),
        attributes: facts.attributes.get(&device.id).cloned().unwrap_or_default(),
    });
    let own = facts.devices.iter().flat_map(|device| &device.addresses);
    let usual = PREFIXES.iter().filter_map(|prefix| prefix.parse().ok());
    Tailnet {
        prefixes: usual.chain(own.map(|ip| (*ip).into())).collect(),
        nodes: nodes.collect(),
        users,
        services: Vec::new(),
    }
}

/// A device and the proxy.
struct Ends<'a> {
    source: (NodeId, &'a Device),
    target: (NodeId, &'a Device),
}

impl FromDevice {
    fn new(graph: &Graph, ends: &Ends<'_>, login: &str) -> Self {
        let ((source, device), (target, proxy)) = (ends.source, ends.target);
        let about = |grant: &Grant| {
            let names = grant.capabilities.keys();
            (grant.is_from || grant.is_at)
                && names
                    .into_iter()
                    .any(|name| CAPABILITIES.contains(&name.as_str()))
        };
        let grants: Vec<Grant> = graph.grants(source, target).into_iter().filter(about).collect();
        let mut capabilities = CapMap::new();
        for (name, values) in grants
            .iter()
            .filter(|grant| grant.counts())
            .flat_map(|grant| &grant.capabilities)
        {
            capabilities
                .entry(name.clone())
                .or_default()
                .extend_from_slice(values);
        }
        let ways = device
            .addresses
            .iter()
            .flat_map(|from| proxy.addresses.iter().map(move |to| (*from, *to)));
        let open = |(from, to): (IpAddr, IpAddr)| {
            from.is_ipv4() == to.is_ipv4() && PORTS.iter().any(|port| graph.allows(from, to, TCP, *port))
        };
        let mut report = Self {
            device: device.name.trim_end_matches('.').to_owned(),
            os: device.os.clone(),
            version: device
                .client_version
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned(),
            reached: { ways }.any(open),
            granted: false,
            groups: Vec::new(),
            refused: (!device.authorized)
                .then(|| "an administrator has to approve the device first".to_owned()),
            recording: None,
            check: None,
            may_act_as: Vec::new(),
            rules: grants.iter().map(RuleReport::new).collect(),
        };
        match Caller::new(&who(device, login, capabilities), &SystemGroups::default()) {
            Ok(caller) => report.take(caller),
            Err(denial) => report.refused = Some(denial.to_string()),
        }
        report
    }

    /// Takes over what the proxy makes of the grants.
    fn take(&mut self, caller: Caller) {
        let grant = caller.grant;
        self.granted = grant.granted;
        self.groups = caller.groups;
        let recorders: Vec<String> = grant.recorders.iter().map(ToString::to_string).collect();
        self.recording = (grant.enforce_recorder || !recorders.is_empty()).then_some(Recording {
            recorders,
            required: grant.enforce_recorder,
        });
        self.check = grant.check.map(|demand| Check {
            period_seconds: demand.period.as_secs(),
            reads: demand.reads,
        });
        let users = grant.act_as.users.iter().map(|user| format!("user {user}"));
        let groups = grant.act_as.groups.iter().map(|group| format!("group {group}"));
        self.may_act_as = users.chain(groups).collect();
    }

    fn is_let_in(&self) -> bool {
        self.reached && self.granted && self.refused.is_none()
    }
}

/// The device as the proxy would see it.
fn who(device: &Device, login: &str, cap_map: CapMap) -> WhoIs {
    let node = tailcfg::Node {
        stable_id: StableId(device.id.clone()),
        name: device.name.clone(),
        ..tailcfg::Node::default()
    };
    WhoIs {
        node: Arc::new(Peer::from_node(&node)),
        user: Arc::new(UserProfile {
            login_name: login.to_owned(),
            ..UserProfile::default()
        }),
        cap_map,
    }
}

impl RuleReport {
    fn new(grant: &Grant) -> Self {
        let mut why_not: Vec<String> = grant.unfulfilled.iter().map(unfulfilled).collect();
        if !grant.is_from {
            why_not.push(format!("it is for {}", grant.sources.join(", ")));
        }
        if !grant.is_at {
            why_not.push(format!("it is valid at {}", grant.destinations.join(", ")));
        }
        Self {
            line: grant.line,
            sources: grant.sources.clone(),
            destinations: grant.destinations.clone(),
            counts: grant.counts(),
            why_not,
        }
    }
}

fn unfulfilled(one: &Unfulfilled) -> String {
    let Unfulfilled {
        posture,
        assertion,
        value,
    } = one;
    let is = match value {
        None => "it is not set".to_owned(),
        Some(AttributeValue::Text(text)) => format!("it is '{text}'"),
        Some(AttributeValue::Number(number)) => format!("it is {number}"),
        Some(AttributeValue::Bool(value)) => format!("it is {value}"),
    };
    format!("{posture} needs {assertion}, and {is}")
}

impl Report {
    /// Whether the person is let in from any device.
    pub(super) fn is_let_in(&self) -> bool {
        self.devices.iter().any(FromDevice::is_let_in)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} at {}", self.user, self.cluster)?;
        if self.devices.is_empty() {
            writeln!(f, "\nThey have no device on the tailnet.")?;
        }
        for device in &self.devices {
            write!(f, "\n{device}")?;
        }
        Ok(())
    }
}

impl fmt::Display for FromDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({}, {})", self.device, self.os, self.version)?;
        if let Some(refused) = &self.refused {
            writeln!(f, "  refused: {refused}")?;
        } else if self.granted {
            let groups = if self.groups.is_empty() {
                "no group".to_owned()
            } else {
                self.groups.join(", ")
            };
            writeln!(f, "  in {groups}")?;
        } else {
            writeln!(f, "  has no capability {CAPABILITY} here")?;
        }
        if !self.reached {
            writeln!(f, "  does not reach it: no rule opens tcp:443 or tcp:80 there")?;
        }
        for rule in &self.rules {
            let RuleReport { line, why_not, .. } = rule;
            let (from, to) = (rule.sources.join(", "), rule.destinations.join(", "));
            if rule.counts {
                writeln!(f, "  by line {line}: {from} → {to}")?;
            } else {
                writeln!(f, "  not by line {line}: {}", why_not.join("; "))?;
            }
        }
        if let Some(Check {
            period_seconds,
            reads,
        }) = &self.check
        {
            let what = if *reads {
                "all but discovery"
            } else {
                "all but reading"
            };
            writeln!(
                f,
                "  asked for a sign-in of the last {} for {what}",
                period(*period_seconds)
            )?;
        }
        if let Some(Recording { recorders, required }) = &self.recording {
            let at = if recorders.is_empty() {
                "no recorder".to_owned()
            } else {
                recorders.join(", ")
            };
            let without = if *required { "refused" } else { "not recorded" };
            writeln!(f, "  sessions are recorded at {at}, and {without} without")?;
        }
        if !self.may_act_as.is_empty() {
            writeln!(f, "  may act as {}", self.may_act_as.join(", "))?;
        }
        Ok(())
    }
}

/// A time in its largest whole unit.
fn period(seconds: u64) -> String {
    let units = [(24 * 3600, "d"), (3600, "h"), (60, "min")];
    let whole = units.iter().find(|(length, _)| seconds.is_multiple_of(*length));
    whole.map_or_else(
        || format!("{seconds} s"),
        |(length, unit)| format!("{} {unit}", seconds / length),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tailwharf_policy::Attributes;

    use super::super::User;
    use super::*;

    const POLICY: &str = r#"{
        "groups": {"group:admin": ["alice@example.com"], "group:dev": ["bob@example.com"]},
        "tagOwners": {"tag:k8s-operator": []},
        "postures": {"posture:latestMac": ["node:os IN ['macos']"]},
        "grants": [
            {"src": ["group:admin"], "srcPosture": ["posture:latestMac"], "dst": ["tag:k8s-operator"],
             "app": {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["system:masters"]}, "recorderAddrs": ["100.64.0.9:80"], "enforceRecorder": true}],
                     "tailwharf.dev/cap/kubernetes": [{"check": {"period": "12h"}}]}},
            {"src": ["group:dev"], "dst": ["tag:k8s-operator"], "ip": ["tcp:443"],
             "app": {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["tailnet-readers"]}}]}},
            {"src": ["group:admin"], "dst": ["tag:k8s-operator"], "ip": ["tcp:443"]},
        ],
    }"#;

    fn facts() -> Facts {
        let device = |id: u8, name: &str, user: &str, os: &str| Device {
            id: id.to_string(),
            name: format!("{name}.tail1234.ts.net"),
            addresses: vec![[100, 64, 0, id].into()],
            user: user.to_owned(),
            tags: user.is_empty().then(|| vec!["tag:k8s-operator".to_owned()]),
            os: os.to_owned(),
            client_version: "1.98.1-t0".to_owned(),
            authorized: true,
        };
        let user = |login: &str| User {
            login_name: login.to_owned(),
            role: "member".to_owned(),
        };
        let os = |os: &str| Attributes::from([("node:os".to_owned(), AttributeValue::Text(os.to_owned()))]);
        Facts {
            policy: POLICY.to_owned(),
            users: ["alice@example.com", "bob@example.com", "carol@example.com"]
                .map(user)
                .to_vec(),
            devices: vec![
                device(1, "tailscale-operator", "", "linux"),
                device(2, "mac", "alice@example.com", "macOS"),
                device(3, "laptop", "alice@example.com", "linux"),
                device(4, "bobs", "bob@example.com", "linux"),
                device(5, "carols", "carol@example.com", "linux"),
            ],
            attributes: BTreeMap::from([("2".to_owned(), os("macos")), ("3".to_owned(), os("linux"))]),
        }
    }

    #[test]
    fn a_device_that_fails_the_posture_is_told_by_what() {
        let report = report(&facts(), "Alice@example.com", "tailscale-operator").unwrap();
        assert!(report.is_let_in());
        assert_eq!(
            report.to_string(),
            "alice@example.com at tailscale-operator.tail1234.ts.net\n\n\
             mac.tail1234.ts.net (macOS, 1.98.1)\n  in system:masters\n  by line 6: group:admin → tag:k8s-operator\n  \
             not by line 9: it is for group:dev\n  \
             asked for a sign-in of the last 12 h for all but reading\n  sessions are recorded at 100.64.0.9:80, and refused without\n\n\
             laptop.tail1234.ts.net (linux, 1.98.1)\n  has no capability tailscale.com/cap/kubernetes here\n  \
             not by line 6: posture:latestMac needs node:os IN ['macos'], and it is 'linux'\n  not by line 9: it is for group:dev\n"
        );
    }

    #[test]
    fn whoever_has_no_grant_is_told_for_whom_there_are_some() {
        let bob = report(&facts(), "bob@example.com", "100.64.0.1").unwrap();
        assert!(bob.is_let_in());
        let carol = report(&facts(), "carol@example.com", "tailscale-operator").unwrap();
        assert!(!carol.is_let_in());
        let text = carol.to_string();
        assert!(
            text.contains("has no capability tailscale.com/cap/kubernetes"),
            "{text}"
        );
        assert!(text.contains("no rule opens tcp:443"), "{text}");
        assert!(text.contains("not by line 6: it is for group:admin"), "{text}");
        let json = serde_json::to_value(&carol).unwrap();
        assert_eq!(json["devices"][0]["rules"][0]["counts"], false);
        assert_eq!(json["devices"][0]["reached"], false);
    }

    #[test]
    fn who_is_not_there_is_said() {
        for (user, cluster, word) in [
            ("eve@example.com", "tailscale-operator", "no user eve"),
            ("bob@example.com", "elsewhere", "no device elsewhere"),
        ] {
            let error = report(&facts(), user, cluster).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
