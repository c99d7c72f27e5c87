//! An image to itself: the image tokenizer is trained to give back what it was shown, through its codes.
//!
//! The loss of a picture is the mean absolute and four times the mean squared distance of its pixels in [-1, 1], with the
//! codebook's and the commitment's (van den Oord and others, arXiv:1711.00937, equation 3, with their factor). The published tokenizer
//! (LlamaGen, arXiv:2406.06525) adds a perceptual and an adversarial loss, for which there are no networks here.

use candle_core::Tensor;
use janus_core::model::vq::Reconstruction;
use janus_core::pass::Pass;
use janus_core::{Janus, ModelError, Parts};

use super::forward::{Coded, Loss};
use super::{Draft, Question, Task, image_column, within};
use crate::base::Base;
use crate::cache::Image;
use crate::data::{ColumnRequest, Row};
use crate::error::Result;
use crate::recipe::Columns;

/// Native paths the loss depends on.
const REACHED: &[&str] = &["model.vqmodel."];

/// Native paths on which the codes of a picture depend, and not only what is made of them.
pub(crate) const CODE_PATHS: &[&str] =
    &["model.vqmodel.encoder.", "model.vqmodel.quant_conv", "model.vqmodel.quant_conv.", "model.vqmodel.quantize."];

/// Factor on the loss that draws latents to their codes.
const COMMITMENT: f64 = 0.25;

/// Factor on the squared distance: with both at one a small part of another colour than its ground weighs too little, and
/// comes back as a grey blob for thousands of pictures.
const SQUARES: f64 = 4.0;

#[derive(Debug)]
pub(super) struct Reconstruct {
    columns: Columns,
    quantize_from: u64,
}

impl Reconstruct {
    pub(super) fn new(columns: &Columns, quantize_from: u64) -> Self {
        Self { columns: columns.clone(), quantize_from }
    }
}

impl Task for Reconstruct {
    fn parts(&self) -> Parts {
        Parts { image_tokenizer: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, REACHED)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        vec![image_column(&self.columns)]
    }

    fn check(&self, _base: &Base, _row: &Row) -> std::result::Result<(), String> {
        Ok(())
    }

    fn draft(&self, base: &Base, _draw: Option<f64>, row: &Row) -> Result<Draft> {
        let image = row.image("image").ok_or(ModelError::NotLoaded { part: "row's image" })?;
        Ok(Draft::Pixels { image: base.image(image), quantize_from: self.quantize_from })
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn rebuilds(&self) -> bool {
        true
    }
}

/// Pictures that are to come back.
#[derive(Debug, Clone)]
pub struct PixelBatch {
    /// The pictures.
    pub images: Vec<Image>,
    /// Steps of training in which the decoder reads the latents themselves.
    pub quantize_from: u64,
}

impl PixelBatch {
    /// The pictures as the image tokenizer gets them, `[images, 3, side, side]` in [-1, 1].
    ///
    /// # Errors
    /// Images that cannot be decoded.
    pub fn pixels(&self, model: &Janus) -> Result<Tensor> {
        let pixels = self.images.iter().map(Image::target).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&pixels, 0)?.to_device(model.device())?)
    }

    /// The pictures through the image tokenizer.
    ///
    /// # Errors
    /// A model without image tokenizer, or images of another size than its own.
    pub fn reconstruction(&self, model: &Janus, pass: &Pass, pixels: &Tensor) -> Result<Reconstruction> {
        Ok(model.image_tokenizer()?.reconstruct(pass, pixels, self.is_quantized(pass))?)
    }

    /// Whether there are codes between encoder and decoder already.
    fn is_quantized(&self, pass: &Pass) -> bool {
        !pass.train || pass.noise.step >= self.quantize_from
    }

    pub(super) fn loss(&self, model: &Janus, pass: &Pass) -> Result<Loss> {
        let pixels = self.pixels(model)?;
        self.loss_of(pass, &pixels, self.reconstruction(model, pass, &pixels)?)
    }

    /// The summed loss of pictures that have come back.
    ///
    /// # Errors
    /// The tensor engine's.
    pub(crate) fn loss_of(&self, pass: &Pass, pixels: &Tensor, again: Reconstruction) -> Result<Loss> {
        let Reconstruction { pixels: again, commitment, codebook, codes, latents } = again;
        let distance = (again - pixels)?;
        let of_pixels = (distance.abs()?.mean_all()? + (distance.sqr()?.mean_all()? * SQUARES)?)?;
        let mean = match self.is_quantized(pass) {
            true => ((of_pixels + codebook)? + (commitment * COMMITMENT)?)?,
            false => of_pixels,
        };
        let tokens = self.images.len();
        let sum = (mean * tokens as f64)?;
        Ok(Loss { correct: Tensor::new(0u32, sum.device())?, sum, tokens, coded: Some(Coded { codes, latents }) })
    }
}
