//! The section `ssh`.

use std::collections::BTreeSet;

use super::reader::{Fields, Reader};
use super::{Definitions, rules, selector};
use crate::hujson::{Item, Position};
use crate::model::{Autogroup, CheckPeriod, Selector, SshEntry, SshUsers};
use crate::{PolicyError, Problem};

const WITHIN: &str = "an entry of \"ssh\"";
const FIELDS: &[&str] = &[
    "action",
    "src",
    "dst",
    "users",
    "checkPeriod",
    "acceptEnv",
    "srcPosture",
    "recorder",
    "enforceRecorder",
];

/// The period of `check` if none is given: 12 hours.
const DEFAULT_PERIOD: CheckPeriod = CheckPeriod(12 * 3600);

/// Reads the section.
pub(super) fn read(reader: &mut Reader, defined: &Definitions, item: &Item) -> Vec<SshEntry> {
    reader
        .objects(item, "\"ssh\"")
        .into_iter()
        .filter_map(|item| read_entry(reader, defined, item))
        .collect()
}

fn read_entry(reader: &mut Reader, defined: &Definitions, item: &Item) -> Option<SshEntry> {
    let fields = reader.fields(item, WITHIN, FIELDS, &[])?;
    for name in ["action", "src", "dst", "users"] {
        if fields.get(name).is_none() {
            reader.missing(item.at, name, WITHIN);
        }
    }
    let check = read_action(reader, &fields);
    let sources = list(reader, &fields, "src", |reader, at, text| {
        selector::read_ssh_source(reader, defined, at, text)
    });
    let destinations = list(reader, &fields, "dst", |reader, at, text| {
        selector::read_ssh_destination(reader, defined, at, text)
    });
    check_pairs(reader, &sources, &destinations, check.is_some());
    let recorders = list(reader, &fields, "recorder", |reader, at, text| {
        selector::read_tag(reader, defined, at, text)
    });
    let enforce_recorder = fields
        .get("enforceRecorder")
        .is_some_and(|item| reader.bool(item, "\"enforceRecorder\""));
    if enforce_recorder && recorders.is_empty() {
        const NO_RECORDER: &str = "\"enforceRecorder\" needs a \"recorder\"";
        reader.report(PolicyError::new(item.at, Problem::Rule(NO_RECORDER)));
    }
    Some(SshEntry {
        sources: sources.into_iter().map(|(_, selector)| selector).collect(),
        postures: rules::read_rule_postures(reader, defined, fields.get("srcPosture")),
        destinations: destinations.into_iter().map(|(_, selector)| selector).collect(),
        users: fields
            .get("users")
            .map(|item| read_users(reader, item))
            .unwrap_or_default(),
        check,
        accept_env: fields
            .get("acceptEnv")
            .map(|item| read_names(reader, item))
            .unwrap_or_default(),
        recorders: recorders.into_iter().map(|(_, selector)| selector).collect(),
        enforce_recorder,
    })
}

fn list(
    reader: &mut Reader,
    fields: &Fields<'_>,
    name: &str,
    read: impl Fn(&mut Reader, Position, &str) -> Option<Selector>,
) -> Vec<(Position, Selector)> {
    let Some(item) = fields.get(name) else {
        return Vec::new();
    };
    let texts = reader.strings(item, "selectors of an SSH rule");
    texts
        .into_iter()
        .filter_map(|(at, text)| Some((at, read(reader, at, text)?)))
        .collect()
}

fn read_action(reader: &mut Reader, fields: &Fields<'_>) -> Option<CheckPeriod> {
    let action = fields.get("action")?;
    let period = fields
        .get("checkPeriod")
        .and_then(|item| read_period(reader, item));
    match reader.string(action, "\"action\"")? {
        "check" => Some(period.unwrap_or(DEFAULT_PERIOD)),
        "accept" => {
            if let Some(item) = fields.get("checkPeriod") {
                const NO_CHECK: &str = "\"checkPeriod\" needs \"action\": \"check\"";
                reader.report(PolicyError::new(item.at, Problem::Rule(NO_CHECK)));
            }
            None
        }
        other => {
            reader.invalid(action.at, other, "an action; write \"accept\" or \"check\"");
            None
        }
    }
}

