//! The blocks of the image tokenizer's encoder and decoder. All tensors are `[images, channels, height, width]`, in
//! memory with the channels side by side.

use std::sync::Arc;

use candle_core::Tensor;

use super::DTYPE;
use crate::error::Result;
use crate::model::loader::Loader;
use crate::ops::conv2d::Around;
use crate::ops::residual::{NormedConvolution, Residual};
use crate::ops::{self, AttentionMask};
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::site::Projection;

/// Groups of every group norm here.
const GROUPS: usize = 32;
/// Added to their variance.
const EPS: f64 = 1e-6;

#[derive(Debug)]
pub(super) struct GroupNorm {
    weight: Arc<Parameter>,
    bias: Arc<Parameter>,
}

impl GroupNorm {
    pub(super) fn load(loader: &mut Loader<'_>, path: &str) -> Result<Self> {
        let weight = loader.parameter(&format!("{path}.weight"), DTYPE)?;
        Ok(Self { weight, bias: loader.parameter(&format!("{path}.bias"), DTYPE)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.value(), self.bias.value());
        Ok(ops::group_norm(x, ops::GroupNorm { weight: &weight, bias: &bias, groups: GROUPS, eps: EPS })?)
    }

    /// The norm, `x · sigmoid(x)`, a convolution, and the sum with `add`.
    pub(super) fn forward_into(
        &self,
        pass: &Pass,
        conv: &Projection,
        x: &Tensor,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (weight, bias) = (self.weight.value(), self.bias.value());
        let norm = ops::GroupNorm { weight: &weight, bias: &bias, groups: GROUPS, eps: EPS };
        conv.forward_within(pass, x, &Around { norm: Some(norm), doubled: false, add })
    }
}

/// Two convolutions around a shortcut.
#[derive(Debug)]
pub(super) struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Arc<Projection>,
    norm2: GroupNorm,
    conv2: Arc<Projection>,
    nin_shortcut: Option<Arc<Projection>>,
}

impl ResidualBlock {
    pub(super) fn load(loader: &mut Loader<'_>, path: &str, input: usize, output: usize) -> Result<Self> {
        let nin_shortcut = if input == output {
            None
        } else {
            Some(loader.projection(&format!("{path}.nin_shortcut"), true, DTYPE)?)
        };
        Ok(Self {
            norm1: GroupNorm::load(loader, &format!("{path}.norm1"))?,
            conv1: loader.projection(&format!("{path}.conv1"), true, DTYPE)?,
            norm2: GroupNorm::load(loader, &format!("{path}.norm2"))?,
            conv2: loader.projection(&format!("{path}.conv2"), true, DTYPE)?,
            nin_shortcut,
        })
    }

    pub(super) fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        if let Some(block) = self.under_training(pass, x)? {
            return Ok(block.forward(x)?);
        }
        let h = self.norm1.forward_into(pass, &self.conv1, x, None)?;
        let shortcut = match &self.nin_shortcut {
            Some(shortcut) => shortcut.forward(pass, x)?,
            None => x.clone(),
        };
        self.norm2.forward_into(pass, &self.conv2, &h, Some(&shortcut))
    }

    /// The block as one node of the tape, where something in it or before it is trained and nothing corrects it.
    fn under_training(&self, pass: &Pass, x: &Tensor) -> Result<Option<Residual>> {
        let convolutions = [Some(&self.conv1), Some(&self.conv2), self.nin_shortcut.as_ref()];
        if !convolutions.into_iter().flatten().all(|projection| projection.is_plain(pass)) {
            return Ok(None);
        }
        let biased = |projection: &Projection| {
            let bias = projection.bias().expect("every convolution here has a bias");
            (projection.weight().value(), bias.value())
        };
        let half = |norm: &GroupNorm, conv: &Projection| {
            let (kernel, bias) = biased(conv);
            NormedConvolution { norm_weight: norm.weight.value(), norm_bias: norm.bias.value(), kernel, bias }
        };
        let block = Residual {
            first: half(&self.norm1, &self.conv1),
            second: half(&self.norm2, &self.conv2),
            shortcut: self.nin_shortcut.as_deref().map(biased),
            groups: GROUPS,
            eps: EPS,
        };
        Ok((block.is_tracked(x) && block.is_fused(x)?).then_some(block))
    }
}

/// Attention of one head over all places.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    q: Arc<Projection>,
    k: Arc<Projection>,
    v: Arc<Projection>,
    proj_out: Arc<Projection>,
}

impl AttentionBlock {
    pub(super) fn load(loader: &mut Loader<'_>, path: &str) -> Result<Self> {
        let norm = GroupNorm::load(loader, &format!("{path}.norm"))?;
        let mut projection = |name: &str| loader.projection(&format!("{path}.{name}"), true, DTYPE);
        Ok(Self {
            norm,
            q: projection("q")?,
            k: projection("k")?,
            v: projection("v")?,
            proj_out: projection("proj_out")?,
        })
    }

    pub(super) fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let (images, channels, height, width) = x.dims4()?;
        let normed = self.norm.forward(x)?;
        let places = |projection: &Projection| -> Result<Tensor> {
            let y = projection.forward(pass, &normed)?;
            Ok(y.permute((0, 2, 3, 1))?.reshape((images, height * width, 1, channels))?)
        };
        let attended = ops::attention_in(
            &places(&self.q)?,
            &places(&self.k)?,
            &places(&self.v)?,
            &AttentionMask::full(),
            pass.order,
        )?;
        let attended = attended.reshape((images, height, width, channels))?.permute((0, 3, 1, 2))?;
        self.proj_out.forward_within(pass, &attended, &Around { add: Some(x), ..Around::default() })
    }
}

/// The middle of both stacks, at the lowest resolution.
#[derive(Debug)]
pub(super) struct Middle {
    block_1: ResidualBlock,
    attn_1: AttentionBlock,
    block_2: ResidualBlock,
}

impl Middle {
    pub(super) fn load(loader: &mut Loader<'_>, path: &str, channels: usize) -> Result<Self> {
        Ok(Self {
            block_1: ResidualBlock::load(loader, &format!("{path}.block_1"), channels, channels)?,
            attn_1: AttentionBlock::load(loader, &format!("{path}.attn_1"))?,
            block_2: ResidualBlock::load(loader, &format!("{path}.block_2"), channels, channels)?,
        })
    }

    pub(super) fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let x = self.block_1.forward(pass, x)?;
        let x = self.attn_1.forward(pass, &x)?;
        self.block_2.forward(pass, &x)
    }
}

/// One level of a stack: residual blocks, at the lowest resolution each followed by attention, then perhaps a change of
/// resolution.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) blocks: Vec<ResidualBlock>,
    pub(super) attention: Vec<AttentionBlock>,
    pub(super) resample: Option<Arc<Projection>>,
}

impl Level {
    /// The blocks, without the change of resolution.
    pub(super) fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(pass, &x)?;
            if let Some(attention) = self.attention.get(i) {
                x = attention.forward(pass, &x)?;
            }
        }
        Ok(x)
    }
}
