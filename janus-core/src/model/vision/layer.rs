//! One block of the vision tower: full attention, then an MLP with exact GELU, each behind a layer norm.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::block::{Block, Extent, Mlp};
use crate::config::VisionConfig;
use crate::error::Result;
use crate::kernel::attention::Heads;
use crate::model::loader::Loader;
use crate::model::norm::LayerNorm;
use crate::ops::{self, AttentionMask};
use crate::pass::Pass;
use crate::site::Projection;

/// `x += projection_layer(attention(norm1(x)))`, `x += fc2(gelu(fc1(norm2(x))))`.
#[derive(Debug)]
pub struct VisionLayer {
    layer_norm1: LayerNorm,
    q_proj: Arc<Projection>,
    k_proj: Arc<Projection>,
    v_proj: Arc<Projection>,
    projection_layer: Arc<Projection>,
    layer_norm2: LayerNorm,
    fc1: Arc<Projection>,
    fc2: Arc<Projection>,
    heads: usize,
}

impl VisionLayer {
    pub(crate) fn load(loader: &mut Loader<'_>, path: &str, config: &VisionConfig, dtype: DType) -> Result<Self> {
        let mut attention = |name: &str, bias| loader.projection(&format!("{path}.self_attn.{name}"), bias, dtype);
        let bias = config.attention_bias;
        let (q_proj, k_proj, v_proj) =
            (attention("q_proj", bias)?, attention("k_proj", bias)?, attention("v_proj", bias)?);
        let projection_layer = attention("projection_layer", true)?;
        Ok(Self {
            layer_norm1: LayerNorm::load(loader, &format!("{path}.layer_norm1"), config.layer_norm_eps, dtype)?,
            layer_norm2: LayerNorm::load(loader, &format!("{path}.layer_norm2"), config.layer_norm_eps, dtype)?,
            fc1: loader.projection(&format!("{path}.mlp.fc1"), true, dtype)?,
            fc2: loader.projection(&format!("{path}.mlp.fc2"), true, dtype)?,
            q_proj,
            k_proj,
            v_proj,
            projection_layer,
            heads: config.num_attention_heads,
        })
    }

    /// `[images, patches, width]` to the same.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        if let Some(block) = self.fused(pass, x)? {
            let (mask, recompute) = (AttentionMask::full(), pass.recompute);
            return Ok(block.forward(x, Extent { rotary: None, mask, kept: None, recompute })?);
        }
        let (images, patches, width) = x.dims3()?;
        let normed = self.layer_norm1.forward(pass, x)?;
        let split = |projection: &Projection| -> Result<Tensor> {
            Ok(projection.forward(pass, &normed)?.reshape((images, patches, self.heads, width / self.heads))?)
        };
        let (q, k, v) = (split(&self.q_proj)?, split(&self.k_proj)?, split(&self.v_proj)?);
        let attended =
            ops::attention_in(&q, &k, &v, &AttentionMask::full(), pass.order)?.reshape((images, patches, width))?;
        let x = (x + self.projection_layer.forward(pass, &attended)?)?;

        let inner = self.fc1.forward(pass, &self.layer_norm2.forward(pass, &x)?)?;
        Ok((&x + self.fc2.forward(pass, &ops::activation::gelu(&inner)?)?)?)
    }

    /// The block in one piece, where nothing in it asks for the operation by operation path.
    fn fused(&self, pass: &Pass, x: &Tensor) -> Result<Option<Block>> {
        let heads = self.heads;
        let norms = [self.layer_norm1.parts(), self.layer_norm2.parts()];
        let attention = [&*self.q_proj, &*self.k_proj, &*self.v_proj, &*self.projection_layer];
        let mlp = Mlp::Gelu([&*self.fc1, &*self.fc2]);
        let head_dim = self.q_proj.site().output / heads;
        Block::of(pass, x, norms, attention, mlp, Heads { heads, kv_heads: heads, head_dim, causal: false })
    }
}
