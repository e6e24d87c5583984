//! What a node says about itself decides what it may reach.

use super::*;
use crate::model::AttributeValue;

const POLICY: &str = r#"{
    "tagOwners": {"tag:k8s": []},
    "postures": {"posture:managed": ["custom:tier == 'prod'", "node:os == 'linux'"]},
    "grants": [{"src": ["autogroup:member"], "dst": ["tag:k8s"], "ip": ["tcp:443"], "srcPosture": ["posture:managed"]}],
}"#;
const LAPTOP: usize = 0;

fn set_tier(play: &mut Play, tier: &str) {
    play.edit(LAPTOP, |_, node| {
        node.attributes
            .insert("custom:tier".to_owned(), AttributeValue::Text(tier.to_owned()));
    });
}

#[test]
fn a_posture_that_changes_cuts_access_at_once() {
    let mut play = Play::new();
    play.lab.apply(&[Change::PutPolicy(Arc::new(active(2, POLICY)))]);
    for (key, hostname) in [(0, 0), (2, 1)] {
        play.happen(Event::Join { key, hostname });
    }
    for index in [0, 1] {
        play.happen(Event::Reveal(index));
    }
    let mut server = Follower::open(&play.lab, NodeId(2));
    let reaches = |server: &Follower| {
        let told = server.client.peers.contains_key(&NodeId(1));
        let rules = &server.client.filters["base"];
        let allowed = rules
            .iter()
            .any(|rule| rule.src_ips.contains(&"100.64.0.1".to_owned()));
        assert_eq!(told, allowed);
        allowed
    };
    assert!(!reaches(&server), "nothing is known of the laptop yet");
    set_tier(&mut play, "prod");
    server.catch_up();
    assert!(reaches(&server));
    set_tier(&mut play, "dev");
    server.catch_up();
    assert!(!reaches(&server));
    set_tier(&mut play, "prod");
    play.edit(LAPTOP, |world, node| {
        let mut hostinfo = node.hostinfo.clone();
        hostinfo.os = "windows".to_owned();
        poll::take_hostinfo(world, node, hostinfo);
    });
    server.catch_up();
    assert!(!reaches(&server), "the system counts, too");
}
