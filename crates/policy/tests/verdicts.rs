//! Cases with what they mean: `verdicts/*.txt`, each a list of
//!
//! ```text
//! # what is shown
//! the policy
//! --
//! expectations, one a line
//! ```
//!
//! all of them for `verdicts/tailnet.json`. `$TAGS` stands for a `tagOwners` section with the tags of that tailnet. The
//! expectations are listed at [`Case::expect`].
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test program")]

mod filter;

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;
use tailwharf_policy::{Graph, Node, Policy, PolicyError, Tailnet};
use tailwharf_wire::tailcfg::{NodeId, SshRule};

const NAMES: [&str; 18] = [
    "alice-mac",
    "alice-pc",
    "bob",
    "carol",
    "olga",
    "ivan",
    "nina",
    "bill",
    "audrey",
    "operator",
    "k8s",
    "web",
    "db",
    "router",
    "router-eu",
    "exit",
    "exit-eu",
    "nobody",
];

const TAGS: &str = r#""tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"], "tag:web": [], "tag:db": [], "tag:router": [], "tag:router-eu": [], "tag:exit": [], "tag:exit-eu": []}"#;

struct Case<'a> {
    name: &'a str,
    tailnet: &'a Tailnet,
    result: Result<Graph, Vec<PolicyError>>,
}

#[test]
fn policies_mean_what_is_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("verdicts");
    let tailnet = fs::read_to_string(folder.join("tailnet.json")).unwrap();
    let tailnet: Tailnet = serde_json::from_str(&tailnet).unwrap();
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let (mut count, mut failures) = (0, Vec::new());
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|end| end == "txt"))
    {
        let text = fs::read_to_string(file).unwrap();
        for case in text.split("\n# ").filter(|case| !case.trim().is_empty()) {
            count += 1;
            let title = case.trim_start_matches("# ").lines().next().unwrap();
            let body = &case[case.find('\n').unwrap()..];
            let (policy, expectations) = body
                .split_once("\n--\n")
                .unwrap_or_else(|| panic!("{title} lacks --"));
            let policy = policy.trim().replace("$TAGS", TAGS);
            let result = Policy::parse(&policy).map(|policy| Graph::new(Arc::new(policy), &tailnet));
            let case = Case {
                name: title,
                tailnet: &tailnet,
                result,
            };
            let lines = expectations
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty());
            failures.extend(lines.filter_map(|line| case.expect(line).err()));
            failures.extend(case.unexpected(expectations));
        }
    }
    assert!(count >= 100, "only {count} cases were found");
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

