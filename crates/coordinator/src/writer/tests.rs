//! What was acknowledged is stored; what was not stored did not happen.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use tailwharf_wire::tailcfg::{NodeId, UserId};

use crate::{
    lab::{Lab, Switched},
    model::{Actor, Role},
    ops::{NewUser, OpError, Operations},
    store::SqliteStore,
    world::Presence,
};

use super::*;

struct Bench {
    ops: Operations,
    sessions: Arc<Sessions>,
    read_only: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Bench {
    fn start(file: &Path, pages: Option<u32>) -> Self {
        let store = SqliteStore::open(file).unwrap();
        if let Some(pages) = pages {
            store.limit_pages(pages);
        }
        let mut lab = Lab::new();
        let key = lab.auth_key(Some(1), &[], |_| {});
        for (seed, hostname) in [(1, "a"), (2, "b")] {
            lab.join(seed, &key, hostname);
            lab.apply(&[Change::SetPresence(NodeId(seed.into()), Presence::default())]);
        }
        let Lab { world, context, .. } = lab;
        let sessions = Arc::new(Sessions::new(world.clone()));
        let read_only = Arc::new(AtomicBool::new(false));
        let (published, worlds) = watch::channel(world);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            store: Box::new(Switched {
                store,
                read_only: read_only.clone(),
            }),
            context,
            counters: Arc::default(),
            clock: jiff::Timestamp::now,
            sessions: sessions.clone(),
            published,
        };
        let thread = writer.spawn(queue).unwrap();
        Self {
            ops: Operations::new(jobs, worlds),
            sessions,
            read_only,
            thread,
        }
    }

    async fn create(&self, number: usize) -> Result<(), OpError> {
        let new = NewUser {
            login: format!("user{number}@example.com"),
            display_name: "x".repeat(200),
            role: Role::Member,
        };
        self.ops.create_user(Actor::Administrator, new).await.map(drop)
    }

    async fn stop(self) {
        self.ops.close().await;
        self.thread.join().unwrap();
    }
}

fn stored_logins(file: &Path) -> Vec<String> {
    SqliteStore::open(file)
        .unwrap()
        .load()
        .unwrap()
        .users
        .into_iter()
        .map(|user| user.login)
        .collect()
}

#[tokio::test]
async fn a_full_disk_refuses_the_change_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    let bench = Bench::start(&file, Some(60));
    let node = NodeId(1);
    let (session, _) = bench.sessions.open(node);
    let mut acknowledged = Vec::new();
    let refused = loop {
        let number = acknowledged.len();
        match bench.create(number).await {
            Ok(()) => acknowledged.push(format!("user{number}@example.com")),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&refused, OpError::Store(error) if matches!(**error, StoreError::Full)),
        "{refused:?}"
    );
    let logins = |world: &World| {
        world
            .users()
            .skip(2)
            .map(|user| user.login.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(logins(&bench.ops.world()), acknowledged);
    assert!(session.take().is_some(), "the stream goes on");
    bench.stop().await;
    assert_eq!(stored_logins(&file), acknowledged);
}

#[tokio::test]
async fn a_store_that_turns_read_only_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    let bench = Bench::start(&file, None);
    bench.create(0).await.unwrap();
    let before = bench.ops.world();

    bench.read_only.store(true, Ordering::SeqCst);
    let refused = bench.create(1).await.unwrap_err();
    assert!(
        matches!(&refused, OpError::Store(error) if matches!(**error, StoreError::ReadOnly)),
        "{refused:?}"
    );
    assert!(Arc::ptr_eq(&before, &bench.ops.world()));

    let id = NodeId(1);
    let online = Presence {
        online: true,
        ..Presence::default()
    };
    let present = crate::ops::Decision::new(vec![Change::SetPresence(id, online)], ());
    bench
        .ops
        .submit(move |_, _| Ok(present))
        .await
        .expect("what is not stored needs no store");

    bench.read_only.store(false, Ordering::SeqCst);
    bench.create(1).await.unwrap();
    bench.stop().await;
    assert_eq!(stored_logins(&file), ["user0@example.com", "user1@example.com"]);
}

#[tokio::test]
async fn who_is_online_does_not_depend_on_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(&dir.path().join("a.db"), None);
    bench.read_only.store(true, Ordering::SeqCst);
    let (id, peer) = (NodeId(1), NodeId(2));
    let (session, _) = bench.sessions.open(peer);
    let connect = bench
        .ops
        .submit(move |world, _| Ok(crate::poll::set_online(world, id, true)));
    // Both may fall into one batch, of which the store refuses a part.
    let (refused, connected) = tokio::join!(bench.create(0), connect);
    assert!(matches!(refused, Err(OpError::Store(_))), "{refused:?}");
    connected.unwrap();
    assert!(bench.ops.world().presence(id).online);
    assert_eq!(bench.ops.world().users().count(), 2, "alice and bob of the lab");
    assert!(
        session
            .take()
            .unwrap()
            .update
            .is_some_and(|update| update.latest.presence(id).online),
        "streams are told"
    );
    bench.stop().await;
}

#[tokio::test]
async fn a_refused_decision_does_not_harm_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(&dir.path().join("a.db"), None);
    let numbers = [0, 0, 1, 1, 2];
    let outcomes = futures::future::join_all(numbers.map(|number| bench.create(number))).await;
    let made: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(made, [true, false, true, false, true]);
    bench.stop().await;
}

#[tokio::test]
async fn after_the_stop_nothing_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(&dir.path().join("a.db"), None);
    let ops = bench.ops.clone();
    bench.stop().await;
    assert!(matches!(
        ops.delete_user(Actor::Administrator, UserId(1)).await,
        Err(OpError::Stopped)
    ));
}
