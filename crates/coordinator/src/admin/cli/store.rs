//! Copies of the store.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use http::Method;
use serde_json::{Value, json};

use super::super::client::{Client, ClientError};
use crate::Config;
use crate::store::{self, SqliteStore, Store, StoreError};

/// What is done to a store as a whole.
#[derive(Clone, Debug)]
pub(super) enum StoreCommand {
    BackUp(PathBuf),
    Restore(PathBuf),
    Export,
}

pub(super) async fn run(
    config: &Config,
    client: &Client,
    command: StoreCommand,
    mut to: impl Write,
) -> Result<()> {
    let file = config.store_file();
    match command {
        StoreCommand::BackUp(copy) => {
            let copy = std::path::absolute(copy)?;
            back_up(client, &file, &copy).await?;
            writeln!(
                to,
                "The store was copied to {}. Keep it as you keep passwords.",
                copy.display()
            )?;
        }
        StoreCommand::Restore(copy) => {
            store::restore(&copy, &file)?;
            writeln!(
                to,
                "The store is as it was in {}. Start the coordinator now.",
                copy.display()
            )?;
        }
        StoreCommand::Export => {
            let dir = tempdir(&config.data_dir)?;
            let copy = dir.join("export.db");
            let exported = match back_up(client, &file, &copy).await {
                Ok(()) => store::export(&copy).map_err(Into::into),
                Err(error) => Err(error),
            };
            std::fs::remove_dir_all(&dir).with_context(|| format!("{} is left over", dir.display()))?;
            serde_json::to_writer_pretty(&mut to, &exported?)?;
            writeln!(to)?;
        }
    }
    Ok(())
}

/// A directory of our own, which only the coordinator's user can look into.
fn tempdir(data_dir: &Path) -> Result<PathBuf> {
    let dir = data_dir.join(format!("export-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    Ok(dir)
}

/// Copies the store: by the coordinator if one runs, else by ourselves.
async fn back_up(client: &Client, file: &Path, copy: &Path) -> Result<()> {
    let request = json!({ "path": copy });
    match client
        .call::<Value>(Method::POST, &["backup"], Some(&request))
        .await
    {
        Ok(_) => Ok(()),
        Err(ClientError::NotRunning { .. }) => {
            if !file.exists() {
                return Err(StoreError::Missing(file.to_owned()).into());
            }
            Ok(SqliteStore::open(file)?.back_up(copy)?)
        }
        Err(error) => Err(error.into()),
    }
}
