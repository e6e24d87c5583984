//! Golden conditions.

use std::io;

use tailwharf_kube_types::Protocol;
use tailwharf_wire::tailcfg::StableId;

use super::*;
use crate::backend::BackendError;

fn facts() -> Facts {
    Facts {
        secret: "ts-nginx-abcde-0".to_owned(),
        control_server: "https://control.example".to_owned(),
        hostname: "nginx".to_owned(),
        listeners: 1,
        backends: tcp(80, Health::Unknown),
        ..Facts::default()
    }
}

fn tcp(number: u16, health: Health) -> HealthMap {
    HealthMap::from([(
        Port {
            protocol: Protocol::Tcp,
            number,
        },
        health,
    )])
}

fn node(phase: Phase) -> Option<NodeStatus> {
    Some(NodeStatus {
        phase,
        device_id: Some(StableId("n7".to_owned())),
        fqdn: Some("nginx.tail1234.ts.net".to_owned()),
        addresses: vec!["100.64.0.7".parse().unwrap()],
        relay_connected: true,
        ..NodeStatus::starting()
    })
}

fn claim() -> Claim {
    Claim {
        addresses: vec!["10.244.0.7".parse().unwrap()],
        host: "tailwharf-default-0".to_owned(),
        name: "41.1".to_owned(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// The conditions as lines for people.
fn lines(facts: &Facts) -> String {
    let status = facts.status(&IdentityStatus::default(), Some(&claim()), Some(3), at(10));
    let line = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        format!("{}={} {}: {}\n", c.type_, c.status, c.reason, c.message)
    };
    status.conditions.iter().map(line).collect()
}

#[test]
fn a_claimed_identity_registers() {
    insta::assert_snapshot!(lines(&facts()), @r"
    Registered=False Registering: The device registers at https://control.example.
    Authorized=Unknown WaitingForEarlierStep: Waits for the earlier steps.
    Advertised=Unknown WaitingForEarlierStep: Waits for the earlier steps.
    BackendReachable=Unknown BackendNotProbed: The first connection to the backends is under way.
    Ready=False Registering: The device registers at https://control.example.
    ");
}

#[test]
fn a_ready_identity() {
    let facts = Facts {
        node: node(Phase::Online),
        backends: tcp(80, Health::Reachable),
        ..facts()
    };
    insta::assert_snapshot!(lines(&facts), @r"
    Registered=True Done: The device is registered at https://control.example.
    Authorized=True Done: The control server lets the device onto the tailnet.
    Advertised=True Done: Peers can reach the device.
    BackendReachable=True Done: Each TCP port has a backend that takes connections.
    Ready=True Done: The device is reachable on the tailnet.
    ");
    let status = facts.status(&IdentityStatus::default(), Some(&claim()), Some(3), at(10));
    assert_eq!(status.device_id.as_deref(), Some("n7"));
    assert_eq!(status.host.as_deref(), Some("tailwharf-default-0"));
    assert_eq!(status.observed_generation, Some(3));
    let again = facts.status(&status, Some(&claim()), Some(3), at(20));
    assert_eq!(again, status, "nothing has changed, so nothing is to be written");
}

#[test]
fn a_name_that_another_device_has_is_told() {
    let named = |fqdn: &str| {
        let mut facts = Facts {
            node: node(Phase::Online),
            ..facts()
        };
        facts.node.as_mut().unwrap().fqdn = Some(fqdn.to_owned());
        lines(&facts)
    };
    let told = named("nginx-1.tail1234.ts.net");
    assert!(
        told.contains(
            "as nginx-1.tail1234.ts.net, because another device of the tailnet has the name nginx."
        ),
        "{told}"
    );
    for own in [
        "nginx.tail1234.ts.net",
        "nginx-blue.tail1234.ts.net",
        "renamed.tail1234.ts.net",
    ] {
        let told = named(own);
        assert!(!told.contains("another device"), "{told}");
    }
}

#[test]
fn the_servers_reason_reaches_the_user() {
    let reason = "tags [tag:web] are invalid or not permitted.\n".to_owned();
    let refused = Facts {
        node: node(Phase::Refused { reason }),
        with_auth_key: true,
        ..facts()
    };
    insta::assert_snapshot!(lines(&refused), @r"
    Registered=False AuthKeyRejected: https://control.example refused the auth key: tags [tag:web] are invalid or not permitted. Check the key's tags, or put a new key into Secret ts-nginx-abcde-0.
    Authorized=Unknown WaitingForEarlierStep: Waits for the earlier steps.
    Advertised=Unknown WaitingForEarlierStep: Waits for the earlier steps.
    BackendReachable=Unknown BackendNotProbed: The first connection to the backends is under way.
    Ready=False AuthKeyRejected: https://control.example refused the auth key: tags [tag:web] are invalid or not permitted. Check the key's tags, or put a new key into Secret ts-nginx-abcde-0.
    ");
    let long = Facts {
        node: node(Phase::Refused {
            reason: "x".repeat(100_000),
        }),
        ..facts()
    };
    assert!(lines(&long).len() < 2000);
}

#[test]
fn what_stands_in_the_way_of_a_start() {
    let with = |obstacle| {
        lines(&Facts {
            obstacle: Some(obstacle),
            ..facts()
        })
    };
    let first = |text: String| text.lines().next().unwrap().to_owned();
    let why = || "why".to_owned();
    let all = [
        Obstacle::SecretUnavailable { why: why() },
        Obstacle::SecretInvalid {
            why: "device_ips of the state Secret is not the JSON expected there".to_owned(),
        },
        Obstacle::AuthKeyMissing,
        Obstacle::NotStarted { why: why() },
    ];
    insta::assert_snapshot!(all.map(|obstacle| first(with(obstacle))).join("\n"), @r"
    Registered=False SecretUnavailable: Secret ts-nginx-abcde-0 cannot be read: why. It is tried again.
    Registered=False SecretInvalid: device_ips of the state Secret is not the JSON expected there. Repair Secret ts-nginx-abcde-0, or delete it to get a new device.
    Registered=False AuthKeyMissing: Secret ts-nginx-abcde-0 has no auth key. Put one into its key auth_key.
    Registered=False ControlServerUnreachable: why. Correct the control server's URL.
    ");
}

#[test]
fn what_stands_in_the_way_of_a_registered_device() {
    let ready = |facts: Facts| lines(&facts).lines().last().unwrap().to_owned();
    let unreachable = |error| Facts {
        node: node(Phase::Online),
        backends: tcp(80, Health::Unreachable(error)),
        ..facts()
    };
    let backend = "10.96.0.7:80".parse().unwrap();
    let all = [
        Facts {
            node: node(Phase::NeedsLogin {
                url: "https://control.example/a/1".to_owned(),
            }),
            ..facts()
        },
        Facts {
            node: node(Phase::NeedsApproval),
            ..facts()
        },
        Facts {
            node: node(Phase::Registered),
            ..facts()
        },
        Facts {
            node: node(Phase::Online).map(|node| NodeStatus {
                relay_connected: false,
                ..node
            }),
            ..facts()
        },
        Facts {
            node: node(Phase::Online),
            ..facts()
        },
        unreachable(BackendError::Refused(backend, io::ErrorKind::ConnectionRefused)),
        unreachable(BackendError::TimedOut(backend)),
        unreachable(BackendError::Unresolved("db.example".to_owned())),
        Facts {
            node: node(Phase::Online),
            leaving: true,
            ..facts()
        },
    ];
    insta::assert_snapshot!(all.map(ready).join("\n"), @r"
    Ready=False LoginRequired: Open https://control.example/a/1 and sign in, or put a new auth key into Secret ts-nginx-abcde-0.
    Ready=False ApprovalPending: An administrator of https://control.example has to approve the device.
    Ready=False NetmapPending: The device waits for its first network map.
    Ready=False RelayUnreachable: The device is not connected to its home relay. It is tried again.
    Ready=False BackendNotProbed: The first connection to the backends is under way.
    Ready=False BackendRefused: Connections to TCP port 80 cannot be passed on: 10.96.0.7:80: connection refused. Check that the Service has ready endpoints.
    Ready=False BackendTimeout: Connections to TCP port 80 cannot be passed on: 10.96.0.7:80 does not answer. Check that the Service has ready endpoints.
    Ready=False BackendUnresolved: Connections to TCP port 80 cannot be passed on: the name db.example cannot be resolved. Check the name.
    Ready=False Draining: Another pod takes the device over.
    ");
}

#[test]
fn a_control_server_that_was_never_reached_is_named() {
    let lost = || {
        node(Phase::Disconnected {
            reason: "connection refused".to_owned(),
        })
    };
    let ready = |facts: Facts| lines(&facts).lines().last().unwrap().to_owned();
    let new = lost().map(|node| NodeStatus {
        device_id: None,
        ..node
    });
    let all = [
        Facts { node: new, ..facts() },
        Facts {
            node: lost(),
            ..facts()
        },
    ];
    insta::assert_snapshot!(all.map(ready).join("\n"), @r"
    Ready=False ControlServerUnreachable: https://control.example cannot be reached: connection refused. It is tried again.
    Ready=False ControlServerUnreachable: https://control.example cannot be reached: connection refused. It is tried again.
    ");
}

#[test]
fn a_lost_control_server_does_not_make_a_reachable_device_unready() {
    let facts = Facts {
        mapped: true,
        node: node(Phase::Disconnected {
            reason: "connection refused".to_owned(),
        }),
        backends: tcp(80, Health::Reachable),
        ..facts()
    };
    insta::assert_snapshot!(lines(&facts), @r"
    Registered=True Done: The device is registered at https://control.example.
    Authorized=True Done: The control server lets the device onto the tailnet.
    Advertised=True Done: Peers can reach the device; the control server cannot be reached: connection refused.
    BackendReachable=True Done: Each TCP port has a backend that takes connections.
    Ready=True Done: The device is reachable on the tailnet.
    ");
}

#[test]
fn letting_go_keeps_what_is_known_of_the_device() {
    let hosted = Facts {
        node: node(Phase::Online),
        ..facts()
    };
    let before = hosted.status(&IdentityStatus::default(), Some(&claim()), Some(3), at(10));
    let free = Facts {
        leaving: true,
        ..facts()
    }
    .status(&before, None, Some(3), at(20));
    assert_eq!((free.host, free.claim), (None, None));
    assert_eq!(
        (free.device_id, free.fqdn, free.addresses),
        (before.device_id, before.fqdn, before.addresses)
    );
}
