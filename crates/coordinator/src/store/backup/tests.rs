//! Copies, damage, and files of earlier versions.

use super::*;
use crate::{
    lab::Lab,
    model::{NodeOwner, Proof},
    world::{Change, Counters},
};

/// A store with the nodes of a lab.
fn filled(file: &Path) -> Lab {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |_| {});
    lab.join(1, &key, "web");
    lab.join(2, &key, "db");
    let users = lab.world.users().cloned().map(Change::PutUser);
    let changes: Vec<_> = users
        .chain(lab.world.nodes().cloned().map(Change::PutNode))
        .collect();
    SqliteStore::open(file)
        .unwrap()
        .commit(&changes, lab.world.counters())
        .unwrap();
    lab
}

fn names(file: &Path) -> Vec<String> {
    let saved = SqliteStore::open(file).unwrap().load().unwrap();
    saved.nodes.into_iter().map(|node| node.name).collect()
}

#[test]
fn what_stands_beside_the_store_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let (file, copy) = (dir.path().join("a.db"), dir.path().join("copy.db"));
    filled(&file);
    fs::write(dir.path().join("ca.json"), "the root").unwrap();
    fs::write(dir.path().join("relay.json"), "the relay").unwrap();
    SqliteStore::open(&file).unwrap().back_up(&copy).unwrap();
    // On another machine, where a relay ran before.
    let moved = other.path().join("a.db");
    fs::write(other.path().join("relay.json"), "another relay").unwrap();
    for _ in 0..2 {
        restore(&copy, &moved).unwrap();
        assert_eq!(names(&moved), ["web", "db"]);
        let read = |name: &str| fs::read_to_string(other.path().join(name)).unwrap();
        assert_eq!(
            (read("ca.json"), read("relay.json")),
            ("the root".to_owned(), "the relay".to_owned())
        );
    }
    assert!(other.path().join("relay.json.replaced").exists());
    assert!(!other.path().join("ca-accounts.json").exists());
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(other.path().join("ca.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_store_is_as_it_was_when_it_was_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (file, copy) = (dir.path().join("a.db"), dir.path().join("copy.db"));
    let lab = filled(&file);
    {
        let mut store = SqliteStore::open(&file).unwrap();
        store.back_up(&copy).unwrap();
        assert!(
            matches!(store.back_up(&copy), Err(StoreError::Exists(_))),
            "nothing is overwritten"
        );
        let node = lab.world.nodes().next().unwrap().id;
        store
            .commit(&[Change::DeleteNode(node)], lab.world.counters())
            .unwrap();
        assert!(
            matches!(restore(&copy, &file), Err(StoreError::InUse)),
            "not under a running one"
        );
    }
    assert_eq!(names(&file), ["db"]);
    restore(&copy, &file).unwrap();
    assert_eq!(names(&file), ["web", "db"]);
    assert_eq!(
        names(&file.with_extension("db.replaced")),
        ["db"],
        "the former one is kept"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&copy).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_damaged_store_says_how_to_restore_it() {
    let dir = tempfile::tempdir().unwrap();
    let (file, copy) = (dir.path().join("a.db"), dir.path().join("copy.db"));
    filled(&file);
    SqliteStore::open(&file).unwrap().back_up(&copy).unwrap();
    SqliteStore::open(&file).unwrap().close().unwrap();
    let whole = fs::read(&file).unwrap();
    let pages_lost: Vec<u8> = whole[..4096]
        .iter()
        .copied()
        .chain(std::iter::repeat_n(0x5a, whole.len() - 4096))
        .collect();
    for damaged in [
        b"this is no database, but long enough to be one".repeat(100),
        pages_lost,
    ] {
        fs::write(&file, damaged).unwrap();
        let error = SqliteStore::open(&file).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert!(
            error.to_string().contains("tailwharf coordinator restore"),
            "{error}"
        );
        let refused = restore(&file, &copy).unwrap_err();
        assert!(
            matches!(&refused, StoreError::Damaged { path, .. } if *path == file),
            "{refused:?}"
        );
        assert_eq!(names(&copy), ["web", "db"], "a refused backup changes nothing");
        restore(&copy, &file).unwrap();
        assert_eq!(names(&file), ["web", "db"]);
    }
}

#[test]
fn an_export_has_everything_but_the_servers_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    filled(&file);
    let key = tailwharf_wire::key::MachinePrivate::from_bytes([3; 32]);
    SqliteStore::open(&file).unwrap().set_server_key(&key).unwrap();
    let exported = export(&file).unwrap();
    assert_eq!(exported["tables"]["nodes"]["1"]["name"], "web");
    assert_eq!(exported["tables"]["meta"]["next_node"], 3);
    assert!(exported["tables"]["meta"].get("server_key").is_none());
}

/// What the first version wrote, row by row.
const SCHEMA_1: &str = r#"
    CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT;
    INSERT INTO migrations VALUES (1, '2026-11-01 00:00:00');
    CREATE TABLE meta          (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE users         (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE nodes         (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE auth_keys     (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE oauth_clients (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE tokens        (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE dns_txt       (id TEXT PRIMARY KEY,    body TEXT NOT NULL) STRICT;
    CREATE TABLE policies      (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
    INSERT INTO meta VALUES ('next_node', '2'), ('next_user', '2'), ('last_v4', '"100.64.0.1"');
    INSERT INTO users VALUES (1, '{"id":1,"login":"alice@example.com","display_name":"Alice","role":"owner","created":"2026-11-01T00:00:00Z"}');
    INSERT INTO nodes VALUES (1, '{"id":1,"stable_id":"nabcCNTRL",
        "machine_key":"mkey:0101010101010101010101010101010101010101010101010101010101010101",
        "node_key":"nodekey:0202020202020202020202020202020202020202020202020202020202020202","disco_key":null,
        "owner":{"user":1},"name":"web","name_is_fixed":false,"ipv4":"100.64.0.1","ipv6":"fd7a:115c:a1e0::6440:1","ephemeral":false,
        "authorized":true,"created":"2026-11-01T00:00:00Z","last_seen":null,"expires":null,"auth_key":"kABC","capability_version":131,
        "hostinfo":{"Hostname":"web","OS":"linux"},"endpoints":[{"addr":"192.0.2.1:41641","kind":2}],"approved_routes":["10.0.0.0/8"],
        "attributes":{"custom:tier":"prod"}}');
    INSERT INTO oauth_clients VALUES ('kX', '{"id":"kX","secret":"0303030303030303030303030303030303030303030303030303030303030303",
        "creator":"administrator","description":"","scopes":["all"],"tags":["tag:k8s"],"created":"2026-11-01T00:00:00Z"}');
    INSERT INTO policies VALUES (1, '{"version":1,"text":"{}","actor":"administrator","created":"2026-11-01T00:00:00Z"}');
"#;

#[test]
fn a_store_of_the_first_version_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    Connection::open(&file).unwrap().execute_batch(SCHEMA_1).unwrap();
    for round in ["taken over", "read again"] {
        let saved = SqliteStore::open(&file).unwrap().load().unwrap();
        let node = &saved.nodes[0];
        assert_eq!(
            (node.name.as_str(), node.ipv4.to_string().as_str()),
            ("web", "100.64.0.1"),
            "{round}"
        );
        assert_eq!(node.owner, NodeOwner::User(saved.users[0].id));
        assert!(node.services.is_empty() && node.attribute_ends.is_empty());
        assert!(matches!(saved.oauth_clients[0].proof, Proof::Secret(_)));
        assert_eq!(saved.policy.unwrap().text, "{}");
        assert_eq!((saved.settings, saved.dns), (None, None));
        assert_eq!(
            saved.counters,
            Counters {
                next_node: 2,
                next_user: 2,
                last_v4: Some(node.ipv4)
            }
        );
    }
}
