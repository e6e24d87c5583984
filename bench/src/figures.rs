//! Figures, their bars, and the file that keeps them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tailwharf_testkit::workspace;

/// A limit that a figure must keep: by its value, or by its ratio to what the peer reached in the same run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
    RatioAtMost(f64),
    RatioAtLeast(f64),
}

impl Bar {
    /// A ratio that is missing keeps no bar.
    fn holds(self, value: f64, ratio: Option<f64>) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::RatioAtMost(limit) => ratio.is_some_and(|ratio| ratio <= limit),
            Self::RatioAtLeast(limit) => ratio.is_some_and(|ratio| ratio >= limit),
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) | Self::RatioAtMost(limit) => write!(f, "<={limit}"),
            Self::AtLeast(limit) | Self::RatioAtLeast(limit) => write!(f, ">={limit}"),
        }
    }
}

/// One measured value.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Figure {
    value: f64,
    unit: String,
    peer: Option<f64>,
    ratio: Option<f64>,
    bar: Option<String>,
    holds: Option<bool>,
}

/// All figures, by `area.name`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    figures: BTreeMap<String, Figure>,
}

impl Figures {
    pub(crate) fn load() -> Result<Self> {
        match fs::read_to_string(path()) {
            Ok(text) => serde_json::from_str(&text).with_context(|| path().display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| path().display().to_string()),
        }
    }

    pub(crate) fn store(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::create_dir_all(path().parent().context("no folder")?)?;
        fs::write(path(), text).with_context(|| path().display().to_string())
    }

    /// Forgets what an earlier run measured in `area`.
    pub(crate) fn clear(&mut self, area: &str) {
        let prefix = format!("{area}.");
        self.figures.retain(|name, _| !name.starts_with(&prefix));
    }

    /// Adds a figure; `peer` is what the peer reached in this run.
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &str, peer: Option<f64>, bar: Option<Bar>) {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let ratio = peer.filter(|peer| *peer != 0.0).map(|peer| value / peer);
        let figure = Figure {
            value: round(value),
            unit: unit.to_owned(),
            peer: peer.map(round),
            ratio: ratio.map(round),
            bar: bar.map(|bar| bar.to_string()),
            holds: bar.map(|bar| bar.holds(value, ratio)),
        };
        println!("  {name}: {} {unit}", figure.value);
        self.figures.insert(name.to_owned(), figure);
    }

    /// Prints the table of an area; whether each bar holds.
    pub(crate) fn print(&self, area: &str) -> bool {
        let prefix = format!("{area}.");
        println!(
            "\n{:<46} {:>10} {:<8} {:>10} {:>8} {:>10}  holds",
            "figure", "value", "unit", "peer", "ratio", "bar"
        );
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| value.to_string());
        for (name, figure) in self.figures.iter().filter(|(name, _)| name.starts_with(&prefix)) {
            println!(
                "{name:<46} {:>10} {:<8} {:>10} {:>8} {:>10}  {}",
                figure.value,
                figure.unit,
                number(figure.peer),
                number(figure.ratio),
                figure.bar.as_deref().unwrap_or("–"),
                figure.holds.map_or("–", |holds| if holds { "yes" } else { "NO" })
            );
        }
        self.figures
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix))
            .all(|(_, figure)| figure.holds != Some(false))
    }
}

fn path() -> PathBuf {
    workspace::root().join("bench/results/latest.json")
}
