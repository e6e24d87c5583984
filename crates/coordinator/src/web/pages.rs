//! The pages' HTML. Everything that comes from elsewhere is escaped by `html!`.

use jiff::{SignedDuration, Timestamp};
use maud::{DOCTYPE, Markup, html};
use url::Url;

use super::console::Action;
use super::register::hostname;
use super::{Refusal, Visitor};
use crate::model::{Node, NodeOwner, PendingCheck, PendingRegistration, User};
use crate::site::Site;
use crate::world::World;

/// The frame of all pages.
fn frame(visitor: Option<&Visitor>, title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · tailwharf" }
                link rel="stylesheet" href="/console/style.css";
            }
            body {
                header {
                    a.brand href="/console" { "tailwharf" }
                    @if let Some(visitor) = visitor {
                        form.session method="post" action="/logout" {
                            span { (visitor.user.login) }
                            (token(visitor))
                            button.quiet { "Sign out" }
                        }
                    }
                }
                main {
                    h1 { (title) }
                    (content)
                }
            }
        }
    }
}

/// What makes a form one of ours.
fn token(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name="form_token" value=(visitor.session.form_token); }
}

/// A page that says one thing.
pub(super) fn message(visitor: Option<&Visitor>, title: &str, text: &str) -> Markup {
    let content = html! {
        p.lead { (text) }
        @if visitor.is_some() { p { a href="/console" { "All devices" } } }
    };
    frame(visitor, title, &content)
}

/// Why something was not done.
pub(super) fn refusal(refusal: &Refusal) -> Markup {
    let title = match refusal {
        Refusal::SignedOut => "Sign in first",
        Refusal::NotFound => "Nothing here",
        Refusal::TooMany(_) => "Slow down",
        Refusal::SignIn(_) => "Not signed in",
        Refusal::NotAdministrator | Refusal::Form | Refusal::Stale | Refusal::Operation(_) => "Not done",
    };
    let content = html! {
        p.lead { (refusal) }
        @match refusal {
            Refusal::SignedOut => { p { a href="/login" { "How to sign in" } } }
            Refusal::SignIn(_) => { p { a href="/login" { "Sign in" } } }
            _ => { p { a href="/console" { "All devices" } } }
        }
    };
    frame(None, title, &content)
}

fn how_to_sign_in(has_provider: bool, to: &str) -> Markup {
    html! {
        @if has_provider {
            p { a.button href={ "/login/provider?to=" (to) } { "Sign in" } }
        }
        p { "Whoever runs this server makes you a link, which is good for one sign-in:" }
        pre { code { "tailwharf coordinator user login-link you@example.com" } }
    }
}

/// How to sign in.
pub(super) fn sign_in_hint(has_provider: bool) -> Markup {
    frame(None, "Sign in", &how_to_sign_in(has_provider, "/console"))
}

/// Leads on after a sign-in.
pub(super) fn signed_in(login: &str, to: &str) -> Markup {
    let content = html! {
        meta http-equiv="refresh" content={ "0; url=" (to) };
        p.lead { "You are signed in as " strong { (login) } "." }
        p { a href=(to) { "Go on" } }
    };
    frame(None, "Signed in", &content)
}

/// Says that the owner of a device is asked, to anybody else.
pub(super) fn check_for_owner(site: &Site, check: &PendingCheck) -> Markup {
    let content = html! {
        p.lead { "The owner of a device is asked to confirm something here. If it is yours, sign in and open this page again." }
        (how_to_sign_in(site.provider.is_some(), &format!("/check/{}", check.id)))
    };
    frame(None, "Is it you?", &content)
}

