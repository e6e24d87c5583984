//! `tailwharf migrate`: takes a namespace over from the Go operator, or gives it back. What is done in which order is decided by
//! [`tailwharf_plan::migrate`]; this reads the cluster for it, as whoever runs the command, and carries the steps out.

mod carry;
mod inventory;
mod wait;

use std::time::Duration;

use anyhow::{Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use tailwharf_plan::migrate::{Migration, Obstacle, Step, back, forward};

use self::carry::Carrier;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the Go operator to tailwharf.
    Forward,
    /// From tailwharf to the Go operator.
    Back,
}

/// What whoever runs the command chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of both operators.
    pub namespace: String,
    /// Which way.
    pub direction: Direction,
    /// Go on although there are objects that tailwharf does not serve.
    pub leave_unserved: bool,
    /// Keep what the Go operator made.
    pub keep_old: bool,
    /// How many objects are moved at a time.
    pub parallel: usize,
}

/// Reads the cluster of the current kubeconfig and plans.
///
/// # Errors
/// When there is no cluster, or the caller may not read it.
pub async fn plan(options: &Options) -> Result<Migration> {
    let (_, migration) = planned(options).await?;
    Ok(migration)
}

async fn planned(options: &Options) -> Result<(Client, Migration)> {
    let client = crate::here().await?;
    let migration = plan_with(&client, options).await?;
    Ok((client, migration))
}

/// Plans for the cluster of this client.
///
/// # Errors
/// When it may not be read.
pub async fn plan_with(client: &Client, options: &Options) -> Result<Migration> {
    let inventory = inventory::read(client, &options.namespace).await?;
    let mut migration = match options.direction {
        Direction::Forward => forward(&inventory),
        Direction::Back => back(&inventory),
    };
    if options.leave_unserved {
        migration
            .obstacles
            .retain(|obstacle| !matches!(obstacle, Obstacle::Unserved { .. }));
    }
    if options.keep_old {
        migration.steps.retain(|step| !matches!(step, Step::Remove(_)));
    }
    Ok(migration)
}

/// Plans and does it, and tells of each step that is done.
///
/// # Errors
/// When something has to be solved before, or a step fails. What was done stays; the same command goes on from there.
pub async fn run(options: &Options, tell: &(dyn Fn(&str) + Sync)) -> Result<()> {
    let (client, migration) = planned(options).await?;
    run_with(&client, &migration, options, tell).await.map(drop)
}

/// Does what was planned, and tells for how long each moved object had no device.
///
/// # Errors
/// When something has to be solved before, or a step fails.
pub async fn run_with(
    client: &Client,
    migration: &Migration,
    options: &Options,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<Vec<Duration>> {
    if !migration.obstacles.is_empty() {
        let all: Vec<_> = migration.obstacles.iter().map(ToString::to_string).collect();
        bail!("nothing was changed:\n{}", all.join("\n"));
    }
    let carrier = Carrier {
        client: client.clone(),
        namespace: options.namespace.clone(),
    };
    let mut gaps = Vec::new();
    // Steps of one kind do not depend on each other.
    for batch in migration
        .steps
        .chunk_by(|one, other| std::mem::discriminant(one) == std::mem::discriminant(other))
    {
        let done = futures::stream::iter(batch.iter().map(|step| carrier.told(step, tell)))
            .buffer_unordered(options.parallel.max(1))
            .try_collect::<Vec<_>>()
            .await?;
        gaps.extend(done.into_iter().flatten());
    }
    Ok(gaps)
}
