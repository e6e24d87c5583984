//! The sections `nodeAttrs` and `autoApprovers`, and the settings of the whole tailnet.

use std::collections::BTreeMap;

use ipnet::IpNet;
use tailwharf_wire::cluster::{self, ClusterDefinition};
use tailwharf_wire::tailcfg::DerpMap;

use super::reader::{Fields, Reader};
use super::{Definitions, rules, selector};
use crate::hujson::{Item, Member, Value};
use crate::limits;
use crate::model::{Approvers, NodeAttributes, Settings};
use crate::{PolicyError, Problem};

/// Reads the section `autoApprovers`.
pub(super) fn read_approvers(reader: &mut Reader, defined: &Definitions, item: &Item) -> Approvers {
    const WHERE: &str = "as an auto-approver";
    let mut approvers = Approvers::default();
    let known = &["routes", "exitNode", "services"];
    let Some(fields) = reader.fields(item, "\"autoApprovers\"", known, &[]) else {
        return approvers;
    };
    if let Some(item) = fields.get("exitNode") {
        approvers.exit_node = selector::read_principals(reader, defined, item, WHERE);
    }
    if let Some(routes) = fields.get("routes") {
        for Member { at, name, item } in reader.definitions(routes, "\"autoApprovers\".\"routes\"") {
            let list = selector::read_principals(reader, defined, item, WHERE);
            match name.parse::<IpNet>() {
                Ok(prefix) => approvers.routes.push((prefix.trunc(), list)),
                Err(_) => reader.invalid(*at, name, "a prefix, such as \"10.0.0.0/8\""),
            }
        }
    }
    if let Some(services) = fields.get("services") {
        for Member { at, name, item } in reader.definitions(services, "\"autoApprovers\".\"services\"") {
            let list = selector::read_principals(reader, defined, item, WHERE);
            if let Some(what) = selector::read_hosted(reader, defined, *at, name) {
                approvers.services.push((what, list));
            }
        }
    }
    approvers
}

/// Reads the section `nodeAttrs`.
pub(super) fn read_node_attributes(
    reader: &mut Reader,
    defined: &Definitions,
    item: &Item,
) -> Vec<NodeAttributes> {
    const WITHIN: &str = "an entry of \"nodeAttrs\"";
    const FIELDS: &[&str] = &["target", "attr", "app", "ipPool"];
    let mut entries = Vec::new();
    let items = reader.objects(item, "\"nodeAttrs\"");
    if items.len() > limits::NODE_ATTRIBUTES {
        reader.too_many(item.at, "entries of \"nodeAttrs\"", limits::NODE_ATTRIBUTES);
        return entries;
    }
    for item in items {
        let Some(fields) = reader.fields(item, WITHIN, FIELDS, &[]) else {
            continue;
        };
        let mut attributes = BTreeMap::new();
        if FIELDS[1..].iter().all(|name| fields.get(name).is_none()) {
            reader.missing(item.at, "attr", WITHIN);
        }
        if let Some(list) = fields.get("attr") {
            let names = reader.strings(list, "node attributes");
            attributes.extend(names.into_iter().map(|(_, name)| (name.to_owned(), Vec::new())));
        }
        if let Some(app) = fields.get("app") {
            check_clusters(reader, app);
            attributes.extend(rules::read_capabilities(reader, app));
        }
        if fields.get("target").is_none() {
            reader.missing(item.at, "target", WITHIN);
        }
        let targets = fields
            .get("target")
            .map(|target| selector::read_targets(reader, defined, target));
        entries.push(NodeAttributes {
            targets: targets.unwrap_or_default(),
            attributes,
            ip_pool: fields
                .get("ipPool")
                .map(|item| read_pool(reader, item))
                .unwrap_or_default(),
        });
    }
    entries
}

