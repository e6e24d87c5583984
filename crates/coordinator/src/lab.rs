//! A world that tests change step by step, without writer and store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::{SignedDuration, Timestamp};
use rand::{SeedableRng, rngs::StdRng};
use tailwharf_policy::Policy;
use tailwharf_wire::{
    key::{MachinePrivate, MachinePublic, NodePrivate, NodePublic},
    tailcfg::{Hostinfo, NetInfo, RegionId, RegisterAuth, RegisterRequest, UserId},
};

use crate::{
    config::Config,
    model::{Actor, AuthKey, PolicyVersion, Role, Tag, User},
    ops::{Context, Decision, OpError},
    register::{self, Registered},
    secret::{self, CredentialKind, Secret},
    sessions::Sessions,
    store::{Saved, SqliteStore, Store, StoreError},
    world::{ActivePolicy, Change, Counters, Effects, Facts, World},
};

pub(crate) const POLICY: &str = r#"{
    "groups": {"group:dev": ["bob@example.com"]},
    "tagOwners": {"tag:operator": [], "tag:k8s": ["tag:operator", "bob@example.com"]},
    "acls": [
        {"action": "accept", "src": ["autogroup:admin"], "dst": ["*:*"]},
        {"action": "accept", "src": ["group:dev"], "dst": ["tag:k8s:80"]},
    ],
}"#;

pub(crate) struct Lab {
    pub(crate) world: Arc<World>,
    pub(crate) context: Context,
    pub(crate) sessions: Sessions,
}

/// A policy in force, from its text.
pub(crate) fn active(version: i64, text: &str) -> ActivePolicy {
    ActivePolicy {
        version: Arc::new(PolicyVersion {
            version,
            text: text.to_owned(),
            actor: Actor::Administrator,
            created: Timestamp::UNIX_EPOCH,
        }),
        policy: Arc::new(Policy::parse(text).unwrap()),
    }
}

pub(crate) fn tags(list: &[&str]) -> BTreeSet<Tag> {
    list.iter().map(|tag| tag.parse().unwrap()).collect()
}

pub(crate) fn facts() -> Facts {
    Facts {
        prefixes: crate::ipam::Prefixes::default(),
        suffix: "tail1234.ts.net".to_owned().try_into().unwrap(),
        funnel_ports: BTreeSet::from([443, 8443]),
    }
}

pub(crate) fn machine(seed: u8) -> MachinePublic {
    MachinePrivate::from_bytes([seed; 32]).public()
}

pub(crate) fn node_key(seed: u8) -> NodePublic {
    NodePrivate::from_bytes([seed; 32]).public()
}

pub(crate) fn hostinfo(hostname: &str) -> Hostinfo {
    Hostinfo {
        hostname: hostname.to_owned(),
        os: "linux".to_owned(),
        ..Hostinfo::default()
    }
}

pub(crate) fn hostinfo_at(hostname: &str, region: i32) -> Hostinfo {
    let net_info = NetInfo {
        preferred_derp: RegionId(region),
        ..NetInfo::default()
    };
    Hostinfo {
        net_info: Some(net_info),
        ..hostinfo(hostname)
    }
}

impl Lab {
    /// The policy [`POLICY`] and the users alice (1, owner) and bob (2).
    pub(crate) fn new() -> Self {
        let world = Arc::new(World::empty(facts(), Counters::default(), active(1, POLICY)));
        let context = Context {
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            rng: StdRng::seed_from_u64(7),
            prefixes: world.facts().prefixes,
            suffix: world.facts().suffix.clone(),
            server_url: "http://10.0.0.1:8080".parse().unwrap(),
        };
        let mut lab = Self {
            sessions: Sessions::new(world.clone()),
            world,
            context,
        };
        for (id, login, role) in [
            (1, "alice@example.com", Role::Owner),
            (2, "bob@example.com", Role::Member),
        ] {
            lab.apply(&[Change::PutUser(Arc::new(User {
                id: UserId(id),
                login: login.to_owned(),
                display_name: login.to_owned(),
                role,
                created: lab.context.now,
            }))]);
        }
        lab
    }

