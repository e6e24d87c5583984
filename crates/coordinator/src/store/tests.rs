//! The embedded store by itself.

use std::sync::Arc;

use tailwharf_wire::tailcfg::DerpMap;

use super::*;
use crate::{
    lab::{Lab, active, counts},
    model::{Actor, ApiToken, Proof},
    secret::{self, CredentialKind},
    world::World,
};

/// A world with one of everything.
fn rich() -> (Lab, Vec<Change>) {
    let mut lab = Lab::new();
    let auth = lab.auth_key(Some(1), &[], |_| {});
    lab.join(1, &auth, "web");
    let (id, _, hash) = secret::mint(CredentialKind::Api, &mut lab.context.rng);
    let now = lab.context.now;
    let token = ApiToken {
        id: id.clone(),
        secret: hash.clone(),
        actor: Actor::Administrator,
        scopes: ["all".to_owned()].into(),
        description: String::new(),
        created: now,
        expires: now,
    };
    let client = OauthClient {
        id,
        proof: Proof::Secret(hash),
        creator: Actor::Administrator,
        description: "é\"'".to_owned(),
        scopes: ["all".to_owned()].into(),
        tags: crate::lab::tags(&["tag:k8s"]),
        created: now,
    };
    let record = DnsTxt {
        name: "_acme-challenge.web".to_owned(),
        value: "v".to_owned(),
        node: tailwharf_wire::tailcfg::NodeId(1),
        created: now,
    };
    let confirmation = Confirmation {
        source: tailwharf_wire::tailcfg::NodeId(1),
        key: crate::lab::node_key(1),
        user: tailwharf_wire::tailcfg::UserId(1),
        target: crate::model::CheckTarget::Service("svc:kube".parse().unwrap()),
        at: now,
    };
    lab.apply(&[
        Change::PutConfirmation(Arc::new(confirmation)),
        Change::PutToken(Arc::new(token)),
        Change::PutOauthClient(Arc::new(client)),
        Change::PutDnsTxt(Arc::new(record)),
    ]);
    let changes = everything(&lab.world);
    (lab, changes)
}

fn everything(world: &World) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    changes.extend(world.users().cloned().map(Change::PutUser));
    changes.extend(world.nodes().cloned().map(Change::PutNode));
    changes.extend(world.auth_keys().cloned().map(Change::PutAuthKey));
    changes.extend(world.oauth_clients().cloned().map(Change::PutOauthClient));
    changes.extend(world.tokens().cloned().map(Change::PutToken));
    changes.extend(world.dns_txt().cloned().map(Change::PutDnsTxt));
    changes.extend(world.confirmations().cloned().map(Change::PutConfirmation));
    changes.push(Change::PutPolicy(Arc::new(active(
        world.policy().version.version,
        &world.policy().version.text,
    ))));
    changes
}

fn debug(world: &World) -> Vec<String> {
    everything(world)
        .iter()
        .map(|change| match change {
            Change::PutPolicy(policy) => format!("{:?}", policy.version),
            other => format!("{other:?}"),
        })
        .collect()
}

#[test]
fn what_is_stored_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    let (lab, changes) = rich();
    let key = MachinePrivate::from_bytes([3; 32]);
    {
        let mut store = SqliteStore::open(&file).unwrap();
        store.set_server_key(&key).unwrap();
        store.commit(&changes, lab.world.counters()).unwrap();
    }
    let saved = SqliteStore::open(&file).unwrap().load().unwrap();
    assert_eq!(saved.server_key.as_ref().unwrap().public(), key.public());
    let policy = active(1, &saved.policy.as_ref().unwrap().text);
    let loaded = World::load(
        crate::lab::facts(),
        policy,
        DerpMap::default(),
        saved,
        lab.context.now,
    );
    let without_policy = |world| {
        debug(world)
            .into_iter()
            .filter(|line| !line.starts_with("PolicyVersion"))
            .collect()
    };
    let (loaded_rows, rows): (Vec<_>, Vec<_>) = (without_policy(&loaded), without_policy(&lab.world));
    assert_eq!(loaded_rows, rows);
    assert_eq!(loaded.counters(), lab.world.counters());
}

#[test]
fn what_is_deleted_is_gone_but_numbers_are_not_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let (lab, changes) = rich();
    let mut store = SqliteStore::open(&dir.path().join("a.db")).unwrap();
    store.commit(&changes, lab.world.counters()).unwrap();
    let node = lab.world.nodes().next().unwrap().id;
    let mut deletions = crate::ops::removal(&lab.world, node);
    deletions.extend(lab.world.users().map(|user| Change::DeleteUser(user.id)));
    deletions.extend(
        lab.world
            .auth_keys()
            .map(|key| Change::DeleteAuthKey(key.id.clone())),
    );
    deletions.extend(
        lab.world
            .oauth_clients()
            .map(|client| Change::DeleteOauthClient(client.id.clone())),
    );
    deletions.extend(
        lab.world
            .tokens()
            .map(|token| Change::DeleteToken(token.id.clone())),
    );
    store.commit(&deletions, lab.world.counters()).unwrap();
    let saved = store.load().unwrap();
    let rows = [
        saved.users.len(),
        saved.nodes.len(),
        saved.auth_keys.len(),
        saved.oauth_clients.len(),
        saved.tokens.len(),
        saved.dns_txt.len(),
        saved.confirmations.len(),
    ];
    assert_eq!(counts(rows), [(0, 7)].into());
    assert_eq!((saved.counters.next_node, saved.counters.next_user), (2, 3));
}

#[test]
fn the_newest_policy_is_loaded_and_old_ones_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&dir.path().join("a.db")).unwrap();
    for version in 1..=120 {
        let change = Change::PutPolicy(Arc::new(active(version, "{}")));
        store.commit(&[change], Counters::default()).unwrap();
    }
    assert_eq!(store.load().unwrap().policy.unwrap().version, 120);
}

#[test]
fn a_second_coordinator_is_kept_away() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    let _first = SqliteStore::open(&file).unwrap();
    assert!(matches!(SqliteStore::open(&file), Err(StoreError::InUse)));
}

#[test]
fn files_that_are_none_of_ours_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    assert!(matches!(
        SqliteStore::open(&dir.path().join("missing/a.db")),
        Err(StoreError::Open { .. })
    ));
    std::fs::write(&file, vec![7; 8192]).unwrap();
    assert!(SqliteStore::open(&file).is_err());
    std::fs::remove_file(&file).unwrap();
    drop(SqliteStore::open(&file).unwrap());
    let db = rusqlite::Connection::open(&file).unwrap();
    db.execute("INSERT INTO migrations VALUES (99, '')", []).unwrap();
    drop(db);
    assert!(matches!(
        SqliteStore::open(&file),
        Err(StoreError::Newer { found: 99, .. })
    ));
}

#[test]
fn a_row_of_another_shape_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    drop(SqliteStore::open(&file).unwrap());
    let db = rusqlite::Connection::open(&file).unwrap();
    db.execute("INSERT INTO nodes VALUES (5, '{}')", []).unwrap();
    drop(db);
    let error = SqliteStore::open(&file).unwrap().load().unwrap_err();
    assert!(
        matches!(&error, StoreError::Row { table: "nodes", id, .. } if id == "5"),
        "{error:?}"
    );
}
