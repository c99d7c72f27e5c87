//! The image tokenizer (`model.vqmodel`): pixels to codes and back. VQ-16 of LlamaGen, as `vq_model.py` of
//! deepseek-ai/Janus at `1daa72f` runs it. Always in f32: in bf16 about one code in fourteen changes.

mod blocks;
mod decoder;
mod encoder;
mod quantizer;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use self::decoder::Decoder;
use self::encoder::Encoder;
use self::quantizer::Quantizer;
use super::loader::Loader;
use crate::checkpoint::Checkpoint;
use crate::config::VqConfig;
use crate::error::{ModelError, Result};
use crate::pass::Pass;
use crate::site::Projection;

/// The type the image tokenizer computes in.
pub(crate) const DTYPE: DType = DType::F32;

/// Encoder, quantiser and decoder of pictures.
#[derive(Debug)]
pub struct ImageTokenizer {
    encoder: Encoder,
    quant_conv: Arc<Projection>,
    quantizer: Quantizer,
    post_quant_conv: Arc<Projection>,
    decoder: Decoder,
    factor: usize,
}

impl ImageTokenizer {
    /// Opens the image tokenizer alone, without a model around it: nothing can change what it computes. `progress` is
    /// told the bytes of each tensor as it arrives.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(checkpoint: &Checkpoint, device: &Device, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        Self::load(&mut Loader::new(checkpoint, device, progress), &checkpoint.config().vq)
    }

    pub(crate) fn load(loader: &mut Loader<'_>, config: &VqConfig) -> Result<Self> {
        let path = "model.vqmodel";
        Ok(Self {
            encoder: Encoder::load(loader, &format!("{path}.encoder"), config)?,
            quant_conv: loader.projection(&format!("{path}.quant_conv"), true, DTYPE)?,
            quantizer: Quantizer::load(loader, &format!("{path}.quantize"), config)?,
            post_quant_conv: loader.projection(&format!("{path}.post_quant_conv"), true, DTYPE)?,
            decoder: Decoder::load(loader, &format!("{path}.decoder"), config)?,
            factor: config.down_factor(),
        })
    }

    /// What the encoder gives, before `quant_conv`: `[images, 3, side, side]` in [-1, 1], on any device, to
    /// `[images, latent_channels, grid, grid]`.
    ///
    /// # Errors
    /// A side that the downsampling does not divide.
    pub fn encoder_output(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        match pixels.dims() {
            [_, 3, height, width] if height % self.factor == 0 && width % self.factor == 0 => {}
            other => {
                let expected = format!("[images, 3, side, side] with a side that {} divides", self.factor);
                return Err(ModelError::Shape { what: "pixels", expected, got: other.to_vec() }.into());
            }
        }
        self.encoder.forward(pass, &pixels.to_dtype(DTYPE)?.to_device(self.quantizer.device())?)
    }

    /// Latents before quantisation: pixels as in [`ImageTokenizer::encoder_output`] to `[images, embed_dim, grid, grid]`.
    ///
    /// # Errors
    /// A side that the downsampling does not divide.
    pub fn latents(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        self.quant_conv.forward(pass, &self.encoder_output(pass, pixels)?)
    }

    /// Codes of pictures in raster order, one row each. Pixels as in [`ImageTokenizer::encoder_output`].
    ///
    /// # Errors
    /// A side that the downsampling does not divide.
    pub fn encode(&self, pass: &Pass, pixels: &Tensor) -> Result<Vec<Vec<u32>>> {
        self.quantizer.nearest(&self.latents(pass, pixels)?)
    }

    /// Unit code vectors on their grid: `[images, embed_dim, grid, grid]`.
    ///
    /// # Errors
    /// Rows that are no square, or a code beyond the codebook.
    pub fn codebook_entries(&self, codes: &[Vec<u32>]) -> Result<Tensor> {
        self.quantizer.entries(codes)
    }

    /// What the decoder reads: `[images, latent_channels, grid, grid]`.
    ///
    /// # Errors
    /// Rows that are no square, or a code beyond the codebook.
    pub fn post_quant(&self, pass: &Pass, codes: &[Vec<u32>]) -> Result<Tensor> {
        self.post_quant_conv.forward(pass, &self.codebook_entries(codes)?)
    }

    /// Pictures of codes: `[images, 3, side, side]`, near [-1, 1] but not clamped.
    ///
    /// # Errors
    /// Rows that are no square, or a code beyond the codebook.
    pub fn decode(&self, pass: &Pass, codes: &[Vec<u32>]) -> Result<Tensor> {
        Ok(self.decoder.forward(pass, &self.post_quant(pass, codes)?)?.contiguous()?)
    }
}
