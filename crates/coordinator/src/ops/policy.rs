//! The policy.

use std::{fmt, net::SocketAddr, sync::Arc};

use sha2::{Digest, Sha256};
use tailwharf_policy::{Policy, PolicyError};

use super::{Context, Decision, OpError, Operations, Subject};
use crate::{
    model::{Action, Actor, PolicyVersion, TargetKind},
    world::{ActivePolicy, Change, World},
};

/// Names one text of the policy, for `ETag` and `If-Match`: the SHA-256 of the text, as hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTag(pub String);

impl PolicyTag {
    /// The tag of a text.
    pub fn of(text: &str) -> Self {
        Self(hex::encode(Sha256::digest(text.as_bytes())))
    }
}

impl fmt::Display for PolicyTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom or what a preview is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewOf {
    /// A person, by login.
    User(String),
    /// What is reached there.
    Address(SocketAddr),
}

impl Operations {
    /// The text in force and its tag.
    pub fn policy(&self) -> (Arc<PolicyVersion>, PolicyTag) {
        let version = self.world().policy().version.clone();
        let tag = PolicyTag::of(&version.text);
        (version, tag)
    }

    /// Whether a text would be accepted, and which parts of it have no effect.
    ///
    /// # Errors
    /// `PolicyInvalid` with every fault found.
    pub fn check_policy(&self, text: &str) -> Result<Vec<PolicyError>, OpError> {
        parse(&self.world(), text)
            .map(|policy| policy.warnings().to_vec())
            .map_err(OpError::PolicyInvalid)
    }

    /// The rules of a text that concern a person, or what is reached at an address.
    ///
    /// # Errors
    /// `PolicyInvalid`.
    pub fn preview_policy(&self, text: &str, of: PreviewOf) -> Result<Vec<tailwharf_policy::Match>, OpError> {
        let tailnet = self.world().tailnet();
        let policy = Policy::parse(text).map_err(OpError::PolicyInvalid)?;
        Ok(match of {
            PreviewOf::User(login) => policy.preview_user(&tailnet, &login),
            PreviewOf::Address(to) => policy.preview_address(&tailnet, to.ip(), to.port()),
        })
    }

    /// Puts a text in force, if it is valid and passes its own tests.
    ///
    /// # Errors
    /// `PolicyInvalid`; `PolicyChanged` when `only_if` does not name the text in force. The former policy stays.
    pub async fn set_policy(
        &self,
        actor: Actor,
        text: String,
        only_if: Option<PolicyTag>,
    ) -> Result<Arc<PolicyVersion>, OpError> {
        self.submit(move |world, context| set_policy(world, context, actor, &text, only_if))
            .await
    }
}

fn parse(world: &World, text: &str) -> Result<Policy, Vec<PolicyError>> {
    let policy = Policy::parse(text)?;
    policy.check(&world.tailnet())?;
    Ok(policy)
}

fn set_policy(
    world: &World,
    context: &Context,
    actor: Actor,
    text: &str,
    only_if: Option<PolicyTag>,
) -> Result<Decision<Arc<PolicyVersion>>, OpError> {
    let current = &world.policy().version;
    if only_if.is_some_and(|tag| tag != PolicyTag::of(&current.text)) {
        return Err(OpError::PolicyChanged);
    }
    let policy = parse(world, text).map_err(OpError::PolicyInvalid)?;
    if current.text == text && current.version > 0 {
        return Ok(Decision::unchanged(current.clone()));
    }
    let version = Arc::new(PolicyVersion {
        version: current.version + 1,
        text: text.to_owned(),
        actor,
        created: context.now,
    });
    let active = ActivePolicy {
        version: version.clone(),
        policy: Arc::new(policy),
    };
    let subject = Subject::new(TargetKind::Policy, version.version, "policy");
    let decision = Decision::new(vec![Change::PutPolicy(Arc::new(active))], version.clone());
    Ok(decision.noted(world, context, &version.actor, Action::Update, subject))
}
