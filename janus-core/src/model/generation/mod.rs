//! The generation side of the decoder: image codes in (`model.generation_embeddings`, `model.generation_aligner`) and
//! logits over codes out (`model.generation_head`). The embedding table is not the codebook of the image tokenizer.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::loader::Loader;
use super::projector::Projector;
use crate::config::VqConfig;
use crate::error::{ModelError, Result};
use crate::ops::{self, HeadLoss};
use crate::pass::Pass;
use crate::site::Projection;

/// Codes in, logits over codes out.
#[derive(Debug)]
pub struct Generation {
    generation_embeddings: Arc<Projection>,
    generation_aligner: Projector,
    proj_out: Arc<Projection>,
    vision_head: Arc<Projection>,
    codes: usize,
}

impl Generation {
    pub(crate) fn load(loader: &mut Loader<'_>, config: &VqConfig, dtype: DType) -> Result<Self> {
        Ok(Self {
            generation_embeddings: loader.projection("model.generation_embeddings", false, dtype)?,
            generation_aligner: Projector::load(loader, "model.generation_aligner", config.aligner_depth, dtype)?,
            proj_out: loader.projection("model.generation_head.proj_out", true, dtype)?,
            vision_head: loader.projection("model.generation_head.vision_head", true, dtype)?,
            codes: config.num_embeddings,
        })
    }

    /// Image codes as the decoder reads them, `batch` rows of equal length: `[batch, codes, hidden]`.
    ///
    /// # Errors
    /// A code beyond the table.
    pub fn embed(&self, pass: &Pass, codes: &[u32], batch: usize) -> Result<Tensor> {
        self.generation_aligner.forward(pass, &self.embed_codes(pass, codes, batch)?)
    }

    /// Image codes before the aligner, `batch` rows of equal length: `[batch, codes, width]`.
    ///
    /// # Errors
    /// A code beyond the table.
    pub fn embed_codes(&self, pass: &Pass, codes: &[u32], batch: usize) -> Result<Tensor> {
        let length = codes.len() / batch.max(1);
        if let Some(place) = codes.iter().position(|code| *code as usize >= self.codes) {
            return Err(ModelError::TokenOutOfRange {
                id: i64::from(codes[place]),
                row: place / length,
                position: place % length,
                vocabulary: self.codes,
            }
            .into());
        }
        let codes = Tensor::from_slice(codes, (batch, length), &candle_core::Device::Cpu)?;
        self.generation_embeddings.forward(pass, &codes)
    }

    /// Logits over codes of normed hidden states: `[.., hidden]` to `[.., codes]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn logits(&self, pass: &Pass, hidden: &Tensor) -> Result<Tensor> {
        self.vision_head.forward(pass, &self.inner(pass, hidden)?)
    }

    /// Summed loss of normed hidden states `[rows, hidden]` against one code each, without holding all logits where the
    /// head's last map is frozen.
    ///
    /// # Errors
    /// Shapes that do not fit, or a label that is no code.
    pub fn loss(&self, pass: &Pass, hidden: &Tensor, labels: &[u32]) -> Result<HeadLoss> {
        self.vision_head.loss(pass, &self.inner(pass, hidden)?, labels)
    }

    /// What the head's last map reads.
    fn inner(&self, pass: &Pass, hidden: &Tensor) -> Result<Tensor> {
        Ok(ops::activation::gelu(&self.proj_out.forward(pass, hidden)?)?)
    }
}
