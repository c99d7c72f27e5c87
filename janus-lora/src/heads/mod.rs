//! Task heads: small networks on the features that the base gives, trained with the adapter and kept beside it, never merged.
//!
//! | file | what |
//! | --- | --- |
//! | `classify` | one of some labels for a picture |
//! | `locate` | boxes around things |
//! | `segment` | a mask of what is looked for |
//! | `retrieve` | pictures and captions as vectors that lie close where they belong together |
//! | `contrast` | the loss of such vectors |
//! | `layers` | what heads are built of |
//! | `answer` | what heads tell of a picture |
//! | `target` | what is true of a picture |
//!
//! What a kind of head is — its values, what it computes, its loss, what that tells, in words and over the picture, and its figures —
//! stands in its file, behind [`TaskHead`].
//!
//! A head has the name of the table that it was trained on. Its values are in `janus_extras.safetensors` as
//! `head.<name>.<value>`; what it is for is said there in the metadata, as JSON.

mod answer;
mod classify;
pub mod contrast;
mod layers;
mod locate;
mod retrieve;
pub mod segment;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use image::RgbImage;
use janus_core::config::JanusConfig;
use janus_core::noise;
use janus_core::processing::Frame;
use serde::{Deserialize, Serialize};

use crate::drawn::drawn;

pub use answer::{Description, Features, HeadAnswer, HeadSample};
pub use target::{Mask, Target};

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
    /// Boxes around things.
    Locate {
        /// The labels of boxes, as those of pictures.
        labels: Vec<String>,
    },
    /// A mask of what is looked for.
    Segment {},
    /// Vectors of pictures and captions.
    Retrieve {},
}

/// What a kind of head is.
pub(crate) trait TaskHead {
    /// Its task's name.
    fn task(&self) -> &'static str;

    /// Labels that it has at least.
    fn least_labels(&self) -> usize {
        0
    }

    /// Its values.
    fn values(&self, config: &JanusConfig) -> Vec<Value>;

    /// Values in f32 that it makes of one picture's features, with their gradients, beside what all heads make of mid features.
    fn activation_values(&self, _config: &JanusConfig) -> usize {
        0
    }

    /// Whether its loss holds pairs against each other, of which there are to be two in a batch.
    fn is_contrastive(&self) -> bool {
        false
    }

    /// Whether it reads low features, too.
    fn reads_low(&self) -> bool {
        false
    }

    /// What it computes of pictures: tensors in f32 whose first dimension counts the pictures. `captions` are the normed hidden
    /// states of the last token of each picture's caption, or of all captions of one picture, `[captions, hidden]`, for heads that
    /// read captions.
    fn output(
        &self,
        head: &Head,
        config: &JanusConfig,
        features: &Features,
        captions: Option<&Tensor>,
    ) -> Result<Vec<Tensor>>;

    /// The loss of some pictures' outputs, summed over them, and how many were right, a scalar in u32, for heads that count it.
    fn loss(
        &self,
        head: &Head,
        config: &JanusConfig,
        output: &[Tensor],
        targets: &[Target],
        frames: &[Frame],
    ) -> Result<(Tensor, Option<Tensor>)>;

    /// What the outputs of one picture tell.
    fn answer(&self, config: &JanusConfig, output: &[Tensor], frame: &Frame) -> Result<HeadAnswer>;

    /// What is true of a picture, as JSON.
    fn truth(&self, target: &Target) -> serde_json::Value;

    /// An answer in words and as JSON; `captions` are those that were held against the picture.
    fn description(&self, answer: &HeadAnswer, captions: &[String]) -> Description;

    /// An answer drawn over its picture; `None` of those that are words.
    ///
    /// # Errors
    /// Why it cannot be drawn.
    fn overlay(&self, _answer: &HeadAnswer, _picture: &RgbImage) -> std::result::Result<Option<RgbImage>, String> {
        Ok(None)
    }

    /// Whether [`TaskHead::overlay`] draws.
    fn draws(&self) -> bool {
        false
    }

    /// An answer beside what is true, for people to look at; `None` where a single picture shows nothing.
    ///
    /// # Errors
    /// Why it cannot be drawn.
    fn sample(
        &self,
        answer: HeadAnswer,
        target: &Target,
        picture: &RgbImage,
    ) -> std::result::Result<Option<HeadSample>, String>;

    /// Figures of a table's answers.
    fn figures(&self) -> Box<dyn Figures + '_>;
}

