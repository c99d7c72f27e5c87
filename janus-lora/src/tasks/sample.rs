//! Rows made ready: drafts, which need no model, and the samples that become of them.

use std::sync::Arc;

use janus_core::Janus;
use janus_core::processing::Sample as TextSample;

use super::Pictured;
use crate::base::Base;
use crate::cache::{Image, codes};
use crate::error::Result;

/// A row made ready for a batch.
#[derive(Debug, Clone)]
pub enum Sample {
    /// Labelled text around images.
    Text {
        /// Ids and labels.
        tokens: TextSample,
        /// The images, in reading order.
        images: Vec<Image>,
    },
    /// A prompt and the codes of its image.
    Codes {
        /// Ids up to and with `<begin_of_image>`.
        prompt: Vec<u32>,
        /// The images of the prompt, in reading order.
        images: Vec<Image>,
        /// Codes in raster order.
        codes: Arc<[u32]>,
        /// The picture that the codes are of.
        image: Image,
    },
    /// A picture and what a head is to tell of it.
    Picture(Pictured),
    /// A picture that is to come back from its codes.
    Pixels {
        /// The picture.
        image: Image,
        /// Steps of training in which it comes back from latents that are not quantised.
        quantize_from: u64,
    },
}

impl Sample {
    /// Tokens that count in the loss; one of a picture.
    pub fn supervised(&self) -> usize {
        match self {
            Sample::Text { tokens, .. } => tokens.labels.iter().filter(|label| **label >= 0).count(),
            Sample::Codes { codes, .. } => codes.len(),
            Sample::Picture(_) | Sample::Pixels { .. } => 1,
        }
    }

    /// Tokens that the decoder reads.
    pub fn len(&self) -> usize {
        match self {
            Sample::Text { tokens, .. } => tokens.ids.len(),
            Sample::Codes { prompt, codes, .. } => prompt.len() + codes.len().saturating_sub(1),
            Sample::Picture(pictured) => pictured.target.caption().len(),
            Sample::Pixels { .. } => 0,
        }
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Images that the vision tower reads.
    pub fn seen_images(&self) -> usize {
        match self {
            Sample::Text { images, .. } | Sample::Codes { images, .. } => images.len(),
            Sample::Picture(_) => 1,
            Sample::Pixels { .. } => 0,
        }
    }

    /// Every picture of the row, those to draw among them.
    pub fn images(&self) -> Vec<&Image> {
        match self {
            Sample::Text { images, .. } => images.iter().collect(),
            Sample::Codes { images, image, .. } => images.iter().chain([image]).collect(),
            Sample::Picture(pictured) => vec![&pictured.image],
            Sample::Pixels { image, .. } => vec![image],
        }
    }
}

/// A row made ready as far as that needs no model.
#[derive(Debug, Clone)]
pub enum Draft {
    /// Labelled text around images.
    Text {
        /// Ids and labels.
        tokens: TextSample,
        /// The images, in reading order.
        images: Vec<Image>,
    },
    /// A prompt and the image that is drawn for it.
    Codes {
        /// Ids up to and with `<begin_of_image>`.
        prompt: Vec<u32>,
        /// The images of the prompt, in reading order.
        images: Vec<Image>,
        /// The image.
        image: Image,
    },
    /// A picture and what a head is to tell of it.
    Picture(Pictured),
    /// A picture that is to come back from its codes.
    Pixels {
        /// The picture.
        image: Image,
        /// Steps of training in which it comes back from latents that are not quantised.
        quantize_from: u64,
    },
}

impl Draft {
    /// Decodes and resizes its pictures before a model asks for them. What is wrong with one comes out then.
    pub fn decode_ahead(&self) {
        match self {
            Draft::Text { images, .. } => images.iter().for_each(Image::pixels_ahead),
            Draft::Codes { images, image, .. } => {
                images.iter().for_each(Image::pixels_ahead);
                image.target_ahead();
            }
            Draft::Picture(pictured) => pictured.image.pixels_ahead(),
            Draft::Pixels { image, .. } => image.target_ahead(),
        }
    }

    /// The sample for a model: what is kept of its images is read, codes are computed where none are kept.
    ///
    /// # Errors
    /// An image that cannot be decoded.
    pub fn finish(&self, base: &Base, model: &Janus) -> Result<Sample> {
        let prepare = |images: &[Image]| images.iter().try_for_each(|image| image.prepare(model));
        match self {
            Draft::Text { tokens, images } => {
                prepare(images)?;
                Ok(Sample::Text { tokens: tokens.clone(), images: images.clone() })
            }
            Draft::Codes { prompt, images, image } => {
                prepare(images)?;
                let codes = codes(base, model.device(), image)?;
                Ok(Sample::Codes { prompt: prompt.clone(), images: images.clone(), codes, image: image.clone() })
            }
            Draft::Picture(pictured) => {
                pictured.image.prepare(model)?;
                Ok(Sample::Picture(pictured.clone()))
            }
            Draft::Pixels { image, quantize_from } => {
                image.target()?;
                Ok(Sample::Pixels { image: image.clone(), quantize_from: *quantize_from })
            }
        }
    }

    /// Tokens that the decoder reads, and those that count in the loss, where an image has `codes_per_image` codes.
    pub fn lengths(&self, codes_per_image: usize) -> (usize, usize) {
        match self {
            Draft::Text { tokens, .. } => (tokens.ids.len(), tokens.labels.iter().filter(|label| **label >= 0).count()),
            Draft::Codes { prompt, .. } => (prompt.len() + codes_per_image.saturating_sub(1), codes_per_image),
            Draft::Picture(pictured) => (pictured.target.caption().len(), 1),
            Draft::Pixels { .. } => (0, 1),
        }
    }

    /// Images that the vision tower reads.
    pub fn seen_images(&self) -> usize {
        match self {
            Draft::Text { images, .. } | Draft::Codes { images, .. } => images.len(),
            Draft::Picture(_) => 1,
            Draft::Pixels { .. } => 0,
        }
    }

    /// Every picture of the row, those to draw among them.
    pub fn images(&self) -> Vec<&Image> {
        match self {
            Draft::Text { images, .. } => images.iter().collect(),
            Draft::Codes { images, image, .. } => images.iter().chain([image]).collect(),
            Draft::Picture(pictured) => vec![&pictured.image],
            Draft::Pixels { image, .. } => vec![image],
        }
    }

    /// Whether a finished one took pixels; `None` without images.
    pub fn took_pixels(&self) -> Option<bool> {
        let any = |images: &[Image]| images.iter().any(Image::was_needed);
        match self {
            Draft::Text { images, .. } if images.is_empty() => None,
            Draft::Text { images, .. } => Some(any(images)),
            Draft::Codes { images, image, .. } => Some(any(images) || image.was_needed()),
            Draft::Picture(pictured) => Some(pictured.image.was_needed()),
            Draft::Pixels { image, .. } => Some(image.was_needed()),
        }
    }
}
