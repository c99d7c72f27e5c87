//! The modality-independent feature space: low, mid and high features, and the loss that aligns the middle of both paths.
//!
//! Low features are those of a third of the vision tower's blocks, or the embeddings of image codes; mid features are what the
//! aligners give, the one space that both paths share; high features are what each path's own head reads. The loss is the
//! symmetric InfoNCE ([`contrast`](crate::heads::contrast)) between the mid features of pictures through the understanding
//! path and those of their image codes, mean-pooled and brought to length one. Its temperature is learnt beside the adapter
//! and goes with the training: nothing of the loss stays in the weights.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::pass::Pass;
use janus_core::{Janus, ModelError, Parts};

use crate::base::Base;
use crate::cache::{Image, codes, features};
use crate::error::Result;
use crate::heads::contrast::{Contrast, FIRST_TEMPERATURE, info_nce, unit};
use crate::tasks::{Sample, within};

/// What the temperature's logarithm is called in a checkpoint's extras.
pub const TEMPERATURE: &str = "mifs.log_temperature";

/// Native paths at or below the mid features, ending in `.` or whole.
const PATHS: [&str; 5] = [
    "model.vision_model.",
    "model.aligner.",
    "model.generation_embeddings",
    "model.generation_embeddings.",
    "model.generation_aligner.",
];

/// Parts of the model that the loss needs.
pub const PARTS: Parts = Parts { text_head: false, vision: true, generation: true, image_tokenizer: false };

/// Whether a site or parameter of this native path or name lies at or below the mid features.
pub fn reaches(path: &str) -> bool {
    within(path, &PATHS)
}

/// The temperature's logarithm at first, `[1]`.
///
/// # Errors
/// The tensor engine's.
pub fn first_temperature() -> candle_core::Result<Tensor> {
    Tensor::new(&[FIRST_TEMPERATURE.ln() as f32], &Device::Cpu)
}

/// Different pictures with their codes, at least two.
#[derive(Debug, Clone)]
pub struct Aligned {
    images: Vec<Image>,
    codes: Vec<Arc<[u32]>>,
}

impl Aligned {
    /// The different pictures of some rows; `None` of fewer than two.
    ///
    /// # Errors
    /// Pictures that cannot be decoded.
    pub fn of(base: &Base, model: &Janus, samples: &[Sample]) -> Result<Option<Self>> {
        let mut images: Vec<Image> = Vec::new();
        for image in samples.iter().flat_map(Sample::images) {
            if !images.iter().any(|other| other.is(image)) {
                images.push(image.clone());
            }
        }
        if images.len() < 2 {
            return Ok(None);
        }
        let codes = images.iter().map(|image| codes(base, model.device(), image)).collect::<Result<_>>()?;
        Ok(Some(Self { images, codes }))
    }

    /// How many pictures.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// The loss, summed over the pictures; `log_temperature: [1]`.
    ///
    /// # Errors
    /// A model without one of the paths, or pictures that do not fit it.
    pub fn loss(&self, model: &Janus, pass: &Pass, log_temperature: &Tensor) -> Result<Contrast> {
        let seen = features(model, pass, &self.images)?.ok_or(ModelError::NotLoaded { part: "pictures to align" })?;
        let codes: Vec<u32> = self.codes.iter().flat_map(|codes| codes.iter().copied()).collect();
        let drawn = model.generation()?.embed(pass, &codes, self.codes.len())?;
        Ok(info_nce(&pooled(&seen)?, &pooled(&drawn)?, log_temperature, |_, _| false)?)
    }
}

/// The mean over places, of length one: `[pictures, places, hidden]` to `[pictures, hidden]` in f32.
fn pooled(features: &Tensor) -> candle_core::Result<Tensor> {
    unit(&features.to_dtype(DType::F32)?.mean(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_up_to_the_mid_features_are_reached() {
        for path in [
            "model.vision_model.encoder.layers.0.mlp.fc1",
            "model.aligner.fc1.weight",
            "model.generation_embeddings.weight",
            "model.generation_embeddings",
            "model.generation_aligner.hidden_layers.0",
        ] {
            assert!(reaches(path), "{path}");
        }
        for path in ["model.language_model.layers.0.mlp.up_proj", "model.generation_head.vision_head", "lm_head.weight"]
        {
            assert!(!reaches(path), "{path}");
        }
    }
}
