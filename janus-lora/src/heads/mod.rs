//! Task heads: small networks on the features that the base gives, trained with the adapter and kept beside it, never merged.
//!
//! | file | what |
//! | --- | --- |
//! | `classify` | one of some labels for a picture |
//!
//! A head has the name of the table that it was trained on. Its values are in `janus_extras.safetensors` as
//! `head.<name>.<value>`; what it is for is said there in the metadata, as JSON.

pub mod classify;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use janus_core::config::JanusConfig;
use janus_core::noise;
use serde::{Deserialize, Serialize};

use crate::drawn::drawn;

/// How every name in a file begins.
pub const PREFIX: &str = "head.";

/// What a head is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "lowercase", deny_unknown_fields)]
pub enum HeadKind {
    /// A label for a picture.
    Classify {
        /// The labels, in the order of the head's rows: rising, each once.
        labels: Vec<String>,
    },
}

impl HeadKind {
    /// Its task's name.
    pub fn task(&self) -> &'static str {
        match self {
            HeadKind::Classify { .. } => "classify",
        }
    }

    /// What is wrong with it, as a file may tell it.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self) -> std::result::Result<(), String> {
        let HeadKind::Classify { labels } = self;
        if labels.len() < 2 {
            return Err(format!("it has {} labels, expected at least 2", labels.len()));
        }
        match labels.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(format!("its labels do not rise: `{}` stands before `{}`", pair[0], pair[1])),
            None => Ok(()),
        }
    }

    /// Values by their own names, with their shapes.
    fn shapes(&self, config: &JanusConfig) -> Vec<(&'static str, Vec<usize>)> {
        match self {
            HeadKind::Classify { labels } => classify::shapes(config, labels.len()),
        }
    }
}

/// A head: what it is for, and its values by the names they have in a file; f32.
#[derive(Debug, Clone)]
pub struct Head {
    /// What it is for.
    pub kind: HeadKind,
    values: BTreeMap<Arc<str>, Tensor>,
    name: Arc<str>,
}

impl Head {
    /// First values, a function of `seed` and the values' names.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn new(config: &JanusConfig, name: &str, kind: HeadKind, seed: u64) -> Result<Self> {
        let mut values = BTreeMap::new();
        for (full, shape) in shapes(config, name, &kind) {
            let own = &full[PREFIX.len() + name.len() + 1..];
            let deviation = match kind {
                HeadKind::Classify { .. } => classify::first_deviation(own),
            };
            let value = drawn(&shape, seed, &full, |key, index| deviation * noise::normal(key, index))?;
            values.insert(full.into(), value);
        }
        Ok(Self { kind, values, name: name.into() })
    }

    /// From values by name, which are those of [`shapes`] in these shapes.
    pub fn of(name: &str, kind: HeadKind, values: BTreeMap<Arc<str>, Tensor>) -> Self {
        Self { kind, values, name: name.into() }
    }

    /// All values by name.
    pub fn values(&self) -> &BTreeMap<Arc<str>, Tensor> {
        &self.values
    }

    /// The same with other values, by name.
    pub fn with_values(&self, value: impl Fn(&str) -> Tensor) -> Self {
        let values = self.values.keys().map(|name| (name.clone(), value(name))).collect();
        Self { values, ..self.clone() }
    }

    /// On a device.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let values = self.values.iter().map(|(name, value)| Ok((name.clone(), value.to_device(device)?)));
        Ok(Self { values: values.collect::<Result<_>>()?, ..self.clone() })
    }

    /// A value by its own name.
    fn value(&self, own: &str) -> &Tensor {
        let name = full_name(&self.name, own);
        self.values.get(name.as_str()).expect("every value of a head is there")
    }
}

/// Heads by name.
pub type Heads = BTreeMap<Arc<str>, Head>;

fn full_name(head: &str, own: &str) -> String {
    format!("{PREFIX}{head}.{own}")
}

/// Names and shapes of all values of a head.
pub fn shapes(config: &JanusConfig, name: &str, kind: &HeadKind) -> Vec<(String, Vec<usize>)> {
    kind.shapes(config).into_iter().map(|(own, shape)| (full_name(name, own), shape)).collect()
}

/// Values of a head.
pub fn parameter_count(config: &JanusConfig, kind: &HeadKind) -> u64 {
    kind.shapes(config).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
}

/// In the type that heads compute in.
fn wide(features: &Tensor) -> Result<Tensor> {
    features.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests;
