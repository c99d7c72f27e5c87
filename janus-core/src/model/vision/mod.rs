//! The understanding encoder: SigLIP (`model.vision_model`) without pooling head, and its aligner (`model.aligner`).
//! Source: `modeling_janus.py` of transformers 5.23.0.

mod layer;
mod point;

use std::sync::Arc;

use candle_core::{DType, Tensor};

pub use layer::VisionLayer;
pub use point::VisionPoint;

use super::loader::Loader;
use super::norm::LayerNorm;
use super::projector::Projector;
use super::slice::Slice;
use crate::config::VisionConfig;
use crate::error::{ModelError, Result};
use crate::ops::on_pool;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::site::Projection;

/// Tower and aligner.
#[derive(Debug)]
pub struct Vision {
    ends: Option<Ends>,
    layers: Vec<VisionLayer>,
    is_whole: bool,
    channels: usize,
    image_size: usize,
    dtype: DType,
}

/// What is below and above the blocks.
#[derive(Debug)]
struct Ends {
    patch_embedding: Arc<Projection>,
    position_embedding: Arc<Parameter>,
    post_layernorm: LayerNorm,
    aligner: Projector,
}

impl Ends {
    fn load(loader: &mut Loader<'_>, path: &str, config: &VisionConfig, dtype: DType) -> Result<Self> {
        Ok(Self {
            patch_embedding: loader.projection(&format!("{path}.embeddings.patch_embedding"), true, dtype)?,
            position_embedding: loader.parameter(&format!("{path}.embeddings.position_embedding.weight"), dtype)?,
            post_layernorm: LayerNorm::load(loader, &format!("{path}.post_layernorm"), config.layer_norm_eps, dtype)?,
            aligner: Projector::load(loader, "model.aligner", config.aligner_depth, dtype)?,
        })
    }
}

impl Vision {
    pub(crate) fn load(loader: &mut Loader<'_>, config: &VisionConfig, dtype: DType, slice: &Slice) -> Result<Self> {
        let path = "model.vision_model";
        let ends = if slice.vision_ends { Some(Ends::load(loader, path, config, dtype)?) } else { None };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in (0..config.num_hidden_layers).filter(|i| slice.vision_layers.contains(i)) {
            layers.push(VisionLayer::load(loader, &format!("{path}.encoder.layers.{i}"), config, dtype)?);
        }
        let is_whole = slice.vision_ends && layers.len() == config.num_hidden_layers;
        let (channels, image_size) = (config.num_channels, config.image_size);
        Ok(Self { ends, layers, is_whole, channels, image_size, dtype })
    }

    fn ends(&self) -> Result<&Ends> {
        Ok(self.ends.as_ref().ok_or(ModelError::NotLoaded { part: "ends of the vision tower" })?)
    }

    /// Whether all blocks and what is below and above them are loaded.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Patches plus positions: `pixels: [images, 3, side, side]` in f32, on any device, to `[images, patches, width]`.
    ///
    /// # Errors
    /// Pixels of another size than the model's, or the embeddings were not loaded.
    pub fn embed(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        let Ends { patch_embedding, position_embedding, .. } = self.ends()?;
        let side = self.image_size;
        match pixels.dims() {
            [_, channels, height, width] if (*channels, *height, *width) == (self.channels, side, side) => {}
            other => {
                let expected = format!("[images, {}, {side}, {side}]", self.channels);
                return Err(ModelError::Shape { what: "pixel_values", expected, got: other.to_vec() }.into());
            }
        }
        let pixels = pixels.to_dtype(self.dtype)?.to_device(position_embedding.frozen().device())?;
        let patches = patch_embedding.forward(pass, &pixels)?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        Ok(patches.broadcast_add(&position_embedding.value().to_dtype(patches.dtype())?)?)
    }

    /// The blocks that are loaded, in order.
    pub fn layers(&self) -> &[VisionLayer] {
        &self.layers
    }

    /// The tower with its final norm: pixels as in [`Vision::embed`] to `[images, patches, width]`.
    ///
    /// # Errors
    /// Pixels of another size than the model's.
    pub fn encode(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        self.forward_to(pass, VisionPoint::Tower, pixels)
    }

    /// Tower and aligner: pixels as in [`Vision::embed`] to `[images, patches, hidden]`.
    ///
    /// # Errors
    /// Pixels of another size than the model's.
    pub fn forward(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        self.forward_to(pass, VisionPoint::Aligner, pixels)
    }

    /// From pixels as in [`Vision::embed`] up to a point: `[images, patches, width]`, at the aligner
    /// `[images, patches, hidden]`.
    ///
    /// # Errors
    /// Pixels of another size than the model's.
    pub fn forward_to(&self, pass: &Pass, point: VisionPoint, pixels: &Tensor) -> Result<Tensor> {
        let blocks = match point {
            VisionPoint::Blocks(count) => count,
            VisionPoint::Tower | VisionPoint::Aligner => self.layers.len(),
        };
        on_pool(pixels.device(), || {
            let mut x = self.embed(pass, pixels)?;
            for layer in self.layers.iter().take(blocks) {
                x = layer.forward(pass, &x)?;
            }
            match point {
                VisionPoint::Blocks(_) => Ok(x),
                VisionPoint::Tower => self.ends()?.post_layernorm.forward(pass, &x),
                VisionPoint::Aligner => {
                    let ends = self.ends()?;
                    ends.aligner.forward(pass, &ends.post_layernorm.forward(pass, &x)?)
                }
            }
        })
    }

    /// From what [`Vision::forward_to`] gave at a point to `[images, patches, hidden]`; both together are
    /// [`Vision::forward`].
    ///
    /// # Errors
    /// Another shape than that point's.
    pub fn forward_from(&self, pass: &Pass, point: VisionPoint, hidden: &Tensor) -> Result<Tensor> {
        on_pool(hidden.device(), || {
            let mut x = hidden.clone();
            if let VisionPoint::Blocks(count) = point {
                for layer in self.layers.iter().skip(count) {
                    x = layer.forward(pass, &x)?;
                }
                x = self.ends()?.post_layernorm.forward(pass, &x)?;
            }
            if point != VisionPoint::Aligner {
                x = self.ends()?.aligner.forward(pass, &x)?;
            }
            Ok(x)
        })
    }
}