/// Asks the owner of a device.
pub(super) fn check(
    visitor: &Visitor,
    check: &PendingCheck,
    device: &Node,
    fresh: bool,
    now: Timestamp,
) -> Markup {
    let content = html! {
        p.lead { "Your device " strong { (device.name) } " asks for: " strong { (check.purpose) } }
        dl {
            dt { "Code" } dd { code { (check.code) } }
            dt { "Asked" } dd { (ago(check.created, now)) }
            dt { "Good for" } dd { (span(check.expires, now)) }
        }
        p { "Confirm it only if you started it, and the code is the one that you were shown there." }
        @if fresh {
            form.decision method="post" {
                (token(visitor))
                button name="decision" value="confirm" { "It is me" }
                button.danger name="decision" value="deny" { "It is not me" }
            }
        } @else {
            p { a.button href={ "/login/provider?again=true&to=/check/" (check.id) } { "Sign in again to confirm" } }
            form.decision method="post" {
                (token(visitor))
                button.danger name="decision" value="deny" { "It is not me" }
            }
        }
    };
    frame(Some(visitor), "Is it you?", &content)
}

/// Asks whether to sign in.
pub(super) fn confirm_sign_in(login: &str) -> Markup {
    let content = html! {
        p.lead { "This link signs you in as " strong { (login) } "." }
        form method="post" { button { "Sign in as " (login) } }
        p.note { "If somebody sent you this link without being asked, close this page." }
    };
    frame(None, "Sign in", &content)
}

/// A device that wants to join.
pub(super) fn registration(
    pending: &PendingRegistration,
    visitor: Option<&Visitor>,
    owners: &[&User],
    has_provider: bool,
    now: Timestamp,
) -> Markup {
    let hostinfo = pending.request.hostinfo.clone().unwrap_or_default();
    let tags = hostinfo.request_tags.join(", ");
    let again = pending.node.is_some();
    let facts = [
        ("Host name", hostname(pending)),
        ("System", format!("{} {}", hostinfo.os, hostinfo.os_version)),
        ("Client", hostinfo.ipn_version),
        ("Asks for tags", tags),
        ("Machine key", pending.machine.to_string()),
        ("Asked", ago(pending.created, now)),
        ("Good for", span(pending.expires, now)),
    ];
    let content = html! {
        p.lead {
            @if again { "A device that was here before wants to log in again." }
            @else { "A device wants to join this tailnet." }
        }
        dl {
            @for (name, value) in &facts {
                @if !value.trim().is_empty() { dt { (name) } dd { (value) } }
            }
        }
        @if let Some(visitor) = visitor {
            p { "Add it only if you, or somebody whom you know, started it just now. Compare the host name." }
            form.decision method="post" {
                (token(visitor))
                label for="owner" { "It belongs to" }
                select id="owner" name="owner" {
                    @for user in owners {
                        option value=(user.id) selected[user.id == visitor.user.id] { (user.login) }
                    }
                }
                button name="decision" value="approve" { "Add the device" }
                button.danger name="decision" value="deny" { "Turn it down" }
            }
        } @else {
            p { "Send the address of this page to an administrator, or sign in and open it again." }
            (how_to_sign_in(has_provider, &format!("/a/{}", pending.id)))
        }
    };
    frame(visitor, "Add a device", &content)
}

/// All devices.
pub(super) fn overview(
    visitor: &Visitor,
    world: &World,
    nodes: &[&Node],
    pending: &[&std::sync::Arc<PendingRegistration>],
    url: &Url,
    now: Timestamp,
) -> Markup {
    let content = html! {
        @if !pending.is_empty() {
            section {
                h2 { "Want to join" }
                ul.cards {
                    @for pending in pending {
                        li {
                            strong { (hostname(pending)) }
                            " asked " (ago(pending.created, now)) ". "
                            a href={ "/a/" (pending.id) } { "Look and decide" }
                        }
                    }
                }
            }
        }
        section {
            @if nodes.is_empty() {
                p.lead { "There is no device yet." }
            } @else {
                div.scroll { (device_table(visitor, world, nodes, now)) }
            }
        }
        section {
            h2 { "Add a device" }
            p { "On the device, with Tailscale's own client:" }
            pre { code { "tailscale up --login-server=" (url.as_str().trim_end_matches('/')) } }
            p { "It shows an address; open it here. For servers and containers, make an auth key instead:" }
            pre { code { "tailwharf coordinator key create --user " (visitor.user.login) } }
        }
    };
    frame(Some(visitor), "Devices", &content)
}

