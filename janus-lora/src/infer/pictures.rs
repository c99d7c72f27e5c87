//! Pictures of image codes.

use image::RgbImage;
use janus_core::Janus;
use janus_core::pass::{Mixture, Part, Pass};
use janus_core::processing::pixels_to_images;

use super::prompts::routed;
use crate::base::Base;
use crate::culprit::finite;
use crate::error::Result;

/// The picture of some codes, by the model's own image tokenizer, with what corrects it, where the model has one, else by the
/// base's.
///
/// # Errors
/// Codes beyond the codebook, or values that are not finite.
pub(super) fn picture(model: &Janus, base: &Base, codes: &[u32], adapters: Option<&Mixture>) -> Result<RgbImage> {
    let apart = match model.image_tokenizer() {
        Ok(_) => None,
        Err(_) => Some(base.cache().tokenizer(base, model.device())?),
    };
    let (tokenizer, pass) = match &apart {
        Some(tokenizer) => (&**tokenizer, Pass::answering()),
        None => {
            let pass = routed(Pass::answering(), Part::Generation, std::iter::once(adapters), codes.len())?;
            (model.image_tokenizer()?, pass)
        }
    };
    let pixels = finite(tokenizer.decode(&pass, &[codes.to_vec()])?, "pixels")?;
    Ok(pixels_to_images(&pixels)?.into_iter().next().unwrap_or_default())
}
