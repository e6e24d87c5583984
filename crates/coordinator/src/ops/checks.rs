//! Fresh sign-ins: a node asks whether the person behind a device confirmed it lately, and the person does so.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use tailwharf_wire::tailcfg::{NodeId, UserId};
use tokio_util::sync::CancellationToken;

use super::{Context, Decision, OpError, Operations, Subject};
use crate::{
    model::{Action, Actor, CONFIRMATION_MEMORY, CheckId, CheckTarget, Confirmation, Node, PendingCheck},
    secret,
    world::{Change, World},
};

/// Questions that may wait at one time.
const WAITING_LIMIT: usize = 4096;
/// How long a page is open.
const LIFE: SignedDuration = SignedDuration::from_mins(10);
/// How long a no stands: programs that try again at once must not ask again.
const DENIAL: SignedDuration = SignedDuration::from_mins(1);
/// Characters of an id: 24 of 62 letters and digits, 142 bits.
const ID_LEN: usize = 24;
/// The longest purpose, in bytes.
const PURPOSE_LIMIT: usize = 200;
/// Letters of codes: none that looks like another, no vowels that make words.
const LETTERS: &[u8] = b"BCDFGHJKLMNPQRSTVWXZ";

/// What a node asks.
#[derive(Clone, Debug)]
pub(crate) struct CheckQuestion {
    /// The device whose owner is asked.
    pub(crate) source: NodeId,
    /// Who asks.
    pub(crate) target: CheckTarget,
    /// What for, in words for the person.
    pub(crate) purpose: String,
    /// How old a confirmation may be.
    pub(crate) max_age: SignedDuration,
}

/// What is known.
#[derive(Clone, Debug)]
pub(crate) enum CheckAnswer {
    /// The person confirmed it then.
    Confirmed(Timestamp),
    /// The person was asked.
    Asked(Arc<PendingCheck>),
    /// The person said no.
    Denied,
    /// The device belongs to no person, or does not take part in the tailnet.
    Nobody,
}

impl Operations {
    /// Looks whether a person confirmed something lately, and if not, opens the page at which they can.
    ///
    /// # Errors
    /// `NotFound` when there is no such device, `Busy` when too many pages are open.
    pub(crate) async fn check(&self, question: CheckQuestion) -> Result<CheckAnswer, OpError> {
        // Most questions are answered by what is known, which needs no turn at the writer.
        let world = self.world();
        if let Some(at) = confirmed(&world, &question, Timestamp::now()) {
            return Ok(CheckAnswer::Confirmed(at));
        }
        self.submit(move |world, context| ask(world, context, question))
            .await
    }

    /// The question of a page.
    ///
    /// # Errors
    /// `NotFound`, also once it was decided or has expired.
    pub(crate) fn pending_check(&self, id: &CheckId, now: Timestamp) -> Result<Arc<PendingCheck>, OpError> {
        let world = self.world();
        open(&world, id, now).cloned()
    }

    /// The person behind a device confirms. Worth only once.
    ///
    /// # Errors
    /// `NotFound` when it was decided or has expired, `Forbidden` for anybody else.
    pub(crate) async fn confirm_check(&self, user: UserId, id: CheckId) -> Result<(), OpError> {
        self.submit(move |world, context| {
            let check = open_for(world, &id, user, context.now)?;
            let node = world
                .node(check.source)
                .ok_or_else(|| OpError::not_found("device", check.source))?;
            let confirmation = Confirmation {
                source: node.id,
                key: node.node_key,
                user,
                target: check.target.clone(),
                at: context.now,
            };
            let changes = vec![
                Change::PutConfirmation(Arc::new(confirmation)),
                Change::DeleteCheck(id),
            ];
            let subject = Subject::node(node).detail(format!("a fresh sign-in for {}", check.purpose));
            let actor = Actor::User(user);
            Ok(Decision::new(changes, ()).noted(world, context, &actor, Action::Confirm, subject))
        })
        .await
    }

    /// The person behind a device says no.
    ///
    /// # Errors
    /// As [`Operations::confirm_check`].
    pub(crate) async fn deny_check(&self, user: UserId, id: CheckId) -> Result<(), OpError> {
        self.submit(move |world, context| {
            let check = open_for(world, &id, user, context.now)?;
            let denied = PendingCheck {
                denied: true,
                expires: after(context.now, DENIAL),
                ..check.as_ref().clone()
            };
            let changes = vec![Change::PutCheck(Arc::new(denied))];
            let subject = match world.node(check.source) {
                Some(node) => Subject::node(node).detail(format!("a sign-in for {}", check.purpose)),
                None => return Err(OpError::not_found("device", check.source)),
            };
            let actor = Actor::User(user);
            Ok(Decision::new(changes, ()).noted(world, context, &actor, Action::Deny, subject))
        })
        .await
    }