fn device_table(visitor: &Visitor, world: &World, nodes: &[&Node], now: Timestamp) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "Name" }
                    th scope="col" { "Owner" }
                    th scope="col" { "Addresses" }
                    th scope="col" { "Seen" }
                    th scope="col" { "Key ends" }
                    th scope="col" { span.hidden { "Actions" } }
                }
            }
            tbody {
                @for node in nodes {
                    tr {
                        th scope="row" {
                            (node.name)
                            @if node.hostinfo.hostname != node.name && !node.hostinfo.hostname.is_empty() {
                                span.note { (node.hostinfo.hostname) }
                            }
                        }
                        td { (owner(world, node)) }
                        td.address { (node.ipv4) br; (node.ipv6) }
                        td data-label="Seen" { (seen(world, node, now)) }
                        td data-label="Key ends" { (key_end(node, now)) }
                        td.actions { (actions(visitor, node, now)) }
                    }
                }
            }
        }
    }
}

fn owner(world: &World, node: &Node) -> Markup {
    html! {
        @match &node.owner {
            NodeOwner::User(id) => { (world.user(*id).map(|user| user.login.as_str()).unwrap_or("nobody")) }
            NodeOwner::Tags(tags) => { @for tag in tags { span.tag { (tag) } " " } }
        }
    }
}

fn seen(world: &World, node: &Node, now: Timestamp) -> Markup {
    html! {
        @if world.presence(node.id).online { span.state.good { "connected" } }
        @else if let Some(at) = node.last_seen { time datetime=(at) { (ago(at, now)) } }
        @else { "never" }
    }
}

fn key_end(node: &Node, now: Timestamp) -> Markup {
    html! {
        @match node.expires {
            None => { "never" }
            Some(at) if at <= now => { span.state.bad { "ended" } }
            Some(at) => { time datetime=(at) { "in " (span(at, now)) } }
        }
    }
}

fn actions(visitor: &Visitor, node: &Node, now: Timestamp) -> Markup {
    let path = |action: Action| format!("/console/devices/{}/{}", node.stable_id, word(action));
    html! {
        @if !node.authorized {
            @if visitor.is_administrator() {
                form method="post" action=(path(Action::Approve)) { (token(visitor)) button { "Approve" } }
            } @else { span.state { "waits for approval" } }
        }
        @if !node.is_expired(now) { a href=(path(Action::Expire)) { "Log out" } " " }
        a.danger href=(path(Action::Delete)) { "Delete" }
        span.hidden { " " (node.name) }
    }
}

/// Asks whether something shall be done to a device.
pub(super) fn confirm(visitor: &Visitor, node: &Node, action: Action) -> Markup {
    let (title, text, button) = match action {
        Action::Approve => (
            "Approve a device",
            "It will be able to reach what the policy allows it to.",
            "Approve",
        ),
        Action::Expire => (
            "Log a device out",
            "Its key ends now. It is off the tailnet until its user logs in again.",
            "Log out",
        ),
        Action::Delete => (
            "Delete a device",
            "Its name and addresses are free again. To come back, it has to join anew.",
            "Delete",
        ),
    };
    let content = html! {
        p.lead { strong { (node.name) } " · " (node.ipv4) }
        p { (text) }
        form method="post" {
            (token(visitor))
            button.danger[action != Action::Approve] { (button) " " (node.name) }
            " "
            a href="/console" { "Leave it" }
        }
    };
    frame(Some(visitor), title, &content)
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Approve => "approve",
        Action::Expire => "expire",
        Action::Delete => "delete",
    }
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    format!("{} ago", length(now.duration_since(at)))
}

fn span(until: Timestamp, now: Timestamp) -> String {
    length(until.duration_since(now))
}

/// A length of time in its largest whole unit.
fn length(time: SignedDuration) -> String {
    let seconds = time.as_secs().max(0);
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_one_unit() {
        for (seconds, text) in [
            (-5, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (7_199, "119 minutes"),
            (7_200, "2 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(length(SignedDuration::from_secs(seconds)), text);
        }
    }
}