/// Refuses definitions of clusters that are of no use to anybody, or tell everybody a secret.
fn check_clusters(reader: &mut Reader, app: &Item) {
    let Value::Object(members) = &app.value else {
        return;
    };
    let clusters = members.iter().filter(|member| member.name == cluster::CAPABILITY);
    for member in clusters {
        let Value::Array(definitions) = &member.item.value else {
            continue;
        };
        for item in definitions {
            let flaw = match serde_json::from_value::<ClusterDefinition>(item.to_json()) {
                Ok(definition) => definition.check().err().map(|flaw| flaw.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(flaw) = flaw {
                reader.report(PolicyError::new(item.at, Problem::Cluster(flaw)));
            }
        }
    }
}

/// The prefixes that addresses come from: inside the range that is set aside for tailnets.
fn read_pool(reader: &mut Reader, item: &Item) -> Vec<IpNet> {
    const FORM: &str = "a prefix of addresses inside 100.64.0.0/10 or fd7a:115c:a1e0::/48";
    let ranges: [Option<IpNet>; 2] = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"].map(|text| text.parse().ok());
    let mut pool = Vec::new();
    for (at, text) in reader.strings(item, "\"ipPool\"") {
        let prefix = text.parse::<IpNet>().ok().map(|prefix| prefix.trunc());
        match prefix.filter(|prefix| ranges.iter().flatten().any(|range| range.contains(prefix))) {
            Some(prefix) => pool.push(prefix),
            None => reader.invalid(at, text, FORM),
        }
    }
    pool
}

/// Reads the fields that are settings of the whole tailnet.
pub(super) fn read_settings(reader: &mut Reader, fields: &Fields<'_>) -> Settings {
    let mut flag = |name: &'static str| fields.get(name).is_some_and(|item| reader.bool(item, name));
    let mut settings = Settings {
        randomize_client_port: flag("randomizeClientPort"),
        disable_ipv4: flag("disableIPv4"),
        one_cgnat_route: None,
    };
    if let Some(item) = fields.get("OneCGNATRoute") {
        const FORM: &str = "a choice; write \"mac-always\", \"mac-never\" or an empty text";
        settings.one_cgnat_route = match reader.string(item, "\"OneCGNATRoute\"") {
            Some("mac-always") => Some(true),
            Some("mac-never") => Some(false),
            Some("") | None => None,
            Some(other) => {
                reader.invalid(item.at, other, FORM);
                None
            }
        };
    }
    settings
}

/// Reads the field `derpMap`.
pub(super) fn read_derp_map(reader: &mut Reader, item: &Item) -> Option<DerpMap> {
    const REGION: &str = "a region of \"derpMap\"";
    let fields = reader.fields(
        item,
        "\"derpMap\"",
        &["OmitDefaultRegions", "Regions", "HomeParams"],
        &[],
    )?;
    if let Some(item) = fields.get("OmitDefaultRegions") {
        reader.bool(item, "\"OmitDefaultRegions\"");
    }
    let regions = fields.get("Regions");
    for Member { at, name, item } in regions
        .map(|item| reader.definitions(item, "\"Regions\""))
        .unwrap_or_default()
    {
        if name.parse::<u16>().is_ok_and(|number| number > 0) {
            read_region(reader, item, name, REGION);
        } else {
            reader.invalid(*at, name, "the number of a region, from 1 to 65535");
        }
    }
    let text = item.to_json().to_string();
    match tailwharf_wire::json::from_slice(text.as_bytes()) {
        Ok(map) => Some(map),
        // The decoder has no places: what was found above says more.
        Err(_) if reader.has_errors() => None,
        Err(_) => {
            reader.invalid(item.at, "derpMap", "a map of relays in the form of the protocol");
            None
        }
    }
}

fn read_region(reader: &mut Reader, item: &Item, number: &str, within: &'static str) {
    const REGION: &[&str] = &[
        "RegionID",
        "RegionCode",
        "RegionName",
        "Latitude",
        "Longitude",
        "Avoid",
        "NoMeasureNoHome",
        "Nodes",
    ];
    const RELAY: &[&str] = &[
        "Name",
        "RegionID",
        "HostName",
        "CertName",
        "IPv4",
        "IPv6",
        "STUNPort",
        "STUNOnly",
        "DERPPort",
        "InsecureForTests",
        "STUNTestIP",
        "CanPort80",
    ];
    // A region that is null takes a default region away.
    if matches!(item.value, Value::Null) {
        return;
    }
    let Some(fields) = reader.fields(item, within, REGION, &[]) else {
        return;
    };
    let same = |reader: &mut Reader, fields: &Fields<'_>, at| match fields.get("RegionID") {
        Some(id) => {
            let text = id.to_json().to_string();
            if text != number {
                reader.invalid(id.at, &text, "the number that the region stands under");
            }
        }
        None => reader.missing(at, "RegionID", within),
    };
    same(reader, &fields, item.at);
    for relay in fields
        .get("Nodes")
        .map(|item| reader.objects(item, "\"Nodes\""))
        .unwrap_or_default()
    {
        const WITHIN: &str = "a relay of \"derpMap\"";
        let Some(fields) = reader.fields(relay, WITHIN, RELAY, &[]) else {
            continue;
        };
        same(reader, &fields, relay.at);
        for name in ["Name", "HostName"] {
            if fields.get(name).is_none() {
                reader.missing(relay.at, name, WITHIN);
            }
        }
    }
}
