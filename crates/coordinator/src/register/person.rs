//! Registration by a person: a page whose address only the device knows, and a decision there.

use std::sync::Arc;

use jiff::SignedDuration;
use tailwharf_wire::tailcfg::{RegisterRequest, RegisterResponse};
use tokio_util::sync::CancellationToken;

use super::{Attempt, Grant, Refusal, Registered, Stop};
use crate::{
    model::{Node, NodeOwner, PendingRegistration, RegistrationId},
    ops::{Context, Decision, OpError, replacement},
    poll, secret,
    world::{Change, World},
};

/// Devices that may wait at one time.
const WAITING_LIMIT: usize = 4096;
/// How long a device may wait: as long as a person may take to find somebody who lets it in.
const LIFE: SignedDuration = SignedDuration::from_hours(1);
/// Characters of an id: 24 of 62 letters and digits, 142 bits.
const ID_LEN: usize = 24;

impl Attempt<'_> {
    /// Tells the client at which page a person decides. A client that asks again is told the same page until it is decided.
    pub(super) fn wait_for_person(&mut self, known: Option<&Node>) -> Result<Decision<Registered>, Stop> {
        let now = self.context.now;
        let followed = self.request.followup.rsplit('/').next().unwrap_or_default();
        let followed = self.world.registration(&RegistrationId(followed.to_owned()));
        if followed.is_some_and(|found| found.denied && found.machine == self.machine) {
            return Err(Refusal::Denied.into());
        }
        let mut own = self
            .world
            .registrations()
            .filter(|other| other.machine == self.machine);
        let former = own.next();
        if let Some(open) = former.filter(|other| other.is_open(now) && self.asks_for(other)) {
            return Ok(Decision::unchanged(self.at_page(open)));
        }
        if former.is_none() && self.world.registrations().count() >= WAITING_LIMIT {
            let busy = "too many devices wait to be let in: try again in a minute, or use an auth key";
            return Err(Stop::Failed(OpError::Busy(busy)));
        }
        let mut changes: Vec<_> = former
            .map(|former| Change::DeleteRegistration(former.id.clone()))
            .into_iter()
            .collect();
        let registration = Arc::new(PendingRegistration {
            id: RegistrationId(secret::random_text(ID_LEN, &mut self.context.rng)),
            machine: self.machine,
            request: self.lasting_part(),
            node: known.map(|node| node.id),
            created: now,
            expires: now.checked_add(LIFE).unwrap_or(now),
            denied: false,
            decided: CancellationToken::new(),
        });
        let answer = self.at_page(&registration);
        changes.push(Change::PutRegistration(registration));
        Ok(Decision::new(changes, answer))
    }

    fn asks_for(&self, other: &PendingRegistration) -> bool {
        other.request.node_key == self.request.node_key
            && other.request.old_node_key == self.request.old_node_key
    }

    fn at_page(&self, registration: &PendingRegistration) -> Registered {
        let base = self.context.server_url.as_str().trim_end_matches('/');
        Registered {
            response: RegisterResponse {
                auth_url: format!("{base}/a/{}", registration.id),
                ..RegisterResponse::default()
            },
            waits: Some(registration.decided.clone()),
            created: None,
        }
    }

    /// What of the request is kept while the device waits.
    fn lasting_part(&self) -> RegisterRequest {
        let request = &self.request;
        let mut hostinfo = request.hostinfo.clone().unwrap_or_default();
        poll::limit(&mut hostinfo);
        RegisterRequest {
            version: request.version,
            node_key: request.node_key,
            old_node_key: request.old_node_key,
            expiry: request.expiry,
            hostinfo: Some(hostinfo),
            ephemeral: request.ephemeral,
            ..RegisterRequest::default()
        }
    }
}

/// Lets a device in that waited: a new node of `owner`, or the one that it was before if that was of the same owner.
pub(crate) fn admit(
    world: &World,
    context: &mut Context,
    registration: &PendingRegistration,
    owner: &NodeOwner,
    by_administrator: bool,
) -> Result<Decision<Arc<Node>>, OpError> {
    let refused = |stop| match stop {
        Stop::Refused(refusal) => OpError::Invalid(refusal.to_string()),
        Stop::Failed(error) => error,
    };
    let mut attempt = Attempt {
        world,
        context,
        machine: registration.machine,
        request: registration.request.clone(),
    };
    let known = attempt.known().map_err(|refusal| refused(refusal.into()))?;
    let known = known.filter(|node| node.owner == *owner);
    let grant = Grant {
        owner: attempt
            .owner_with_wishes(owner)
            .map_err(|refusal| refused(refusal.into()))?,
        ephemeral: registration.request.ephemeral,
        authorized: by_administrator || !world.settings().device_approval,
        key: None,
    };
    let (node, _) = attempt.log_in(known, &grant).map_err(refused)?;
    let node = Arc::new(node);
    Ok(Decision::new(replacement(world, context, &node), node))
}

#[cfg(test)]
mod tests;
