//! The frozen Janus: its parts, opened from a checkpoint.
//!
//! | part | checkpoint prefix | room |
//! | --- | --- | --- |
//! | decoder and text head | `model.language_model`, `lm_head` | [`decoder`] |
//! | vision tower and aligner | `model.vision_model`, `model.aligner` | [`vision`] |
//! | generation embeddings, aligner, head | `model.generation_*` | [`generation`] |
//! | image tokenizer | `model.vqmodel` | [`vq`] |

pub mod decoder;
pub mod generation;
mod loader;
mod norm;
mod projector;
mod slice;
mod slots;
pub mod vision;
pub mod vq;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::WeightSource;
use crate::config::JanusConfig;
use crate::error::{ModelError, Result};
use crate::ops;
use crate::parameter::Parameters;
use crate::pass::Pass;
use crate::site::Projections;

pub use self::loader::held_dtype;
pub use self::slice::Slice;
pub use self::slots::SlotContents;

use self::decoder::Decoder;
use self::generation::Generation;
use self::loader::Loader;
use self::vision::Vision;
use self::vq::ImageTokenizer;

/// Which parts to load; what a task does not use costs no memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// `lm_head`.
    pub text_head: bool,
    /// Vision tower and aligner.
    pub vision: bool,
    /// Generation embeddings, aligner and head.
    pub generation: bool,
    /// The image tokenizer.
    pub image_tokenizer: bool,
}

impl Parts {
    /// Everything.
    pub fn all() -> Self {
        Self { text_head: true, vision: true, generation: true, image_tokenizer: true }
    }

    /// What either asks for.
    pub fn union(self, other: Self) -> Self {
        Self {
            text_head: self.text_head || other.text_head,
            vision: self.vision || other.vision,
            generation: self.generation || other.generation,
            image_tokenizer: self.image_tokenizer || other.image_tokenizer,
        }
    }
}

/// A frozen Janus with a slot at every site.
#[derive(Debug)]
pub struct Janus {
    config: JanusConfig,
    dtype: DType,
    device: Device,
    tied: bool,
    parameters: Parameters,
    projections: Projections,
    decoder: Decoder,
    vision: Option<Vision>,
    generation: Option<Generation>,
    image_tokenizer: Option<ImageTokenizer>,
}

impl Janus {
    /// Loads the parts of a model from a checkpoint or another source of weights, computing in `dtype` (f32 or bf16; the
    /// image tokenizer always in f32). `progress` is told the bytes of each tensor as it arrives.
    ///
    /// # Errors
    /// A file that cannot be read, or a type that is not computed in.
    pub fn open(
        weights: &dyn WeightSource,
        dtype: DType,
        device: &Device,
        parts: Parts,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        Self::open_slice(weights, dtype, device, parts, &Slice::whole(), progress)
    }

    /// As [`Janus::open`], with no more than a slice of decoder and vision tower.
    ///
    /// # Errors
    /// As [`Janus::open`].
    pub fn open_slice(
        weights: &dyn WeightSource,
        dtype: DType,
        device: &Device,
        parts: Parts,
        slice: &Slice,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        if !ops::linear::is_supported(dtype) {
            return Err(ModelError::ComputeType { dtype }.into());
        }
        let config = weights.config().clone();
        let mut loader = Loader::new(weights, device, progress);
        let decoder = Decoder::load(&mut loader, &config.text, dtype, parts.text_head, slice)?;
        let vision = if parts.vision { Some(Vision::load(&mut loader, &config.vision, dtype, slice)?) } else { None };
        let generation = if parts.generation { Some(Generation::load(&mut loader, &config.vq, dtype)?) } else { None };
        let image_tokenizer =
            if parts.image_tokenizer { Some(ImageTokenizer::load(&mut loader, &config.vq)?) } else { None };
        let Loader { parameters, projections, .. } = loader;
        let tied = weights.is_tied();
        let device = device.clone();
        Ok(Self { config, dtype, device, tied, parameters, projections, decoder, vision, generation, image_tokenizer })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &JanusConfig {
        &self.config
    }

    /// The type the frozen weights are computed in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the text head is the embedding table.
    pub fn is_tied(&self) -> bool {
        self.tied
    }

    /// The source of every loaded parameter.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Every loaded site.
    pub fn projections(&self) -> &Projections {
        &self.projections
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The vision tower and aligner.
    ///
    /// # Errors
    /// It was not loaded.
    pub fn vision(&self) -> Result<&Vision> {
        Ok(self.vision.as_ref().ok_or(ModelError::NotLoaded { part: "vision tower" })?)
    }

    /// The generation embeddings, aligner and head.
    ///
    /// # Errors
    /// They were not loaded.
    pub fn generation(&self) -> Result<&Generation> {
        Ok(self.generation.as_ref().ok_or(ModelError::NotLoaded { part: "generation side" })?)
    }

    /// The image tokenizer.
    ///
    /// # Errors
    /// It was not loaded.
    pub fn image_tokenizer(&self) -> Result<&ImageTokenizer> {
        Ok(self.image_tokenizer.as_ref().ok_or(ModelError::NotLoaded { part: "image tokenizer" })?)
    }

    /// Codes of one image: the length of the generation loop.
    pub fn codes_per_image(&self) -> usize {
        let grid = self.config.vision.image_size / self.config.vq.down_factor();
        grid * grid
    }

    /// Embeddings of prompts whose `placeholder` ids are overwritten, in reading order over the whole batch, by the rows
    /// of `features: [images, patches, hidden]`. `ids`: `batch` rows of equal length; returns `[batch, sequence, hidden]`.
    ///
    /// # Errors
    /// Another number of placeholders than of feature rows, or an id beyond the vocabulary.
    pub fn embed_with_images(
        &self,
        pass: &Pass,
        ids: &[u32],
        batch: usize,
        placeholder: u32,
        features: Option<&Tensor>,
    ) -> Result<Tensor> {
        let text = self.decoder.embed(pass, ids, batch)?;
        let placeholders = ids.iter().filter(|id| **id == placeholder).count();
        let rows = match features {
            Some(features) => features.dim(0)? * features.dim(1)?,
            None => 0,
        };
        if placeholders != rows {
            return Err(ModelError::PlaceholderCount { placeholders, features: rows }.into());
        }
        let Some(features) = features.filter(|_| rows > 0) else { return Ok(text) };
        let (_, sequence, hidden) = text.dims3()?;
        let table = Tensor::cat(&[text.reshape(((), hidden))?, features.reshape(((), hidden))?], 0)?;
        let mut next = ids.len() as u32;
        let mut order = Vec::with_capacity(ids.len());
        for (place, id) in ids.iter().enumerate() {
            if *id == placeholder {
                order.push(next);
                next += 1;
            } else {
                order.push(place as u32);
            }
        }
        Ok(ops::select_rows(&table, &order)?.reshape((batch, sequence, hidden))?)
    }
}
