//! Control messages as Go writes and reads them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, too"
)]

mod samples;

use std::collections::BTreeMap;

use bytes::BytesMut;
use serde_json::{Value, json};
use tailwharf_wire::json;
use tailwharf_wire::map_frame::{self, Compression, MapFrameError};
use tailwharf_wire::tailcfg::{
    DerpMap, EndpointType, FilterRule, Hostinfo, MapRequest, MapResponse, NetPortRange, Node, NodeId,
    PeerChange, PingRequest, PortRange, RegionId, RegisterAuth, RegisterRequest, RegisterResponse,
    SetDeviceAttributesRequest,
};

fn decode<T: serde::de::DeserializeOwned>(text: &str) -> T {
    json::from_slice(text.as_bytes()).unwrap()
}

fn to_value<T: serde::Serialize>(message: &T) -> Value {
    serde_json::to_value(message).unwrap()
}

/// What a Go client sends at its first registration, with the fields in their usual order.
#[test]
fn register_request_of_a_go_client() {
    let request: RegisterRequest = decode(&format!(
        r#"{{"Version":142,"NodeKey":"nodekey:{one}","OldNodeKey":"nodekey:{zero}","NLKey":"nlpub:{one}",
            "Auth":{{"AuthKey":"tskey-auth-x"}},"Expiry":"0001-01-01T00:00:00Z","Followup":"",
            "Hostinfo":{{"IPNVersion":"1.102.5","OS":"linux","Container":false,"Hostname":"laptop","GoArch":"amd64",
              "RoutableIPs":["10.0.0.0/8"],"Services":[{{"Proto":"peerapi4","Port":1}}],
              "NetInfo":{{"WorkingIPv6":true,"PreferredDERP":900,"DERPLatency":{{"900-v4":0.001}}}},"Userspace":true}},
            "NodeKeySignature":null,"Ephemeral":true,"FieldOfTheFuture":{{"a":[1]}}}}"#,
        one = "01".repeat(32),
        zero = "00".repeat(32),
    ));
    assert_eq!(request.version.0, 142);
    assert_eq!(request.node_key.as_bytes(), &[1; 32]);
    assert!(request.old_node_key.is_zero());
    assert_eq!(
        request.auth,
        Some(RegisterAuth {
            auth_key: "tskey-auth-x".into()
        })
    );
    assert_eq!(request.expiry, None);
    assert!(request.ephemeral && request.node_key_signature.is_empty());
    let hostinfo = request.hostinfo.unwrap();
    assert_eq!(hostinfo.container, Some(false));
    assert_eq!(hostinfo.desktop, None);
    assert_eq!(hostinfo.routable_ips, ["10.0.0.0/8".parse().unwrap()]);
    let net_info = hostinfo.net_info.unwrap();
    assert_eq!(net_info.preferred_derp, RegionId(900));
    assert_eq!(net_info.working_ipv6, Some(true));
}

/// tailscale-rs writes `HostInfo`, `IpnVersion`, `Os`, `RoutableIps`, `PreferredDerp`, `DerpLatency`.
#[test]
fn keys_match_without_regard_to_case() {
    let request: MapRequest = decode(
        r#"{"version":130,"HostInfo":{"IpnVersion":"1","Os":"linux","RoutableIps":["fd00::/8"],
            "netinfo":{"PreferredDerp":1,"DerpLatency":{"1-v4":0.5}}},"nodeKEY":""}"#,
    );
    let hostinfo = request.hostinfo.unwrap();
    assert_eq!(
        (hostinfo.ipn_version.as_str(), hostinfo.os.as_str()),
        ("1", "linux")
    );
    assert_eq!(hostinfo.routable_ips.len(), 1);
    assert_eq!(hostinfo.net_info.unwrap().preferred_derp, RegionId(1));
    // Keys of maps are data, not names of fields.
    let attributes: SetDeviceAttributesRequest = decode(r#"{"UPDATE":{"custom:Tier":"Prod","x":null}}"#);
    assert_eq!(
        to_value(&attributes.update),
        json!({"custom:Tier": "Prod", "x": null})
    );
}

