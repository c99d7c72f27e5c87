//! Image codes with classifier-free guidance.
//! Source: `generation_inference.py` of deepseek-ai/Janus at `1daa72f`: `uncond + guidance · (cond - uncond)`, and both
//! rows go on with the same code.

use candle_core::Tensor;

use super::session::{Kind, RowOptions, Session, row_error};
use crate::error::Result;
use crate::model::Janus;
use crate::pass::{Part, Pass};

/// How codes are drawn.
#[derive(Debug, Clone, Copy)]
pub struct CodeOptions {
    /// Strength of the prompt; 1 leaves out the unconditional rows.
    pub guidance: f64,
    /// 0 takes the best code each time.
    pub temperature: f64,
    /// Seed of the draws; row `i` uses `seed + i`.
    pub seed: u64,
}

/// The logits of one step, `[batch, codes]` each, in f32.
#[derive(Debug)]
pub struct CodeStep<'a> {
    /// Which code of the image.
    pub step: usize,
    /// Given the prompt.
    pub conditional: &'a Tensor,
    /// Given none; absent without guidance.
    pub unconditional: Option<&'a Tensor>,
    /// What is drawn from.
    pub guided: &'a Tensor,
}

/// Prompts of equal length, left-padded, each ending in `<begin_of_image>`.
#[derive(Debug, Clone)]
pub struct CodePrompts {
    /// Ids of the prompts, `rows · length`.
    pub conditional: Vec<u32>,
    /// The same with pads for the prompt's own tokens.
    pub unconditional: Vec<u32>,
    /// Which ids are tokens (true), for both: the pads that stand for a prompt in the unconditional rows are attended, as
    /// the model was trained.
    pub mask: Vec<bool>,
    /// Prompts.
    pub rows: usize,
    /// The pictures among the prompts' tokens, where there are some.
    pub images: Option<PromptImages>,
}

/// Pictures among the tokens of prompts; the unconditional rows have none.
#[derive(Debug, Clone)]
pub struct PromptImages {
    /// The id that stands for a feature.
    pub placeholder: u32,
    /// Aligned features in reading order, `[images, patches, hidden]`.
    pub features: Tensor,
}

/// Codes of one image per prompt; `observe` is told each step's logits.
///
/// The decoder's routes of `pass`, where it has some, are those of the prompts' tokens, `[rows · sequence]`. Each row goes on as
/// its last token, in the decoder and on the generation side, and its unconditional twin as the row itself.
///
/// # Errors
/// An id beyond the vocabulary, or a part that was not loaded.
pub fn generate_codes(
    model: &Janus,
    pass: &Pass,
    prompts: &CodePrompts,
    options: &CodeOptions,
    observe: &mut dyn FnMut(CodeStep<'_>),
) -> Result<Vec<Vec<u32>>> {
    generate_first_codes(model, pass, prompts, options, model.codes_per_image(), observe)
}

/// As [`generate_codes`], but only the first `count` codes of each image.
///
/// # Errors
/// As [`generate_codes`].
pub fn generate_first_codes(
    model: &Janus,
    pass: &Pass,
    prompts: &CodePrompts,
    options: &CodeOptions,
    count: usize,
    observe: &mut dyn FnMut(CodeStep<'_>),
) -> Result<Vec<Vec<u32>>> {
    let CodePrompts { conditional, unconditional, mask, rows: batch, images: pictures } = prompts;
    let batch = *batch;
    let decoder = model.decoder();
    let guided = options.guidance != 1.0;
    let sequence = conditional.len() / batch.max(1);
    let mut images = vec![Vec::with_capacity(count); batch];
    if count == 0 {
        return Ok(images);
    }
    let mut embeds = match pictures {
        Some(PromptImages { placeholder, features }) => {
            model.embed_with_images(pass, conditional, batch, *placeholder, Some(features))?
        }
        None => decoder.embed(pass, conditional, batch)?,
    };
    let mut mask: Vec<Vec<bool>> = mask.chunks_exact(sequence.max(1)).map(<[bool]>::to_vec).collect();
    let mut twice = pass.clone();
    if guided {
        let tokens = conditional.len();
        twice = pass.picked(Part::Decoder, (0..2 * tokens).map(|row| row % tokens))?;
        embeds = Tensor::cat(&[embeds, decoder.embed(pass, unconditional, batch)?], 0)?;
        mask.extend_from_within(..);
    }
    let row = |row: u64| RowOptions {
        kind: Kind::Codes { guidance: options.guidance },
        most: count,
        temperature: options.temperature,
        seed: options.seed.wrapping_add(row),
    };
    let mut session = Session::new(model, usize::MAX);
    let rows = session.join(&twice, &embeds, &mask, (0..batch as u64).map(row).collect())?;
    let rows = rows.expect("a session without bounds has room");
    for step in 0..count {
        let [mut given, mut not_given, mut drawn_from] = [Vec::new(), Vec::new(), Vec::new()];
        let drawn = session.step(&mut |logits| {
            given.push(logits.conditional.clone());
            not_given.extend(logits.unconditional.cloned());
            drawn_from.push(logits.guided.clone());
        })?;
        let (given, drawn_from) = (Tensor::stack(&given, 0)?, Tensor::stack(&drawn_from, 0)?);
        let not_given = if guided { Some(Tensor::stack(&not_given, 0)?) } else { None };
        observe(CodeStep { step, conditional: &given, unconditional: not_given.as_ref(), guided: &drawn_from });
        for own in drawn {
            let Ok(place) = rows.binary_search(&own.row) else { continue };
            images[place].push(own.token.map_err(|error| row_error(error, place))?);
        }
    }
    Ok(images)
}