    pub(crate) fn apply(&mut self, changes: &[Change]) -> Effects {
        let mut world = self.world.as_ref().clone();
        let mut effects = Effects::default();
        for change in changes {
            world.apply(change, &mut effects);
        }
        world.settle(&mut effects);
        let world = Arc::new(world);
        self.sessions.publish(&self.world, &world, &effects);
        self.world = world;
        effects
    }

    pub(crate) fn run<T>(
        &mut self,
        decide: impl FnOnce(&World, &mut Context) -> Result<Decision<T>, OpError>,
    ) -> Result<T, OpError> {
        let world = self.world.clone();
        let Decision { changes, answer } = decide(&world, &mut self.context)?;
        self.apply(&changes);
        Ok(answer)
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
        self.context.now = self
            .context
            .now
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap();
    }

    /// An auth key of an hour: of `owner`, or with tags.
    pub(crate) fn auth_key(
        &mut self,
        owner: Option<i64>,
        list: &[&str],
        edit: impl FnOnce(&mut AuthKey),
    ) -> Secret {
        let (id, text, hash) = secret::mint(CredentialKind::Auth, &mut self.context.rng);
        let mut key = AuthKey {
            id,
            secret: hash,
            creator: Actor::Administrator,
            owner: owner.map(UserId),
            description: String::new(),
            reusable: true,
            ephemeral: false,
            preauthorized: true,
            tags: tags(list),
            created: self.context.now,
            expires: self
                .context
                .now
                .checked_add(SignedDuration::from_hours(1))
                .unwrap(),
            used: None,
            revoked: None,
        };
        edit(&mut key);
        self.apply(&[Change::PutAuthKey(Arc::new(key))]);
        text
    }

    pub(crate) fn register(&mut self, machine: MachinePublic, request: RegisterRequest) -> Registered {
        self.run(|world, context| register::register(world, context, machine, request))
            .unwrap()
    }

    /// A node of machine and node key `seed`.
    pub(crate) fn join(&mut self, seed: u8, key: &Secret, hostname: &str) -> Registered {
        self.register(machine(seed), request(seed, Some(key), hostname))
    }
}

/// A first registration.
pub(crate) fn request(seed: u8, key: Option<&Secret>, hostname: &str) -> RegisterRequest {
    RegisterRequest {
        node_key: node_key(seed),
        auth: key.map(|key| RegisterAuth {
            auth_key: key.reveal().to_owned(),
        }),
        hostinfo: Some(hostinfo(hostname)),
        ..RegisterRequest::default()
    }
}

/// What the minimal configuration of a test says.
pub(crate) fn config(dir: &std::path::Path) -> Config {
    let text = format!(
        "server_url = \"http://127.0.0.1:1\"\nlisten = \"127.0.0.1:0\"\ndata_dir = {:?}\nmagic_dns_suffix = \"t.example.net\"\n[relay]\nenabled = false\n",
        dir.join("data")
    );
    Config::parse(&text, dir).unwrap()
}

/// A store that can be made to refuse writes.
pub(crate) struct Switched {
    pub(crate) store: SqliteStore,
    pub(crate) read_only: Arc<AtomicBool>,
}

impl Store for Switched {
    fn load(&mut self) -> Result<Saved, StoreError> {
        self.store.load()
    }

    fn set_server_key(&mut self, key: &MachinePrivate) -> Result<(), StoreError> {
        self.store.set_server_key(key)
    }

    fn commit(&mut self, changes: &[Change], counters: Counters) -> Result<(), StoreError> {
        self.store.set_read_only(self.read_only.load(Ordering::SeqCst));
        self.store.commit(changes, counters)
    }

    fn back_up(&mut self, to: &std::path::Path) -> Result<(), StoreError> {
        self.store.back_up(to)
    }
}

/// How many times each value is there.
pub(crate) fn counts<T: Ord>(values: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    values
        .into_iter()
        .for_each(|value| *counts.entry(value).or_default() += 1);
    counts
}
