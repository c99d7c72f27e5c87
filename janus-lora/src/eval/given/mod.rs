//! Networks that measure pictures, whose weights the user gives: figures with them can be set beside those of papers.
//!
//! None is carried along or downloaded. A file is what PyTorch saved of the network's `state_dict`, or the same tensors in
//! safetensors; its numbers of channels are read from it.

mod error;
mod inception;
mod lpips;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod weights;

use std::path::Path;

use candle_core::Tensor;
use image::RgbImage;
use janus_core::processing::normalised;

pub use error::NetworkError;

use crate::error::Result;
use inception::Inception;
use lpips::Lpips;
use weights::Weights;

/// The networks that were given.
#[derive(Debug, Default)]
pub struct Networks {
    lpips: Option<Lpips>,
    inception: Option<Inception>,
}

impl Networks {
    /// Reads the weights of LPIPS with VGG or AlexNet, and of the Inception of the Fréchet distance, where they are given.
    ///
    /// # Errors
    /// A file that cannot be read, or is of another network.
    pub fn open(lpips: Option<&Path>, inception: Option<&Path>) -> Result<Self> {
        Ok(Self {
            lpips: lpips.map(|file| Lpips::new(&Weights::open(file)?)).transpose()?,
            inception: inception.map(|file| Inception::new(&Weights::open(file)?)).transpose()?,
        })
    }

    /// LPIPS of two pictures of one size; `None` where its weights were not given.
    ///
    /// # Errors
    /// Pictures too small for the network.
    pub(super) fn lpips(&self, one: &RgbImage, other: &RgbImage) -> Result<Option<f64>> {
        let Some(lpips) = &self.lpips else { return Ok(None) };
        Ok(Some(lpips.distance(&pixels(one)?, &pixels(other)?)?))
    }

    /// What Inception's last pooling makes of a picture; `None` where its weights were not given.
    ///
    /// # Errors
    /// The tensor engine's.
    pub(super) fn inception(&self, picture: &RgbImage) -> Result<Option<Vec<f64>>> {
        let Some(inception) = &self.inception else { return Ok(None) };
        Ok(Some(inception.features(&pixels(picture)?)?))
    }
}

/// `[1, 3, height, width]` in [-1, 1].
fn pixels(picture: &RgbImage) -> Result<Tensor> {
    Ok(normalised(picture, [0.5; 3], [0.5; 3])?.unsqueeze(0)?)
}