    /// Takes back what was confirmed for a device.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn revoke_confirmations(&self, actor: Actor, id: NodeId) -> Result<usize, OpError> {
        self.submit(move |world, context| {
            let node = world.node(id).ok_or_else(|| OpError::not_found("node", id))?;
            let changes = confirmations_of(world, id);
            let count = changes.len();
            let decision = Decision::new(changes, count);
            if count == 0 {
                return Ok(decision);
            }
            let subject = Subject::node(node).detail("fresh sign-ins");
            Ok(decision.noted(world, context, &actor, Action::Revoke, subject))
        })
        .await
    }
}

/// Takes back what was confirmed for a device, and for what it offers.
pub(crate) fn confirmations_of(world: &World, id: NodeId) -> Vec<Change> {
    let concerns = |confirmation: &Confirmation| {
        confirmation.source == id
            || matches!(confirmation.target, CheckTarget::Ssh(node) | CheckTarget::Node(node) if node == id)
    };
    world
        .confirmations()
        .filter(|confirmation| concerns(confirmation))
        .map(|confirmation| {
            Change::DeleteConfirmation(Confirmation::id(confirmation.source, &confirmation.target))
        })
        .collect()
}

/// When the owner of the device confirmed it, if lately enough.
fn confirmed(world: &World, question: &CheckQuestion, now: Timestamp) -> Option<Timestamp> {
    let node = person_device(world, question.source)?;
    let confirmation = world.confirmation(&Confirmation::id(node.id, &question.target))?;
    let age = now.duration_since(confirmation.at);
    let max_age = question.max_age.min(CONFIRMATION_MEMORY);
    let holds = confirmation.key == node.node_key
        && Some(confirmation.user) == node.owner.user()
        && age <= max_age
        // A clock that was set back makes nothing last longer.
        && age >= SignedDuration::ZERO;
    holds.then_some(confirmation.at)
}

/// The device, if it takes part in the tailnet and belongs to a person.
fn person_device(world: &World, id: NodeId) -> Option<&Arc<Node>> {
    world
        .node(id)
        .filter(|node| world.is_member(id) && node.owner.user().is_some())
}

fn ask(
    world: &World,
    context: &mut Context,
    question: CheckQuestion,
) -> Result<Decision<CheckAnswer>, OpError> {
    let now = context.now;
    if let Some(at) = confirmed(world, &question, now) {
        return Ok(Decision::unchanged(CheckAnswer::Confirmed(at)));
    }
    if world.node(question.source).is_none() {
        return Err(OpError::not_found("device", question.source));
    }
    let owner = person_device(world, question.source).and_then(|node| node.owner.user());
    let Some(user) = owner else {
        return Ok(Decision::unchanged(CheckAnswer::Nobody));
    };
    let mut same = world
        .checks()
        .filter(|check| check.source == question.source && check.target == question.target)
        .filter(|check| check.user == user && now < check.expires);
    if let Some(check) = same.next() {
        let answer = if check.denied {
            CheckAnswer::Denied
        } else {
            CheckAnswer::Asked(check.clone())
        };
        return Ok(Decision::unchanged(answer));
    }
    if world.checks().count() >= WAITING_LIMIT {
        return Err(OpError::Busy(
            "too many people are asked for a sign-in: try again in a minute",
        ));
    }
    let mut purpose = question.purpose;
    purpose.retain(|c| !c.is_control());
    purpose.truncate(purpose.floor_char_boundary(PURPOSE_LIMIT));
    let check = Arc::new(PendingCheck {
        id: CheckId(secret::random_text(ID_LEN, &mut context.rng)),
        code: code(&mut context.rng),
        source: question.source,
        user,
        target: question.target,
        purpose,
        created: now,
        expires: after(now, LIFE),
        denied: false,
        decided: CancellationToken::new(),
    });
    Ok(Decision::new(
        vec![Change::PutCheck(check.clone())],
        CheckAnswer::Asked(check),
    ))
}

fn code(rng: &mut impl Rng) -> String {
    let letters: String = (0..3)
        .map(|_| char::from(LETTERS[rng.gen_range(0..LETTERS.len())]))
        .collect();
    format!("{letters}-{:03}", rng.gen_range(0..1000))
}

fn open<'w>(world: &'w World, id: &CheckId, now: Timestamp) -> Result<&'w Arc<PendingCheck>, OpError> {
    world
        .check(id)
        .filter(|check| check.is_open(now))
        .ok_or_else(|| OpError::not_found("question", id))
}

fn open_for<'w>(
    world: &'w World,
    id: &CheckId,
    user: UserId,
    now: Timestamp,
) -> Result<&'w Arc<PendingCheck>, OpError> {
    let check = open(world, id, now)?;
    let owner = person_device(world, check.source).and_then(|node| node.owner.user());
    if check.user == user && owner == Some(user) {
        return Ok(check);
    }
    Err(OpError::Forbidden(
        "only the owner of the device can confirm this".to_owned(),
    ))
}

fn after(now: Timestamp, life: SignedDuration) -> Timestamp {
    now.saturating_add(life).unwrap_or(now)
}

#[cfg(test)]
mod tests;
