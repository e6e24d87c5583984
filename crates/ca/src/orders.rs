//! Orders and authorizations: from a wish for names to the certificate (RFC 8555, section 7.1.6).
//!
//! They live in memory: a client whose order is lost to a restart makes a new one.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::problem::{Kind, Problem};

/// How long an order lives, and the certificate in it.
const LIFE: SignedDuration = SignedDuration::from_hours(24);
const MAX_ORDERS: usize = 10_000;
const MAX_ORDERS_OF_ACCOUNT: usize = 1_000;
/// As many names as one certificate may have.
pub(crate) const MAX_NAMES: usize = 100;

/// A name to certify.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// The name without the asterisk, in lower case.
    pub(crate) base: String,
    /// Whether it stands for all names one level below.
    pub(crate) wildcard: bool,
}

impl Name {
    /// Reads a name below `suffix`.
    pub(crate) fn parse(text: &str, suffix: &str) -> Result<Self, Problem> {
        let lower = text.to_ascii_lowercase();
        let (base, wildcard) = match lower.strip_prefix("*.") {
            Some(base) => (base, true),
            None => (lower.as_str(), false),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let below = base
            .strip_suffix(suffix)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
        if below && base.len() <= 253 && base.split('.').all(label) {
            let base = base.to_owned();
            return Ok(Self { base, wildcard });
        }
        let shown: String = text.chars().take(80).collect();
        Err(Problem::new(
            Kind::RejectedIdentifier,
            format!("`{shown}` is not a name of this tailnet: only names below {suffix} are certified here"),
        ))
    }

    /// As certificates and orders write it.
    pub(crate) fn text(&self) -> String {
        let asterisk = if self.wildcard { "*." } else { "" };
        format!("{asterisk}{}", self.base)
    }

    /// Where the proof is looked for (RFC 8555, section 8.4).
    pub(crate) fn challenge(&self) -> String {
        format!("_acme-challenge.{}", self.base)
    }
}

/// How far something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Pending,
    Ready,
    Valid,
    Invalid,
}

/// The proof that an account controls a name.
#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    pub(crate) name: Name,
    pub(crate) token: String,
    pub(crate) outcome: Option<Result<Timestamp, Problem>>,
}

impl Authorization {
    pub(crate) const fn state(&self) -> State {
        match self.outcome {
            None => State::Pending,
            Some(Ok(_)) => State::Valid,
            Some(Err(_)) => State::Invalid,
        }
    }
}

/// A wish for a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) account: String,
    pub(crate) expires: Timestamp,
    pub(crate) authorizations: Vec<Authorization>,
    /// The chain as PEM, once it is issued.
    pub(crate) certificate: Option<String>,
}

impl Order {
    /// The order's state follows from its parts.
    pub(crate) fn state(&self) -> State {
        let any = |state| self.authorizations.iter().any(|part| part.state() == state);
        if self.certificate.is_some() {
            State::Valid
        } else if any(State::Invalid) {
            State::Invalid
        } else if any(State::Pending) {
            State::Pending
        } else {
            State::Ready
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.authorizations.iter().map(|part| &part.name)
    }
}

/// All orders, by id.
#[derive(Debug, Default)]
pub(crate) struct Orders(HashMap<String, Order>);

impl Orders {
    /// Takes a new order. `tokens` gives each name's challenge its token.
    pub(crate) fn open(
        &mut self,
        id: String,
        account: &str,
        mut names: Vec<Name>,
        mut token: impl FnMut() -> String,
        now: Timestamp,
    ) -> Result<&Order, Problem> {
        self.0.retain(|_, order| now < order.expires);
        let of_account = self.0.values().filter(|order| order.account == account).count();
        if self.0.len() >= MAX_ORDERS || of_account >= MAX_ORDERS_OF_ACCOUNT {
            return Err(Problem::new(
                Kind::RateLimited,
                "there are too many orders; they end after a day",
            ));
        }
        names.sort();
        names.dedup();
        if names.is_empty() || names.len() > MAX_NAMES {
            return Err(Problem::malformed(format!("an order has 1 to {MAX_NAMES} names")));
        }
        let authorization = |name| Authorization {
            name,
            token: token(),
            outcome: None,
        };
        let order = Order {
            account: account.to_owned(),
            expires: now.saturating_add(LIFE).unwrap_or(Timestamp::MAX),
            authorizations: names.into_iter().map(authorization).collect(),
            certificate: None,
        };
        Ok(self.0.entry(id).insert_entry(order).into_mut())
    }

    /// An order of this account that has not ended.
    pub(crate) fn get(&mut self, id: &str, account: &str, now: Timestamp) -> Result<&mut Order, Problem> {
        self.0
            .get_mut(id)
            .filter(|order| order.account == account && now < order.expires)
            .ok_or_else(|| Problem::not_found("order"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn name(text: &str) -> Name {
        Name::parse(text, "tail1.ts.net").unwrap()
    }

    #[test]
    fn names_are_below_the_suffix() {
        assert_eq!(name("Web.tail1.ts.net").text(), "web.tail1.ts.net");
        assert_eq!(
            name("*.web.tail1.ts.net").challenge(),
            "_acme-challenge.web.tail1.ts.net"
        );
        for text in [
            "tail1.ts.net",
            ".tail1.ts.net",
            "webtail1.ts.net",
            "web.tail2.ts.net",
            "a b.tail1.ts.net",
            "*.*.tail1.ts.net",
            "-a.tail1.ts.net",
            "",
            "*",
            "ä.tail1.ts.net",
        ] {
            assert_eq!(
                Name::parse(text, "tail1.ts.net").unwrap_err().kind,
                Kind::RejectedIdentifier,
                "{text}"
            );
        }
    }

    #[test]
    fn an_order_is_as_far_as_its_names() {
        let mut orders = Orders::default();
        let names = vec![
            name("a.tail1.ts.net"),
            name("b.tail1.ts.net"),
            name("a.tail1.ts.net"),
        ];
        let order = orders
            .open("1".to_owned(), "me", names, || "token".to_owned(), NOW)
            .unwrap();
        assert_eq!((order.state(), order.authorizations.len()), (State::Pending, 2));
        let order = orders.get("1", "me", NOW).unwrap();
        order.authorizations[0].outcome = Some(Ok(NOW));
        assert_eq!(order.state(), State::Pending);
        order.authorizations[1].outcome = Some(Ok(NOW));
        assert_eq!(order.state(), State::Ready);
        order.authorizations[0].outcome = Some(Err(Problem::new(Kind::Dns, "no")));
        assert_eq!(order.state(), State::Invalid);
        order.certificate = Some(String::new());
        assert_eq!(order.state(), State::Valid);
    }

    #[test]
    fn orders_are_bounded_end_and_belong_to_one_account() {
        let mut orders = Orders::default();
        for id in 0..MAX_ORDERS_OF_ACCOUNT {
            let names = vec![name("a.tail1.ts.net")];
            orders
                .open(id.to_string(), "me", names, String::new, NOW)
                .unwrap();
        }
        let more = |orders: &mut Orders, now| {
            orders
                .open(
                    "x".to_owned(),
                    "me",
                    vec![name("a.tail1.ts.net")],
                    String::new,
                    now,
                )
                .map(drop)
        };
        assert_eq!(more(&mut orders, NOW).unwrap_err().kind, Kind::RateLimited);
        assert!(orders.get("0", "you", NOW).is_err());
        let later = NOW.checked_add(LIFE).unwrap();
        assert!(orders.get("0", "me", later).is_err());
        more(&mut orders, later).unwrap();
    }
}
