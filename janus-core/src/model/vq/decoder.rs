//! Latents to pixels, doubling the resolution between levels; index 0 of `up` is the lowest resolution.

use std::sync::Arc;

use candle_core::Tensor;

use super::DTYPE;
use super::blocks::{AttentionBlock, GroupNorm, Level, Middle, ResidualBlock};
use crate::config::VqConfig;
use crate::error::Result;
use crate::model::loader::Loader;
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
                x = conv.forward(pass, &double(&x)?)?;
            }
        }
        self.conv_out.forward(pass, &self.norm_out.forward_activated(&x)?)
    }
}

/// Each pixel four times. By views, not by `upsample_nearest2d`, whose backward overwrites a gradient already summed.
fn double(x: &Tensor) -> Result<Tensor> {
    let (images, channels, height, width) = x.dims4()?;
    let x = x.reshape((images * channels, height, 1, width, 1))?;
    let x = x.broadcast_as((images * channels, height, 2, width, 2))?;
    Ok(x.reshape((images, channels, 2 * height, 2 * width))?)
}
