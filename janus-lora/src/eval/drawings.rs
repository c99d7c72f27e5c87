//! Pictures that a model draws.

use image::RgbImage;
use janus_core::Janus;
use janus_core::pass::Pass;
use janus_core::processing::{left_pad, pixels_to_images};
use janus_core::sample::{CodePrompts, PromptImages};

use crate::base::Base;
use crate::cache::{self, Image};
use crate::error::Result;

/// Prompts side by side, each of its ids up to and with `<begin_of_image>` and the pictures among them.
///
/// # Errors
/// Pictures that cannot be decoded or do not fit the model.
pub fn code_prompts(model: &Janus, base: &Base, prompts: &[(&[u32], &[Image])]) -> Result<CodePrompts> {
    let special = base.tokenizer().special();
    let ids: Vec<&[u32]> = prompts.iter().map(|(ids, _)| *ids).collect();
    let conditional = left_pad(&ids, special.pad);
    let unconditional: Vec<Vec<u32>> = ids.iter().map(|ids| base.prompts().unconditional(ids)).collect();
    let images: Vec<Image> = prompts.iter().flat_map(|(_, images)| images.iter().cloned()).collect();
    let features = cache::features(model, &Pass::answering(), &images)?;
    Ok(CodePrompts {
        conditional: conditional.ids,
        unconditional: left_pad(&unconditional, special.pad).ids,
        mask: conditional.mask.iter().map(|mask| *mask != 0).collect(),
        rows: conditional.rows,
        images: features.map(|features| PromptImages { placeholder: special.image_placeholder, features }),
    })
}

/// The pictures of some codes, one at a time: the tokenizer's finest level is large. By the model's own image tokenizer, with
/// what is attached to it, where the model has one, else by the base's.
///
/// # Errors
/// Codes beyond the codebook, or values that are no picture.
pub fn pictures(model: &Janus, base: &Base, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>> {
    let apart = match model.image_tokenizer() {
        Ok(_) => None,
        Err(_) => Some(base.cache().tokenizer(base, model.device())?),
    };
    let tokenizer = match &apart {
        Some(tokenizer) => tokenizer,
        None => model.image_tokenizer()?,
    };
    let mut pictures = Vec::with_capacity(codes.len());
    for codes in codes {
        let pixels = tokenizer.decode(&Pass::answering(), std::slice::from_ref(codes))?;
        pictures.extend(pixels_to_images(&pixels)?);
    }
    Ok(pictures)
}
