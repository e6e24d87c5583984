//! The relays that nodes are told of: the embedded one, and those of a file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tailwharf_relay::RelayHandle;
use tailwharf_wire::{
    json,
    tailcfg::{DerpMap, DerpRegion, RegionId},
};
use tokio::time::sleep;

use crate::{
    config::{Config, DerpSettings},
    machine::Control,
    ops::Decision,
    world::Change,
};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Why the file of relays is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DerpMapError {
    /// It cannot be read.
    #[error("the relays {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the JSON of a DERP map.
    #[error("the relays {} are not a DERP map as JSON", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: json::JsonError,
    },
    /// A region that no client could use.
    #[error("region {region} of the relays {}: {problem}", path.display())]
    Region {
        /// The file.
        path: PathBuf,
        /// The region.
        region: RegionId,
        /// What to change.
        problem: &'static str,
    },
}

/// Where the relays come from.
#[derive(Debug)]
pub(crate) struct Relays {
    embedded: Option<DerpRegion>,
    settings: DerpSettings,
}

impl Relays {
    pub(crate) fn new(config: &Config, relay: Option<&RelayHandle>) -> Self {
        let embedded = relay.map(|relay| DerpRegion {
            region_id: config.relay.region_id,
            region_code: config.relay.region_code.clone(),
            region_name: config.relay.region_code.clone(),
            nodes: vec![relay.derp_node()],
            ..DerpRegion::default()
        });
        Self {
            embedded,
            settings: config.derp.clone(),
        }
    }

    /// The relays, as the file says now.
    pub(crate) fn load(&self) -> Result<DerpMap, DerpMapError> {
        let mut map = DerpMap {
            omit_default_regions: true,
            ..DerpMap::default()
        };
        if !self.settings.replace {
            map.regions.extend(
                self.embedded
                    .iter()
                    .map(|region| (region.region_id, region.clone())),
            );
        }
        if let Some(path) = &self.settings.map_file {
            let file = read(path)?;
            map.regions.extend(file.regions);
            map.home_params = file.home_params;
        }
        Ok(map)
    }

    /// Takes up changes of the file until the coordinator stops. A file that is of no use changes nothing.
    pub(crate) async fn watch(self, control: Arc<Control>) {
        let Some(path) = self.settings.map_file.clone() else {
            return;
        };
        let mut seen = modified(&path).await;
        let rounds = async {
            loop {
                sleep(LOOK).await;
                let now = modified(&path).await;
                if now.is_none() || now == seen {
                    continue;
                }
                seen = now;
                let map = match self.load() {
                    Ok(map) => Arc::new(map),
                    Err(error) => {
                        tracing::warn!(%error, "the relays stay as they were");
                        continue;
                    }
                };
                tracing::info!(regions = map.regions.len(), "relays read");
                let put = control
                    .ops
                    .submit(|_, _| Ok(Decision::new(vec![Change::SetDerpMap(map)], ())));
                if let Err(error) = put.await {
                    tracing::warn!(%error, "the relays stay as they were");
                }
            }
        };
        control.stop.run_until_cancelled(rounds).await;
    }
}

async fn modified(path: &Path) -> Option<SystemTime> {
    tokio::fs::metadata(path)
        .await
        .and_then(|file| file.modified())
        .ok()
}

fn read(path: &Path) -> Result<DerpMap, DerpMapError> {
    let text = fs::read(path).map_err(|source| DerpMapError::Read {
        path: path.to_owned(),
        source,
    })?;
    let map: DerpMap = json::from_slice(&text).map_err(|source| DerpMapError::Parse {
        path: path.to_owned(),
        source,
    })?;
    for (id, region) in &map.regions {
        let problem = if region.region_id != *id {
            "its `RegionID` is not its key: make them equal"
        } else if region.nodes.is_empty() {
            "it has no relay: add one to `Nodes`, or leave the region out"
        } else if region.nodes.iter().any(|node| node.region_id != *id) {
            "the `RegionID` of a relay is not that of its region: make them equal"
        } else if region.nodes.iter().any(|node| node.host_name.is_empty()) {
            "a relay has no `HostName`: add it"
        } else {
            continue;
        };
        return Err(DerpMapError::Region {
            path: path.to_owned(),
            region: *id,
            problem,
        });
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: i32) -> DerpRegion {
        DerpRegion {
            region_id: RegionId(id),
            ..DerpRegion::default()
        }
    }

    fn load(file: &str, replace: bool) -> Result<Vec<i32>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("derp.json");
        fs::write(&path, file).unwrap();
        let relays = Relays {
            embedded: Some(region(900)),
            settings: DerpSettings {
                map_file: Some(path),
                replace,
            },
        };
        let map = relays.load().map_err(|error| error.to_string())?;
        Ok(map.regions.keys().map(|id| id.0).collect())
    }

    const FILE: &str = r#"{"Regions": {"1": {"RegionID": 1, "Nodes": [{"Name": "1a", "RegionID": 1, "HostName": "derp.example.com"}]}}}"#;

    #[test]
    fn a_file_adds_regions_or_replaces_the_embedded_one() {
        assert_eq!(load(FILE, false), Ok(vec![1, 900]));
        assert_eq!(load(FILE, true), Ok(vec![1]));
    }

    #[test]
    fn regions_of_no_use_are_refused() {
        for (from, to, words) in [
            ("\"1\": {", "\"2\": {", "`RegionID`"),
            ("derp.example.com", "", "`HostName`"),
            ("[{", "[], \"X\": [{", "no relay"),
            ("{\"Regions", "[{\"Regions", "not a DERP map"),
        ] {
            let error = load(&FILE.replace(from, to), false).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
