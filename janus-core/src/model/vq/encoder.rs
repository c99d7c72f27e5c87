//! Pixels to latents, halving the resolution between levels.

use std::sync::Arc;

use candle_core::Tensor;

use super::DTYPE;
use super::blocks::{AttentionBlock, GroupNorm, Level, Middle, ResidualBlock};
use crate::config::VqConfig;
use crate::error::Result;
use crate::model::loader::Loader;
use crate::ops::channels_last;
use crate::pass::Pass;
use crate::site::Projection;

#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Arc<Projection>,
    down: Vec<Level>,
    mid: Middle,
    norm_out: GroupNorm,
    conv_out: Arc<Projection>,
}

impl Encoder {
    pub(super) fn load(loader: &mut Loader<'_>, path: &str, config: &VqConfig) -> Result<Self> {
        let conv_in = loader.projection(&format!("{path}.conv_in"), true, DTYPE)?;
        let mut channels = config.base_channels;
        let mut down = Vec::new();
        let levels = config.channel_multiplier.len();
        for (level, multiplier) in config.channel_multiplier.iter().enumerate() {
            let path = format!("{path}.down.{level}");
            let (mut blocks, mut attention) = (Vec::new(), Vec::new());
            for i in 0..config.num_res_blocks {
                let output = config.base_channels * multiplier;
                blocks.push(ResidualBlock::load(loader, &format!("{path}.block.{i}"), channels, output)?);
                channels = output;
                if level + 1 == levels {
                    attention.push(AttentionBlock::load(loader, &format!("{path}.attn.{i}"))?);
                }
            }
            let resample = if level + 1 == levels {
                None
            } else {
                Some(loader.projection(&format!("{path}.downsample.conv"), true, DTYPE)?)
            };
            down.push(Level { blocks, attention, resample });
        }
        Ok(Self {
            conv_in,
            down,
            mid: Middle::load(loader, &format!("{path}.mid"), channels)?,
            norm_out: GroupNorm::load(loader, &format!("{path}.norm_out"))?,
            conv_out: loader.projection(&format!("{path}.conv_out"), true, DTYPE)?,
        })
    }

    /// `[images, 3, side, side]` to `[images, latent_channels, grid, grid]`.
    pub(super) fn forward(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(pass, pixels)?;
        for level in &self.down {
            x = level.forward(pass, &x)?;
            if let Some(conv) = &level.resample {
                // One column right and one row below only, so that the stride meets every pixel pair.
                x = conv.forward(pass, &channels_last::padded(&x, 1, 1)?)?;
            }
        }
        let x = self.mid.forward(pass, &x)?;
        self.norm_out.forward_into(pass, &self.conv_out, &x, None)
    }
}