/// A period: `always`, or a number with `s`, `m` or `h`, up to a week.
fn read_period(reader: &mut Reader, item: &Item) -> Option<CheckPeriod> {
    const FORM: &str = "a period; write \"always\", or a time from \"1m\" to \"168h\"";
    let text = reader.string(item, "\"checkPeriod\"")?;
    if text == "always" {
        return Some(CheckPeriod(0));
    }
    let split = text.len().saturating_sub(1);
    let factor = match text.get(split..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        _ => 0,
    };
    let number = text.get(..split).and_then(|number| number.parse::<u64>().ok());
    let seconds = number
        .and_then(|number| number.checked_mul(factor))
        .filter(|seconds| (60..=168 * 3600).contains(seconds));
    if seconds.is_none() {
        reader.invalid(item.at, text, FORM);
    }
    seconds.map(CheckPeriod)
}

fn read_users(reader: &mut Reader, item: &Item) -> SshUsers {
    const FORM: &str = "a user of a machine, \"autogroup:nonroot\" or \"localpart:*@\" with a domain";
    let mut users = SshUsers::default();
    for (at, text) in reader.strings(item, "\"users\"") {
        if text == Autogroup::NonRoot.name() {
            users.nonroot = true;
        } else if let Some(domain) = text
            .strip_prefix("localpart:*@")
            .filter(|domain| !domain.is_empty())
        {
            users.local_parts.insert(domain.to_ascii_lowercase());
        } else if is_user_name(text) {
            users.names.insert(text.to_owned());
        } else {
            reader.invalid(at, text, FORM);
        }
    }
    users
}

/// Whether a text may be the name of a user of a machine.
pub(super) fn is_user_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 256
        && !text.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '*' | '='))
}

fn read_names(reader: &mut Reader, item: &Item) -> Vec<String> {
    const FORM: &str = "the name of an environment variable; * and ? may stand in it";
    let mut names = BTreeSet::new();
    for (at, text) in reader.strings(item, "\"acceptEnv\"") {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '*' | '?');
        if !text.is_empty() && text.chars().all(valid) {
            names.insert(text.to_owned());
        } else {
            reader.invalid(at, text, FORM);
        }
    }
    names.into_iter().collect()
}

/// Reports pairs that make no sense: `autogroup:self`, a user as a destination and `check` are for people.
fn check_pairs(
    reader: &mut Reader,
    sources: &[(Position, Selector)],
    destinations: &[(Position, Selector)],
    checks: bool,
) {
    const OWN: &str =
        "\"autogroup:self\" as a destination needs users, groups or autogroups of users as sources";
    const CHECK: &str = "\"check\" asks a person to sign in; tagged devices cannot be sources of it";
    const USER: &str = "a user as a destination needs the same user as the only source";
    let own = destinations.iter().any(|(_, selector)| selector.is_own_devices());
    for (at, _) in sources.iter().filter(|(_, selector)| !selector.is_people()) {
        if own {
            reader.report(PolicyError::new(*at, Problem::Rule(OWN)));
        } else if checks {
            reader.report(PolicyError::new(*at, Problem::Rule(CHECK)));
        }
    }
    for (at, destination) in destinations {
        let alone = || sources.iter().all(|(_, source)| source == destination);
        if matches!(destination, Selector::User(_)) && !alone() {
            reader.report(PolicyError::new(*at, Problem::Rule(USER)));
        }
    }
}

/// The users of a machine that an entry of `sshTests` expects something for.
pub(super) fn read_user_names<'a>(reader: &mut Reader, item: &'a Item) -> Vec<(Position, &'a str)> {
    let texts = reader.strings(item, "users of a machine");
    let (good, bad): (Vec<_>, Vec<_>) = texts.into_iter().partition(|(_, text)| is_user_name(text));
    for (at, text) in bad {
        reader.invalid(at, text, "a user of a machine, such as \"root\"");
    }
    good
}