#[test]
fn null_is_zero_everywhere() {
    let nulls = |message: Value| {
        let Value::Object(fields) = message else {
            panic!("no object")
        };
        let nulls = fields.into_iter().map(|(name, _)| (name, Value::Null)).collect();
        Value::Object(nulls).to_string()
    };
    let node = decode::<Node>(&nulls(samples::node()));
    assert_eq!(node, Node::default());
    let response = decode::<MapResponse>(&nulls(json!({
        "KeepAlive": 0, "Peers": 0, "PeersChanged": 0, "PeersRemoved": 0, "PeersChangedPatch": 0, "OnlineChange": 0,
        "PacketFilter": 0, "PacketFilters": 0, "UserProfiles": 0, "Health": 0, "Domain": 0, "Seq": 0, "DERPMap": 0,
        "DisplayMessages": 0, "ControlTime": 0, "Debug": 0, "DNSConfig": 0, "CollectServices": 0, "PingRequest": 0,
    })));
    assert_eq!(response, MapResponse::default());
    assert_eq!(decode::<RegisterRequest>("null"), RegisterRequest::default());
    let map: DerpMap =
        decode(r#"{"Regions":{"1":null,"2":{"RegionID":2,"Nodes":null},"3":{"Nodes":[null]}}}"#);
    assert!(map.regions[&RegionId(1)].nodes.is_empty() && map.regions[&RegionId(2)].nodes.is_empty());
    assert_eq!(map.regions[&RegionId(3)].nodes.len(), 1);
    let node: Node = decode(r#"{"CapMap":{"https":null,"x":[null,1]}}"#);
    assert_eq!(to_value(&node.cap_map), json!({"https": [], "x": [null, 1]}));
}

#[test]
fn every_field_of_a_node_has_its_name_of_go() {
    let value = samples::node();
    let node: Node = decode(&value.to_string());
    assert_eq!(to_value(&node), value);
    assert_eq!(node.routes().len(), 1);
    assert_eq!(to_value(&Node::default()), json!({}));
}

#[test]
fn every_field_of_a_map_response_has_its_name_of_go() {
    let value = samples::map_response();
    let response: MapResponse = decode(&value.to_string());
    assert_eq!(to_value(&response), value);
    assert_eq!(to_value(&MapResponse::default()), json!({}));
    assert_eq!(
        to_value(&MapResponse {
            keep_alive: true,
            ..MapResponse::default()
        }),
        json!({"KeepAlive": true})
    );
}

#[test]
fn an_empty_filter_is_told() {
    let response = MapResponse {
        packet_filters: Some(BTreeMap::from([("base".to_owned(), Some(Vec::new()))])),
        ..MapResponse::default()
    };
    assert_eq!(to_value(&response), json!({"PacketFilters": {"base": []}}));
}

#[test]
fn requests_and_answers_have_the_names_of_go() {
    let value = samples::map_request();
    let request: MapRequest = decode(&value.to_string());
    assert_eq!(to_value(&request), value);
    assert_eq!(request.endpoint_types, [EndpointType(77)]);
    assert_eq!(Compression::of(&request), Compression::Zstd);

    let answer = to_value(&RegisterResponse::default());
    assert_eq!(
        answer,
        json!({
            "User": {"ID": 0, "DisplayName": "", "ProfilePicURL": ""},
            "Login": {"ID": 0, "Provider": "", "LoginName": "", "DisplayName": "", "ProfilePicURL": ""},
            "NodeKeyExpired": false, "MachineAuthorized": false, "AuthURL": "", "NodeKeySignature": "", "Error": "",
        })
    );
    let request = to_value(&RegisterRequest::default());
    assert_eq!(request["OldNodeKey"], format!("nodekey:{}", "00".repeat(32)));
    assert_eq!(request["Expiry"], "0001-01-01T00:00:00Z");
}

#[test]
fn escapes_of_go_are_read() {
    let ping: PingRequest = decode(r#"{"URL":"https://x/?a\u003d1\u0026b","Payload":"aGk="}"#);
    assert_eq!(ping.url, "https://x/?a=1&b");
    assert_eq!(ping.payload, b"hi");
}

#[test]
fn odd_endpoints_are_dropped() {
    let change: PeerChange =
        decode(r#"{"NodeID":1,"Endpoints":["[fe80::1%eth0]:1","192.0.2.1:2","nonsense",""]}"#);
    assert_eq!(change.endpoints, ["192.0.2.1:2".parse().unwrap()]);
    assert_eq!(change.node_id, NodeId(1));
}

#[test]
fn what_is_no_message_is_refused_with_its_place() {
    for bad in [
        "",
        "{",
        "[]",
        "{}x",
        r#"{"ID":"seven"}"#,
        r#"{"Key":"mkey:00"}"#,
        r#"{"Addresses":["nowhere"]}"#,
    ] {
        assert!(json::from_slice::<Node>(bad.as_bytes()).is_err(), "{bad}");
    }
    let error = json::from_slice::<Node>(b"{\n  \"ID\": x").unwrap_err();
    assert_eq!(error.to_string(), "invalid JSON at line 2, column 9");
    let deep = "[".repeat(100_000);
    assert!(json::from_slice::<Value>(deep.as_bytes()).is_err());
    let deep = format!("{{\"CapMap\":{{\"c\":{}", "[".repeat(100_000));
    assert!(json::from_slice::<Node>(deep.as_bytes()).is_err());
}

#[test]
fn auth_keys_are_not_printed() {
    let request = RegisterRequest {
        auth: Some(RegisterAuth {
            auth_key: "tskey-auth-secret".into(),
        }),
        ..RegisterRequest::default()
    };
    assert!(!format!("{request:?}").contains("secret"));
}

fn response() -> MapResponse {
    let rule = FilterRule {
        src_ips: vec!["*".into()],
        dst_ports: vec![NetPortRange {
            ip: "*".into(),
            ports: PortRange::ANY,
        }],
        ..FilterRule::default()
    };
    let hostinfo = Hostinfo {
        hostname: "web".into(),
        ..Hostinfo::default()
    };
    MapResponse {
        peers: (1..50)
            .map(|id| Node {
                id: NodeId(id),
                hostinfo: Some(Box::new(hostinfo.clone())),
                ..Node::default()
            })
            .collect(),
        packet_filters: Some(BTreeMap::from([("base".to_owned(), Some(vec![rule]))])),
        ..MapResponse::default()
    }
}

#[test]
fn map_frames_have_a_little_endian_length() {
    let keep_alive = MapResponse {
        keep_alive: true,
        ..MapResponse::default()
    };
    let frame = map_frame::encode(&keep_alive, Compression::None).unwrap();
    assert_eq!(frame, b"\x12\x00\x00\x00{\"KeepAlive\":true}");
    let frame = map_frame::encode(&keep_alive, Compression::Zstd).unwrap();
    assert_eq!(
        frame[..8],
        [frame.len() as u8 - 4, 0, 0, 0, 0x28, 0xb5, 0x2f, 0xfd]
    );
}

#[test]
fn map_frames_come_back() {
    for compression in [Compression::None, Compression::Zstd] {
        let mut stream = BytesMut::new();
        for _ in 0..2 {
            stream.extend_from_slice(&map_frame::encode(&response(), compression).unwrap());
        }
        let mut received = BytesMut::new();
        let mut messages = Vec::new();
        for byte in stream {
            received.extend_from_slice(&[byte]);
            messages.extend(map_frame::decode(&mut received, compression).unwrap());
        }
        assert_eq!(messages, [response(), response()]);
    }
}

#[test]
fn map_frames_have_limits() {
    let mut long = BytesMut::from(&(map_frame::MAX_FRAME_LEN as u32 + 1).to_le_bytes()[..]);
    assert!(matches!(
        map_frame::decode(&mut long, Compression::None),
        Err(MapFrameError::FrameTooLong(_))
    ));

    let bomb = zstd::bulk::compress(&vec![b' '; map_frame::MAX_JSON_LEN + 1], 1).unwrap();
    let mut frame = BytesMut::from(&(bomb.len() as u32).to_le_bytes()[..]);
    frame.extend_from_slice(&bomb);
    assert!(frame.len() < 100_000);
    assert!(matches!(
        map_frame::decode(&mut frame, Compression::Zstd),
        Err(MapFrameError::JsonTooLong)
    ));

    // A frame without content whose header asks for a window of 16 MiB.
    let mut window = BytesMut::from(&[9, 0, 0, 0, 0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x70, 0x01, 0x00, 0x00][..]);
    assert!(matches!(
        map_frame::decode(&mut window, Compression::Zstd),
        Err(MapFrameError::Zstd(_))
    ));
    let mut plain = BytesMut::from(&b"\x12\x00\x00\x00{\"KeepAlive\":true}"[..]);
    assert!(matches!(
        map_frame::decode(&mut plain, Compression::Zstd),
        Err(MapFrameError::Zstd(_))
    ));
}
