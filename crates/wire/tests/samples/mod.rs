//! Control messages with a value in every field.

use serde_json::{Value, json};

pub(crate) fn node() -> Value {
    json!({
        "ID": 7, "StableID": "n7", "Name": "web.tail1234.ts.net.", "User": 3, "Sharer": 4,
        "Key": format!("nodekey:{}", "01".repeat(32)), "KeyExpiry": "2030-01-02T03:04:05Z", "KeySignature": "AQID",
        "Machine": format!("mkey:{}", "02".repeat(32)), "DiscoKey": format!("discokey:{}", "03".repeat(32)),
        "Addresses": ["100.64.0.7/32", "fd7a:115c:a1e0::7/128"], "AllowedIPs": ["100.64.0.7/32"],
        "Endpoints": ["192.0.2.1:41641", "[2001:db8::1]:41641"], "DERP": "127.3.3.40:900", "HomeDERP": 900,
        "Hostinfo": {"OS": "linux", "Hostname": "web", "sshHostKeys": ["k"], "WoLMACs": ["m"], "ShieldsUp": true},
        "Created": "2026-01-02T03:04:05.000000006Z", "Cap": 131, "Tags": ["tag:k8s"], "PrimaryRoutes": ["10.0.0.0/8"],
        "LastSeen": "2026-01-02T03:04:05Z", "Online": false, "MachineAuthorized": true, "Capabilities": ["c"],
        "CapMap": {"https": [], "x": [{"a": "&"}]}, "UnsignedPeerAPIOnly": true, "Expired": true,
        "SelfNodeV4MasqAddrForThisPeer": "100.64.0.1", "SelfNodeV6MasqAddrForThisPeer": "fd7a::1",
        "IsWireGuardOnly": true, "IsJailed": true,
        "ExitNodeDNSResolvers": [{"Addr": "1.1.1.1", "BootstrapResolution": ["1.1.1.1"], "UseWithExitNode": true}],
    })
}

pub(crate) fn map_response() -> Value {
    json!({
        "MapSessionHandle": "h", "Seq": 1, "KeepAlive": true, "PopBrowserURL": "u", "Node": {"ID": 1},
        "PingRequest": {"URL": "u", "URLIsNoise": true, "Log": true, "Types": "c2n", "IP": "100.64.0.1", "Payload": "AQID"},
        "DERPMap": {
            "HomeParams": {"RegionScore": {"900": 0.5}},
            "Regions": {"900": {
                "RegionID": 900, "RegionCode": "own", "RegionName": "Own", "Latitude": 1.5, "Longitude": 2.5,
                "Avoid": true, "NoMeasureNoHome": true,
                "Nodes": [{
                    "Name": "900a", "RegionID": 900, "HostName": "h", "CertName": "sha256-raw:00", "IPv4": "192.0.2.1",
                    "IPv6": "none", "STUNPort": -1, "STUNOnly": true, "DERPPort": 8443, "InsecureForTests": true,
                    "STUNTestIP": "192.0.2.2", "CanPort80": true,
                }],
            }},
            "omitDefaultRegions": true,
        },
        "Peers": [{"ID": 2}], "PeersChanged": [{"ID": 3}], "PeersRemoved": [4],
        "PeersChangedPatch": [{
            "NodeID": 5, "DERPRegion": 900, "Cap": 1, "CapMap": {}, "Endpoints": ["192.0.2.1:1"],
            "Key": format!("nodekey:{}", "01".repeat(32)), "KeySignature": "AQID",
            "DiscoKey": format!("discokey:{}", "01".repeat(32)), "Online": true, "LastSeen": "2026-01-02T03:04:05Z",
            "KeyExpiry": "2026-01-02T03:04:05Z",
        }],
        "PeerSeenChange": {"6": true}, "OnlineChange": {"6": false}, "Domain": "example.com", "CollectServices": false,
        "DNSConfig": {
            "Resolvers": [{"Addr": "1.1.1.1"}], "Routes": {"ts.net": []}, "FallbackResolvers": [{"Addr": "1.1.1.1"}],
            "Domains": ["tail1234.ts.net"], "Proxied": true, "Nameservers": ["1.1.1.1"], "CertDomains": ["c"],
            "ExtraRecords": [{"Name": "n", "Type": "A", "Value": "v"}], "ExitNodeFilteredSet": ["e"],
        },
        "PacketFilter": [{"SrcIPs": ["*"]}],
        "PacketFilters": {"base": [], "gone": null, "x": [{
            "SrcIPs": ["100.64.0.1"], "DstPorts": [{"IP": "100.64.0.2", "Ports": {"First": 0, "Last": 65535}}],
            "IPProto": [6],
        }, {
            "SrcIPs": ["*"], "CapGrant": [{"Dsts": ["100.64.0.2/32"], "Caps": ["c"], "CapMap": {"c": [{"k": 1}]}}],
        }]},
        "UserProfiles": [{"ID": 1, "LoginName": "a@b", "DisplayName": "A", "ProfilePicURL": "p", "Groups": ["group:x"]}],
        "Health": [], "ControlTime": "2026-01-02T03:04:05Z", "TKAInfo": {"Head": "h", "Disabled": true},
        "DisplayMessages": {"m": {
            "Title": "t", "Text": "x", "Severity": "high", "ImpactsConnectivity": true,
            "PrimaryAction": {"URL": "u", "Label": "l"},
        }, "n": null},
        "Debug": {"SleepSeconds": 0.5, "DisableLogTail": true, "Exit": 0},
        "ControlDialPlan": {"Candidates": [{
            "IP": "192.0.2.1", "ACEHost": "a", "DialStartDelaySec": 0.5, "DialTimeoutSec": 1.5, "Priority": 1,
        }]},
    })
}

pub(crate) fn map_request() -> Value {
    json!({
        "Version": 131, "Compress": "zstd", "KeepAlive": true, "NodeKey": format!("nodekey:{}", "01".repeat(32)),
        "DiscoKey": format!("discokey:{}", "02".repeat(32)), "Stream": true, "Hostinfo": {"OS": "linux"},
        "MapSessionHandle": "h", "MapSessionSeq": 3, "Endpoints": ["192.0.2.1:1"], "EndpointTypes": [77],
        "TKAHead": "t", "ReadOnly": true, "OmitPeers": true, "DebugFlags": ["f"],
    })
}

#[allow(dead_code, reason = "each test binary uses some of the samples")]
pub(crate) fn register_request() -> Value {
    json!({
        "Version": 131, "NodeKey": format!("nodekey:{}", "01".repeat(32)),
        "OldNodeKey": format!("nodekey:{}", "00".repeat(32)), "NLKey": format!("nlpub:{}", "03".repeat(32)),
        "Auth": {"AuthKey": "tskey-auth-x"}, "Expiry": "1970-01-01T00:02:03Z", "Followup": "https://x/a/1",
        "Hostinfo": {"OS": "linux", "RequestTags": ["tag:k8s"]}, "Ephemeral": true, "NodeKeySignature": "AQID",
        "SignatureType": 2, "Timestamp": "2026-01-02T03:04:05Z", "DeviceCert": "AQID", "Signature": "AQID",
        "Tailnet": "example.com",
    })
}
