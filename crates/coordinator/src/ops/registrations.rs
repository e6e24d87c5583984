//! Devices that wait for a person to let them in.

use std::sync::Arc;

use tailwharf_wire::{
    key::MachinePublic,
    tailcfg::{RegisterRequest, RegisterResponse},
};

use super::{Context, Decision, OpError, Operations, Subject};
use crate::{
    model::{Action, Actor, Node, NodeOwner, PendingRegistration, RegistrationId, TargetKind},
    register::{self, Registered},
    world::{Change, World},
};

impl Operations {
    /// Registers a device, as the machine with this key asks for it, and answers at once: a device that has to wait for a person is told the page
    /// at which that person decides.
    ///
    /// # Errors
    /// What the client shall try again after.
    pub async fn register(
        &self,
        machine: MachinePublic,
        request: RegisterRequest,
    ) -> Result<RegisterResponse, OpError> {
        let registered: Registered = self
            .submit(move |world, context| register::register(world, context, machine, request))
            .await?;
        Ok(registered.response)
    }

    /// A registration that was not let in yet.
    ///
    /// # Errors
    /// `NotFound`, also once it was let in or has expired.
    pub fn registration(&self, id: &RegistrationId) -> Result<Arc<PendingRegistration>, OpError> {
        let world = self.world();
        let registration = world.registration(id).ok_or_else(|| not_found(id))?;
        Ok(registration.clone())
    }

    /// Lets a device in as one of `owner`; without one, as what it was before. Worth only once: the page's address is used up.
    ///
    /// A person who is no administrator may do so as the owner only, and the device then waits for approval if the settings ask for it.
    ///
    /// # Errors
    /// `NotFound` when it was decided or has expired; `Forbidden`; `TagNotPermitted`; `Invalid` without an owner, or with tags that the device asks
    /// for and may not have.
    pub async fn approve_registration(
        &self,
        actor: Actor,
        id: RegistrationId,
        owner: Option<NodeOwner>,
    ) -> Result<Arc<Node>, OpError> {
        self.submit(move |world, context| {
            let registration = open(world, context, &id)?;
            let is_administrator = may_administer(world, &actor);
            let owner = owner
                .or_else(|| Some(world.node(registration.node?)?.owner.clone()))
                .ok_or_else(|| OpError::Invalid("a device needs an owner: name a user or tags".to_owned()))?;
            check_owner(world, &actor, is_administrator, &owner)?;
            let mut decision = register::admit(world, context, registration, &owner, is_administrator)?;
            decision.changes.push(Change::DeleteRegistration(id.clone()));
            let subject = Subject::node(&decision.answer);
            Ok(decision.noted(world, context, &actor, Action::Approve, subject))
        })
        .await
    }

    /// Turns a device down. Its user is told.
    ///
    /// # Errors
    /// `NotFound` when it was decided or has expired; `Forbidden` for a person who is no administrator.
    pub async fn deny_registration(&self, actor: Actor, id: RegistrationId) -> Result<(), OpError> {
        self.submit(move |world, context| {
            let registration = open(world, context, &id)?;
            if !may_administer(world, &actor) {
                return Err(OpError::Forbidden(
                    "only administrators turn devices down".to_owned(),
                ));
            }
            let denied = PendingRegistration {
                denied: true,
                ..registration.as_ref().clone()
            };
            let hostname = registration
                .request
                .hostinfo
                .as_ref()
                .map(|info| info.hostname.clone());
            // Not the id: until it ends, it is what the address is made of.
            let subject = Subject::new(
                TargetKind::Registration,
                registration.machine,
                hostname.unwrap_or_default(),
            );
            let decision = Decision::new(vec![Change::PutRegistration(Arc::new(denied))], ());
            Ok(decision.noted(world, context, &actor, Action::Deny, subject))
        })
        .await
    }
}

fn not_found(id: &RegistrationId) -> OpError {
    OpError::not_found("waiting device", id)
}

fn open<'a>(
    world: &'a World,
    context: &Context,
    id: &RegistrationId,
) -> Result<&'a Arc<PendingRegistration>, OpError> {
    world
        .registration(id)
        .filter(|registration| registration.is_open(context.now))
        .ok_or_else(|| not_found(id))
}

fn may_administer(world: &World, actor: &Actor) -> bool {
    match actor {
        Actor::Administrator | Actor::Client { .. } => true,
        Actor::User(id) => world.user(*id).is_some_and(|user| user.is_administrator()),
    }
}

fn check_owner(
    world: &World,
    actor: &Actor,
    is_administrator: bool,
    owner: &NodeOwner,
) -> Result<(), OpError> {
    match owner {
        NodeOwner::Tags(tags) if tags.is_empty() => Err(OpError::Invalid(
            "a device needs an owner: name a user or tags".to_owned(),
        )),
        NodeOwner::Tags(tags) => super::check_tags(world, actor, tags),
        NodeOwner::User(user) => {
            world
                .user(*user)
                .ok_or_else(|| OpError::not_found("user", user))?;
            if is_administrator || *actor == Actor::User(*user) {
                return Ok(());
            }
            Err(OpError::Forbidden(
                "you can let in devices of your own only".to_owned(),
            ))
        }
    }
}