impl Case<'_> {
    /// Checks one line:
    ///
    /// - `allow A -> B:PORT`, `deny …`: B is a node (each of its addresses is tried), a service or an address; `/udp`, `/icmp` or a
    ///   number after the port is the protocol; `by C` names the node at which the packet arrives
    /// - `peers A: B C`, `caps A: name name`
    /// - `can A -> B CAPABILITY VALUES`, `cannot A -> B CAPABILITY`
    /// - `ssh A -> B USER accept|check|deny`
    /// - `steer A ROUTER ROUTE yes|no|free`
    /// - `tests ok`, `fails LINE:COLUMN TEXT`, `error LINE:COLUMN TEXT`
    fn expect(&self, line: &str) -> Result<(), String> {
        let (verb, rest) = line.split_once(' ').unwrap();
        let found = match verb {
            "allow" | "deny" => self.reach(rest, verb == "allow"),
            "peers" => {
                let (name, expected) = rest.split_once(':').unwrap();
                let peers = self.graph()?.peers_of(id(name));
                is(
                    &peers
                        .iter()
                        .map(|peer| NAMES[peer.0 as usize - 1])
                        .collect::<Vec<_>>()
                        .join(" "),
                    expected.trim(),
                )
            }
            "caps" => {
                let (name, expected) = rest.split_once(':').unwrap();
                is(
                    &self
                        .graph()?
                        .cap_map_for(id(name))
                        .into_keys()
                        .collect::<Vec<_>>()
                        .join(" "),
                    expected.trim(),
                )
            }
            "can" | "cannot" => self.capability(rest),
            "ssh" => self.ssh(rest),
            "steer" => {
                let words: Vec<&str> = rest.split(' ').collect();
                let route: IpNet = words[2].parse().unwrap();
                let verdict = match self.graph()?.steering(id(words[0]), id(words[1]), &route) {
                    Some(true) => "yes",
                    Some(false) => "no",
                    None => "free",
                };
                is(verdict, words[3])
            }
            "tests" => self
                .graph()?
                .policy()
                .check(self.tailnet)
                .map_err(|errors| describe(&errors)),
            "fails" => match self.graph()?.policy().check(self.tailnet) {
                Ok(()) => Err("the tests hold".to_owned()),
                Err(errors) => has(&errors, rest),
            },
            "error" => match &self.result {
                Ok(_) => Err("the policy is accepted".to_owned()),
                Err(errors) => has(errors, rest),
            },
            _ => panic!("{line}: no such expectation"),
        };
        found.map_err(|found| format!("{}\n    {line}\n    but {found}", self.name))
    }

    /// Errors that no line expects.
    fn unexpected(&self, expectations: &str) -> Vec<String> {
        let errors = self.result.as_ref().err().map(Vec::as_slice).unwrap_or_default();
        let texts = errors.iter().map(brief);
        texts
            .filter(|text| {
                !expectations
                    .lines()
                    .any(|line| line.trim() == format!("error {text}"))
            })
            .map(|text| format!("{}\n    unexpected: error {text}", self.name))
            .collect()
    }

    fn graph(&self) -> Result<&Graph, String> {
        self.result.as_ref().map_err(|errors| describe(errors))
    }

    fn node(&self, name: &str) -> &Node {
        self.tailnet
            .nodes
            .iter()
            .find(|node| node.id == id(name))
            .unwrap()
    }

    fn reach(&self, text: &str, expected: bool) -> Result<(), String> {
        let graph = self.graph()?;
        let (source, rest) = text.split_once(" -> ").unwrap();
        let (to, by) = rest
            .split_once(" by ")
            .map_or((rest, None), |(to, by)| (to, Some(by)));
        let (to, protocol) = match to.split_once('/') {
            None => (to, 6),
            Some((to, "udp")) => (to, 17),
            Some((to, "icmp")) => (to, 1),
            Some((to, number)) => (to, number.parse().unwrap()),
        };
        let (to, port) = to.rsplit_once(':').unwrap();
        let port = port.parse().unwrap();
        let service = self.tailnet.services.iter().find(|service| service.name == to);
        let targets: Vec<(IpAddr, Vec<NodeId>)> =
            match (to.trim_matches(['[', ']']).parse::<IpAddr>(), service) {
                (Ok(ip), _) => vec![(ip, vec![id(by.unwrap())])],
                (_, Some(service)) => {
                    let hosts = self
                        .tailnet
                        .nodes
                        .iter()
                        .filter(|node| node.services.contains(to));
                    let hosts: Vec<NodeId> = hosts.map(|node| node.id).collect();
                    service.addresses.iter().map(|ip| (*ip, hosts.clone())).collect()
                }
                _ => self
                    .node(to)
                    .addresses
                    .iter()
                    .map(|ip| (*ip, vec![id(to)]))
                    .collect(),
            };
        let sources: Vec<IpAddr> = match source.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.node(source).addresses.clone(),
        };
        for (destination, arrivals) in targets {
            for source in sources.iter().filter(|ip| ip.is_ipv4() == destination.is_ipv4()) {
                for node in &arrivals {
                    let found = filter::allows(&graph.rules_for(*node), *source, destination, protocol, port);
                    if found != expected {
                        return Err(format!(
                            "the filter of {} for {source} to {destination} says {found}",
                            NAMES[node.0 as usize - 1]
                        ));
                    }
                }
                if by.is_none() && graph.allows(*source, destination, protocol, port) != expected {
                    return Err(format!(
                        "the policy for {source} to {destination} says {}",
                        !expected
                    ));
                }
            }
        }
        Ok(())
    }

    fn capability(&self, text: &str) -> Result<(), String> {
        let (source, rest) = text.split_once(" -> ").unwrap();
        let mut words = rest.splitn(3, ' ');
        let (target, capability, expected) = (words.next().unwrap(), words.next().unwrap(), words.next());
        let expected: Option<Vec<Value>> = expected.map(|values| serde_json::from_str(values).unwrap());
        let rules = self.graph()?.rules_for(id(target));
        for (from, at) in self
            .node(source)
            .addresses
            .iter()
            .zip(&self.node(target).addresses)
        {
            let mut values = None;
            for grant in rules
                .iter()
                .filter(|rule| rule.src_ips.iter().any(|text| filter::covers(text, *from)))
                .flat_map(|rule| &rule.cap_grant)
                .filter(|grant| grant.dsts.iter().any(|net| net.contains(at)))
            {
                let more = grant.cap_map.get(capability).cloned();
                if let Some(more) = more {
                    values.get_or_insert_with(Vec::<Value>::new).extend(more);
                }
            }
            if values != expected {
                return Err(format!("at {at} it is {values:?}"));
            }
        }
        Ok(())
    }

    fn ssh(&self, text: &str) -> Result<(), String> {
        let (source, rest) = text.split_once(" -> ").unwrap();
        let words: Vec<&str> = rest.split(' ').collect();
        let rules = self.graph()?.ssh_policy_for(id(words[0]), Some("https://check"));
        for ip in &self.node(source).addresses {
            let applies = |rule: &&SshRule| {
                let user = rule.ssh_users.get(words[1]).or_else(|| rule.ssh_users.get("*"));
                rule.principals
                    .iter()
                    .any(|principal| principal.node_ip == ip.to_string())
                    && user.is_some_and(|local| local == "=" || local == words[1])
            };
            let rule = rules.iter().flat_map(|policy| &policy.rules).find(applies);
            let verdict = match rule.and_then(|rule| rule.action.as_ref()) {
                None => "deny",
                Some(action) if action.accept => "accept",
                Some(action) if action.hold_and_delegate == "https://check" => "check",
                Some(_) => "reject",
            };
            is(verdict, words[2])?;
        }
        Ok(())
    }
}

fn id(name: &str) -> NodeId {
    let index = NAMES.iter().position(|known| *known == name);
    NodeId(index.unwrap_or_else(|| panic!("no node {name}")) as i64 + 1)
}

fn is(found: &str, expected: &str) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("it is {found:?}"))
    }
}

fn brief(error: &PolicyError) -> String {
    let text = error.to_string();
    let (_, text) = text.split_once(": ").unwrap();
    format!("{}:{} {text}", error.line, error.column)
}

fn describe(errors: &[PolicyError]) -> String {
    errors.iter().map(brief).collect::<Vec<_>>().join("\n        ")
}

fn has(errors: &[PolicyError], expected: &str) -> Result<(), String> {
    let found = errors.iter().any(|error| brief(error) == expected);
    if found { Ok(()) } else { Err(describe(errors)) }
}