/// Figures of a table's answers, row by row.
pub(crate) trait Figures {
    /// Takes one row's: what is true, what the head computed, and what that told.
    ///
    /// # Errors
    /// The tensor engine's.
    fn add(&mut self, target: &Target, output: &[Tensor], answer: &HeadAnswer) -> Result<()>;

    /// All figures; `loss_sum` is over all rows.
    ///
    /// # Errors
    /// The tensor engine's.
    fn metrics(self: Box<Self>, loss_sum: f64) -> Result<serde_json::Value>;
}

impl HeadKind {
    /// What it is.
    pub(crate) fn form(&self) -> Box<dyn TaskHead + '_> {
        match self {
            HeadKind::Classify { labels } => Box::new(classify::Classify { labels }),
            HeadKind::Locate { labels } => Box::new(locate::Locate { labels }),
            HeadKind::Segment {} => Box::new(segment::Segment),
            HeadKind::Retrieve {} => Box::new(retrieve::Retrieve),
        }
    }

    /// Its task's name.
    pub fn task(&self) -> &'static str {
        self.form().task()
    }

    /// What it tells apart, none where that is nothing named.
    pub fn labels(&self) -> &[String] {
        match self {
            HeadKind::Classify { labels } | HeadKind::Locate { labels } => labels,
            HeadKind::Segment {} | HeadKind::Retrieve {} => &[],
        }
    }

    /// What is wrong with it, as a file may tell it.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self) -> std::result::Result<(), String> {
        let (labels, least) = (self.labels(), self.form().least_labels());
        if labels.len() < least {
            return Err(format!("it has {} labels, expected at least {least}", labels.len()));
        }
        match labels.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(format!("its labels do not rise: `{}` stands before `{}`", pair[0], pair[1])),
            None => Ok(()),
        }
    }
}

/// A value of a head before training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Value {
    /// Its own name.
    name: String,
    shape: Vec<usize>,
    first: First,
}

/// First values.
#[derive(Debug, Clone, Copy, PartialEq)]
enum First {
    /// Normal, of this deviation.
    Normal(f64),
    /// All alike.
    Constant(f64),
}

impl Value {
    fn new(name: &str, shape: &[usize], first: First) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec(), first }
    }

    /// Weight and bias of a map that a rectifier follows (He et al., arXiv:1502.01852).
    fn affine(name: &str, input: usize, output: usize) -> Vec<Self> {
        let deviation = (2.0 / input as f64).sqrt();
        let weight = Self::new(&format!("{name}.weight"), &[output, input], First::Normal(deviation));
        vec![weight, Self::new(&format!("{name}.bias"), &[output], First::Constant(0.0))]
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
        for Value { name: own, shape, first } in kind.form().values(config) {
            let full = full_name(name, &own);
            let value = drawn(&shape, seed, &full, |key, index| match first {
                First::Normal(deviation) => deviation * noise::normal(key, index),
                First::Constant(value) => value,
            })?;
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

    /// What it computes of pictures; see [`TaskHead::output`].
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn output(
        &self,
        config: &JanusConfig,
        features: &Features,
        captions: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        self.kind.form().output(self, config, features, captions)
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

    /// The last dimension mapped by `name.weight` and `name.bias`.
    fn affine(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        layers::affine(x, self.value(&format!("{name}.weight")), self.value(&format!("{name}.bias")))
    }
}

/// Values that normalised features come to in a step, for each of theirs.
const NORMALISED: usize = 14;

/// Heads by name.
pub type Heads = BTreeMap<Arc<str>, Head>;

fn full_name(head: &str, own: &str) -> String {
    format!("{PREFIX}{head}.{own}")
}

/// Names and shapes of all values of a head.
pub fn shapes(config: &JanusConfig, name: &str, kind: &HeadKind) -> Vec<(String, Vec<usize>)> {
    kind.form().values(config).into_iter().map(|value| (full_name(name, &value.name), value.shape)).collect()
}

/// Values of a head.
pub fn parameter_count(config: &JanusConfig, kind: &HeadKind) -> u64 {
    kind.form().values(config).iter().map(|value| value.shape.iter().product::<usize>() as u64).sum()
}

/// Values in f32 that a head makes of one picture's features, with their gradients: what it holds in a step.
pub fn activation_values(config: &JanusConfig, kind: &HeadKind) -> u64 {
    let (vision, patches) = (&config.vision, config.vision.num_patches());
    // Four steps, each with its gradient, and six more on the way between them.
    let mid = NORMALISED * patches * vision.projection_dim;
    let more = kind.form().activation_values(config);
    (mid + more) as u64
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
