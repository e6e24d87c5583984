//! What a coordinator acknowledged survives that it is killed, at whatever instant.

#![expect(clippy::unwrap_used, reason = "helpers of the test, which fails by panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tailwharf_coordinator::{
    Config, Coordinator, Operations,
    model::{Actor, Role},
    ops::{NewAuthKey, NewUser},
};
use tailwharf_wire::{
    key::{MachinePrivate, NodePrivate},
    tailcfg::{Hostinfo, NodeId, RegisterAuth, RegisterRequest},
};
use tokio_util::sync::CancellationToken;

const ROLE: &str = "TAILWHARF_TEST_CRASH_DIR";
const NAME: &str = "acknowledged_changes_survive_200_kills";
/// Coordinators that are killed side by side, and how often each.
const LANES: u64 = 4;
const KILLS: usize = 50;
/// How long a coordinator lives once it works, at most.
const LIFE: Duration = Duration::from_millis(30);

fn config(dir: &Path) -> Config {
    let text = format!(
        "server_url = \"http://127.0.0.1:1\"\nlisten = \"127.0.0.1:0\"\ndata_dir = {dir:?}\nmagic_dns_suffix = \"t.example.net\"\n[relay]\nenabled = false\n"
    );
    Config::parse(&text, dir).unwrap()
}

/// A key for nodes, of the one user.
async fn key(ops: &Operations) -> String {
    let known = ops.world().users().next().map(|user| user.id);
    let owner = match known {
        Some(owner) => owner,
        None => {
            let new = NewUser {
                login: "alice@example.com".to_owned(),
                display_name: String::new(),
                role: Role::Owner,
            };
            ops.create_user(Actor::Administrator, new).await.unwrap().id
        }
    };
    let new = NewAuthKey {
        creator: Actor::Administrator,
        owner: Some(owner),
        description: String::new(),
        reusable: true,
        ephemeral: false,
        preauthorized: true,
        tags: BTreeSet::new(),
        lifetime: None,
    };
    ops.create_auth_key(new).await.unwrap().secret.reveal().to_owned()
}

/// Creates nodes of one host name, and deletes some, until killed. Prints each change before it is asked for and once it is acknowledged.
async fn write_until_killed(dir: &Path) {
    let handle = Coordinator::start(config(dir), CancellationToken::new())
        .await
        .unwrap();
    let ops = handle.operations();
    let auth_key = key(ops).await;
    let mut out = std::io::stdout();
    let mut rng = StdRng::from_entropy();
    for number in 1.. {
        let node_key = NodePrivate::generate(&mut rng).public();
        let request = RegisterRequest {
            node_key,
            auth: Some(RegisterAuth {
                auth_key: auth_key.clone(),
            }),
            hostinfo: Some(Hostinfo {
                hostname: "web".to_owned(),
                ..Hostinfo::default()
            }),
            ..RegisterRequest::default()
        };
        let machine = MachinePrivate::generate(&mut rng).public();
        let answer = ops.register(machine, request).await.unwrap();
        assert!(answer.machine_authorized, "{}", answer.error);
        let world = ops.world();
        let node = world.node_by_key(&node_key).unwrap();
        writeln!(out, "created {} {} {}", node.id, node.ipv4, node.name).unwrap();
        if number % 5 == 0 {
            writeln!(out, "deleting {}", node.id).unwrap();
            ops.delete_node(Actor::Administrator, node.id).await.unwrap();
            writeln!(out, "deleted {}", node.id).unwrap();
        }
        out.flush().unwrap();
    }
}

/// What the lives of one coordinator have said.
#[derive(Default)]
struct Said {
    created: BTreeMap<NodeId, (String, String)>,
    deleting: BTreeSet<NodeId>,
    deleted: BTreeSet<NodeId>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let id = |text: &str| NodeId(text.parse().unwrap());
        match words.as_slice() {
            ["created", node, addr, name] => {
                let former = self
                    .created
                    .insert(id(node), ((*addr).to_owned(), (*name).to_owned()));
                assert!(former.is_none(), "number {node} was given twice");
            }
            ["deleting", node] => {
                self.deleting.insert(id(node));
            }
            ["deleted", node] => {
                self.deleted.insert(id(node));
            }
            _ => {}
        }
    }
}

/// One life, from start to kill.
fn live(dir: &Path, said: &mut Said, rng: &mut StdRng) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(ROLE, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let first = lines.by_ref().find(|line| line.starts_with("created "));
    said.hear(&first.unwrap());
    let life = rng.gen_range(Duration::ZERO..LIFE);
    let killer = thread::spawn(move || {
        // Any instant will do: nothing is waited for.
        #[expect(clippy::disallowed_methods, reason = "a thread of its own does nothing else")]
        thread::sleep(life);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    lines.for_each(|line| said.hear(&line));
    killer.join().unwrap();
}

async fn check(dir: &Path, said: &Said) {
    let handle = Coordinator::start(config(dir), CancellationToken::new())
        .await
        .unwrap();
    let world = handle.operations().world();
    for (id, (addr, name)) in &said.created {
        match world.node(*id) {
            Some(node) => {
                assert_eq!((&node.ipv4.to_string(), &node.name), (addr, name), "node {id}");
                assert!(!said.deleted.contains(id), "node {id} came back");
            }
            None => assert!(said.deleting.contains(id), "node {id} is lost"),
        }
    }
    let addresses: BTreeSet<&String> = said.created.values().map(|(addr, _)| addr).collect();
    assert_eq!(addresses.len(), said.created.len(), "an address was given twice");
    let names: BTreeSet<&String> = world.nodes().map(|node| &node.name).collect();
    assert_eq!(names.len(), world.nodes().count(), "a name was given twice");
    handle.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn acknowledged_changes_survive_200_kills() {
    #[expect(clippy::disallowed_methods, reason = "the role of the second start")]
    if let Ok(dir) = std::env::var(ROLE) {
        return write_until_killed(&PathBuf::from(dir)).await;
    }
    let lanes = (0..LANES).map(|seed| {
        tokio::task::spawn_blocking(move || {
            let dir = tempfile::tempdir().unwrap();
            let (mut said, mut rng) = (Said::default(), StdRng::seed_from_u64(seed));
            for _ in 0..KILLS {
                live(dir.path(), &mut said, &mut rng);
            }
            (dir, said)
        })
    });
    for lane in futures::future::join_all(lanes).await {
        let (dir, said) = lane.unwrap();
        assert!(said.created.len() >= KILLS, "each life has created a node");
        check(dir.path(), &said).await;
    }
}
