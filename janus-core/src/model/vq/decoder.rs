//! Latents to pixels, doubling the resolution between levels; index 0 of `up` is the lowest resolution.

use std::sync::Arc;

use candle_core::Tensor;

use super::DTYPE;
use super::blocks::{AttentionBlock, GroupNorm, Level, Middle, ResidualBlock};
use crate::config::VqConfig;
use crate::error::Result;
use crate::model::loader::Loader;
use crate::ops::conv2d::Around;
use crate::pass::Pass;
use crate::site::Projection;

#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Arc<Projection>,
    mid: Middle,
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Arc<Projection>,
}

impl Decoder {
    pub(super) fn load(loader: &mut Loader<'_>, path: &str, config: &VqConfig) -> Result<Self> {
        let levels = config.channel_multiplier.len();
        let deepest = config.channel_multiplier.last().copied().unwrap_or(1);
        let mut channels = config.base_channels * deepest;
        let conv_in = loader.projection(&format!("{path}.conv_in"), true, DTYPE)?;
        let mid = Middle::load(loader, &format!("{path}.mid"), channels)?;
        let mut up = Vec::new();
        for (level, multiplier) in config.channel_multiplier.iter().rev().enumerate() {
            let path = format!("{path}.up.{level}");
            let (mut blocks, mut attention) = (Vec::new(), Vec::new());
            for i in 0..=config.num_res_blocks {
                let output = config.base_channels * multiplier;
                blocks.push(ResidualBlock::load(loader, &format!("{path}.block.{i}"), channels, output)?);
                channels = output;
                if level == 0 {
                    attention.push(AttentionBlock::load(loader, &format!("{path}.attn.{i}"))?);
                }
            }
            let resample = if level + 1 == levels {
                None
            } else {
                Some(loader.projection(&format!("{path}.upsample.conv"), true, DTYPE)?)
            };
            up.push(Level { blocks, attention, resample });
        }
        Ok(Self {
            conv_in,
            mid,
            up,
            norm_out: GroupNorm::load(loader, &format!("{path}.norm_out"))?,
            conv_out: loader.projection(&format!("{path}.conv_out"), true, DTYPE)?,
        })
    }

    /// `[images, latent_channels, grid, grid]` to `[images, 3, side, side]`.
    pub(super) fn forward(&self, pass: &Pass, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.mid.forward(pass, &self.conv_in.forward(pass, latents)?)?;
        for level in &self.up {
            x = level.forward(pass, &x)?;
            if let Some(conv) = &level.resample {
                x = conv.forward_within(pass, &x, &Around { doubled: true, ..Around::default() })?;
            }
        }
        self.norm_out.forward_into(pass, &self.conv_out, &x, None)
    }
}
