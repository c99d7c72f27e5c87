//! One decoder block: grouped-query attention with rotary positions, then the gated MLP, each behind a norm.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::cache::LayerCache;
use crate::block::{Block, Extent, Mlp};
use crate::config::TextConfig;
use crate::error::Result;
use crate::kernel::attention::Heads;
use crate::model::loader::Loader;
use crate::model::norm::RmsNorm;
use crate::ops::rotary::Rotary;
use crate::ops::{self, AttentionMask};
use crate::pass::{Part, Pass};
use crate::site::Projection;

/// `h = x + o(attention(norm(x)))`, `y = h + down(silu(gate(norm(h))) · up(norm(h)))`.
#[derive(Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    q_proj: Arc<Projection>,
    k_proj: Arc<Projection>,
    v_proj: Arc<Projection>,
    o_proj: Arc<Projection>,
    post_attention_layernorm: RmsNorm,
    gate_proj: Arc<Projection>,
    up_proj: Arc<Projection>,
    down_proj: Arc<Projection>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl DecoderLayer {
    pub(crate) fn load(loader: &mut Loader<'_>, path: &str, config: &TextConfig, dtype: DType) -> Result<Self> {
        let mut projection = |name: &str| loader.projection(&format!("{path}.{name}"), false, dtype);
        let (q_proj, k_proj) = (projection("self_attn.q_proj")?, projection("self_attn.k_proj")?);
        let (v_proj, o_proj) = (projection("self_attn.v_proj")?, projection("self_attn.o_proj")?);
        let (gate_proj, up_proj) = (projection("mlp.gate_proj")?, projection("mlp.up_proj")?);
        let down_proj = projection("mlp.down_proj")?;
        let mut norm = |name: &str| RmsNorm::load(loader, &format!("{path}.{name}"), config.rms_norm_eps, dtype);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            gate_proj,
            up_proj,
            down_proj,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        })
    }

    /// `x: [batch, sequence, hidden]` to the same. With a cache the keys are all tokens so far.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(
        &self,
        pass: &Pass,
        x: &Tensor,
        rotary: &Rotary,
        mask: &AttentionMask,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        self.forward_kept(pass, x, rotary, mask, cache, None)
    }

    /// As [`DecoderLayer::forward`]; with `kept`, only these tokens (rows of `batch · sequence`) leave the block, as
    /// `[kept, hidden]`, and nothing after the attention is computed for the others.
    pub(super) fn forward_kept(
        &self,
        pass: &Pass,
        x: &Tensor,
        rotary: &Rotary,
        mask: &AttentionMask,
        cache: Option<&mut LayerCache>,
        kept: Option<Arc<[u32]>>,
    ) -> Result<Tensor> {
        let held = cache.as_ref().map_or(0, |cache| cache.len());
        if let Some(block) = self.fused(pass, x, mask, held)? {
            let (rotary, mask) = (Some(rotary.clone()), mask.clone());
            let extent = Extent { rotary, mask, kept, recompute: pass.recompute };
            return Ok(match cache {
                Some(cache) => block.forward_cached(x, &extent, cache)?,
                None => block.forward(x, extent)?,
            });
        }
        let (batch, sequence, _) = x.dims3()?;
        let normed = self.input_layernorm.forward(x)?;
        let split = |projection: &Projection, heads: usize| -> Result<Tensor> {
            Ok(projection.forward(pass, &normed)?.reshape((batch, sequence, heads, self.head_dim))?)
        };
        let q = rotary.apply(&split(&self.q_proj, self.heads)?)?;
        let k = rotary.apply(&split(&self.k_proj, self.kv_heads)?)?;
        let v = split(&self.v_proj, self.kv_heads)?;
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v)?,
            None => (k, v),
        };
        let attended = ops::attention_in(&q, &k, &v, mask, pass.order)?.reshape((batch, sequence, ()))?;
        let kept_pass;
        let (x, attended, pass) = match &kept {
            Some(kept) => {
                let some = |t: &Tensor| ops::select_rows(&t.flatten_to(1)?, kept);
                kept_pass = pass.picked(Part::Decoder, kept.iter().map(|token| *token as usize))?;
                (some(x)?, some(&attended)?, &kept_pass)
            }
            None => (x.clone(), attended, pass),
        };
        self.behind_attention(pass, &x, &attended)
    }

    /// What follows the attention: `x` and `attended` of one shape.
    fn behind_attention(&self, pass: &Pass, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let h = (x + self.o_proj.forward(pass, attended)?)?;
        let normed = self.post_attention_layernorm.forward(&h)?;
        let gate = self.gate_proj.forward(pass, &normed)?;
        let up = self.up_proj.forward(pass, &normed)?;
        let inner = ops::activation::silu_gate(&gate, &up)?;
        Ok((&h + self.down_proj.forward(pass, &inner)?)?)
    }

    /// One token of each row, `x: [rows, 1, hidden]`, each of which continues a cache of its own.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(super) fn forward_each(
        &self,
        pass: &Pass,
        x: &Tensor,
        rotary: &Rotary,
        caches: Vec<&mut LayerCache>,
    ) -> Result<Tensor> {
        let mask = AttentionMask::causal();
        if let Some(block) = self.fused(pass, x, &mask, 0)? {
            return Ok(block.forward_each(x, rotary, caches)?);
        }
        let normed = self.input_layernorm.forward(x)?;
        let split = |projection: &Projection, heads: usize| -> Result<Tensor> {
            Ok(projection.forward(pass, &normed)?.reshape(((), 1, heads, self.head_dim))?)
        };
        let q = rotary.apply(&split(&self.q_proj, self.heads)?)?;
        let k = rotary.apply(&split(&self.k_proj, self.kv_heads)?)?;
        let v = split(&self.v_proj, self.kv_heads)?;
        let mut attended = Vec::with_capacity(caches.len());
        for (row, cache) in caches.into_iter().enumerate() {
            let own = |all: &Tensor| all.narrow(0, row, 1);
            let (k, v) = cache.append(&own(&k)?, &own(&v)?)?;
            attended.push(ops::attention_in(&own(&q)?, &k, &v, &mask, pass.order)?);
        }
        let attended = Tensor::cat(&attended, 0)?.reshape(((), 1, self.heads * self.head_dim))?;
        self.behind_attention(pass, x, &attended)
    }

    /// The block in one piece, where nothing in it asks for the operation by operation path. `held` tokens of each row
    /// are in the cache.
    fn fused(&self, pass: &Pass, x: &Tensor, mask: &AttentionMask, held: usize) -> Result<Option<Block>> {
        let (batch, sequence, _) = x.dims3()?;
        if mask.spans(batch, sequence, held + sequence).is_none() {
            return Ok(None);
        }
        let Self { heads, kv_heads, head_dim, .. } = *self;
        let norms = [self.input_layernorm.parts(), self.post_attention_layernorm.parts()];
        let attention = [&*self.q_proj, &*self.k_proj, &*self.v_proj, &*self.o_proj];
        let mlp = Mlp::Gated([&*self.gate_proj, &*self.up_proj, &*self.down_proj]);
        Block::of(pass, x, norms, attention, mlp, Heads { heads, kv_heads, head_dim, causal: mask.causal })
    }
}
