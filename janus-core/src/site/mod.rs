//! The seam: sites of the model, and corrections to what they compute.
//!
//! Every linear map, convolution and embedding table of the checkpoint is a [`Projection`], born at its checkpoint path
//! without a correction. A [`Correction`] is data: factors on the input and on the output, a bias in the place of the
//! base's, and terms that are added. From the same data a site computes, a weight is folded, and several corrections are
//! summed.
//!
//! | file | what |
//! | --- | --- |
//! | `correction` | a correction, its fold into weights, sums of several |
//! | `term` | what a correction adds: low-rank pairs and Kronecker products |
//! | `projection` | a site of a loaded model, and what it computes |
//! | `held` | corrections made ready in slots, and what a mixture of slots makes of a site |
//! | `region` | the factors of a slot side by side in memory |
//! | `routed` | a site in a pass whose rows have routes |

mod correction;
mod held;
mod projection;
mod region;
mod routed;
mod term;

use std::sync::Arc;

use crate::checkpoint::expected_tensors;
use crate::config::JanusConfig;
use crate::pass::Part;

pub use correction::{Base, Correction};
pub(crate) use held::Blend;
pub use projection::{BaseView, Frozen, Intercept, Projection, Projections};
pub(crate) use region::gather;
pub use term::{Kronecker, LowRank, Term};

/// What a site computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteKind {
    /// `y = x·Wᵀ + b`, weight `[output, input]`.
    Linear,
    /// A convolution, weight `[output, input, kernel, kernel]`.
    Conv2d {
        /// Side of the kernel.
        kernel: usize,
        /// Step on both axes.
        stride: usize,
        /// Zeroes added on all four sides.
        padding: usize,
    },
    /// Rows of a table, weight `[input, output]`: `input` rows of width `output`.
    Embedding,
}

/// One map of the checkpoint: where it lives and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Native checkpoint path, without `.weight`.
    pub path: Arc<str>,
    /// Whose token rows its input has.
    pub part: Part,
    /// What it computes.
    pub kind: SiteKind,
    /// Input features, channels or table rows.
    pub input: usize,
    /// Output features or channels, or the table's width.
    pub output: usize,
}

impl Site {
    /// The weight's own shape.
    pub fn weight_shape(&self) -> Vec<usize> {
        match self.kind {
            SiteKind::Linear => vec![self.output, self.input],
            SiteKind::Conv2d { kernel, .. } => vec![self.output, self.input, kernel, kernel],
            SiteKind::Embedding => vec![self.input, self.output],
        }
    }

    /// Rows of the weight: outputs, of a table its rows.
    pub fn weight_rows(&self) -> usize {
        match self.kind {
            SiteKind::Embedding => self.input,
            SiteKind::Linear | SiteKind::Conv2d { .. } => self.output,
        }
    }
}

/// All sites of a model, in the order of its modules.
pub fn sites(config: &JanusConfig) -> Vec<Site> {
    let tensors = expected_tensors(config, true);
    tensors.iter().filter_map(|tensor| site_of(config, &tensor.name, &tensor.shape)).collect()
}

fn site_of(config: &JanusConfig, name: &str, shape: &[usize]) -> Option<Site> {
    let path = name.strip_suffix(".weight")?;
    // Added to the patches or compared with latents as a whole: never looked up by an input.
    if path.ends_with(".position_embedding") || path.ends_with(".quantize.embedding") {
        return None;
    }
    let part = if path.starts_with("model.language_model.") || path == "lm_head" {
        Part::Decoder
    } else if path.starts_with("model.vision_model.") || path.starts_with("model.aligner.") {
        Part::Vision
    } else {
        Part::Generation
    };
    let (kind, input, output) = match *shape {
        [rows, width] if path.ends_with("embed_tokens") || path.ends_with("generation_embeddings") => {
            (SiteKind::Embedding, rows, width)
        }
        [output, input] => (SiteKind::Linear, input, output),
        [output, input, kernel, _] => {
            let (stride, padding) = if path.ends_with("patch_embedding") {
                (config.vision.patch_size, 0)
            } else if path.ends_with("downsample.conv") {
                (2, 0)
            } else {
                (1, kernel / 2)
            };
            (SiteKind::Conv2d { kernel, stride, padding }, input, output)
        }
        _ => return None,
    };
    Some(Site { path: path.into(), part, kind, input, output })
}

#[cfg(test)]
mod tests;
