//! What is wrong with a node, in words for people: the control server's warnings in their old and new form, and our own.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tailwharf_wire::tailcfg::{DisplayMessage, MapResponse};

/// A node key that ends within this time is told of.
const EXPIRY_WARNING: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Warnings kept at the same time; more of them would help nobody.
const MAX_WARNINGS: usize = 64;

/// Characters kept of each warning.
const MAX_TEXT: usize = 600;

/// The warnings of one session.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The old form, replaced as a whole.
    texts: Vec<String>,
    /// The new form, by name.
    messages: BTreeMap<String, DisplayMessage>,
    /// A page that the server wants to be shown.
    page: Option<String>,
}

impl Health {
    /// Takes what a message of the map stream says.
    pub(super) fn apply(&mut self, response: &MapResponse) {
        if let Some(texts) = &response.health {
            self.texts.clone_from(texts);
            self.texts.truncate(MAX_WARNINGS);
        }
        // `*` without a message removes all that are not in this response.
        if response.display_messages.get("*").is_some_and(Option::is_none) {
            self.messages.clear();
        }
        for (name, message) in &response.display_messages {
            match message {
                Some(message) if self.messages.len() < MAX_WARNINGS => {
                    self.messages.insert(name.clone(), message.clone());
                }
                Some(_) => {}
                None => {
                    self.messages.remove(name);
                }
            }
        }
        if !response.pop_browser_url.is_empty() {
            self.page = Some(response.pop_browser_url.clone());
        }
    }

    /// The warnings now, the most important first. `expiry` is that of the node key.
    pub(super) fn texts(&self, expiry: Option<Timestamp>, now: Timestamp) -> Vec<String> {
        let mut messages: Vec<_> = self.messages.values().collect();
        messages.sort_by_key(|message| match message.severity.as_str() {
            "high" => 0,
            "low" => 2,
            _ => 1,
        });
        let expiring = expiry
            .filter(|expiry| now.duration_until(*expiry) <= EXPIRY_WARNING)
            .map(|expiry| {
                format!(
                    "the node key ends at {expiry}: sign in again before, or turn off key expiry for this device"
                )
            });
        let page = self.page.as_ref().map(|page| format!("open this page: {page}"));
        let mut texts: Vec<String> = expiring.into_iter().chain(page).collect();
        texts.extend(messages.into_iter().map(sentence));
        texts.extend(self.texts.iter().cloned());
        for text in &mut texts {
            if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
                text.truncate(end);
            }
        }
        texts.truncate(MAX_WARNINGS);
        texts
    }
}

/// One line of a message with all it has to say.
fn sentence(message: &DisplayMessage) -> String {
    let mut text = match (message.title.is_empty(), message.text.is_empty()) {
        (false, false) => format!("{}: {}", message.title, message.text),
        _ => format!("{}{}", message.title, message.text),
    };
    if let Some(action) = &message.primary_action
        && !action.url.is_empty()
    {
        text.push_str(&format!(" ({})", action.url));
    }
    text
}

/// How long the node key is still good, if it ends at all.
pub(super) fn until_expiry(expiry: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let left = now.duration_until(expiry?);
    Some(left.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use tailwharf_wire::tailcfg::DisplayMessageAction;

    use super::*;

    fn message(title: &str, severity: &str) -> DisplayMessage {
        DisplayMessage {
            title: title.into(),
            text: "text".into(),
            severity: severity.into(),
            ..DisplayMessage::default()
        }
    }

    fn response(messages: &[(&str, Option<DisplayMessage>)]) -> MapResponse {
        MapResponse {
            display_messages: messages
                .iter()
                .map(|(name, message)| ((*name).to_owned(), message.clone()))
                .collect(),
            ..MapResponse::default()
        }
    }

    #[test]
    fn messages_come_and_go_by_name_and_the_old_form_as_a_whole() {
        let mut health = Health::default();
        let link = DisplayMessage {
            primary_action: Some(DisplayMessageAction {
                url: "https://example.com/help".into(),
                label: "Help".into(),
            }),
            ..message("Low", "low")
        };
        health.apply(&response(&[
            ("a", Some(link)),
            ("b", Some(message("High", "high"))),
        ]));
        health.apply(&MapResponse {
            health: Some(vec!["old words".into()]),
            ..MapResponse::default()
        });
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(
            health.texts(None, now),
            ["High: text", "Low: text (https://example.com/help)", "old words"]
        );
        health.apply(&response(&[("b", None)]));
        health.apply(&MapResponse {
            health: Some(Vec::new()),
            ..MapResponse::default()
        });
        assert_eq!(health.texts(None, now).len(), 1);
        health.apply(&response(&[("*", None), ("c", Some(message("Only", "")))]));
        assert_eq!(health.texts(None, now), ["Only: text"]);
        health.apply(&MapResponse::default());
        assert_eq!(health.texts(None, now).len(), 1, "absent is unchanged");
    }

    #[test]
    fn a_key_is_told_of_in_its_last_week() {
        let now = Timestamp::UNIX_EPOCH;
        let in_days = |days: i64| Some(now + SignedDuration::from_hours(24 * days));
        let health = Health::default();
        assert!(health.texts(in_days(8), now).is_empty());
        assert!(health.texts(in_days(6), now)[0].contains("1970-01-07"));
        assert_eq!(until_expiry(None, now), None);
        assert_eq!(
            until_expiry(in_days(1), now),
            Some(Duration::from_secs(24 * 3600))
        );
        assert_eq!(until_expiry(in_days(-1), now), Some(Duration::ZERO));
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut health = Health::default();
        for number in 0..1000 {
            health.apply(&response(&[(
                &number.to_string(),
                Some(message(&"ä".repeat(5000), "high")),
            )]));
        }
        let texts = health.texts(None, Timestamp::UNIX_EPOCH);
        assert_eq!(texts.len(), MAX_WARNINGS);
        assert!(texts.iter().all(|text| text.chars().count() <= MAX_TEXT));
    }
}
