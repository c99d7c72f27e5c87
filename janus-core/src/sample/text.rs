//! Answers: prompt embeddings in, token ids out.

use candle_core::{DType, Tensor};

use super::Sampler;
use super::prefill::{following, prefill};
use crate::error::Result;
use crate::model::Janus;
use crate::model::decoder::Placement;
use crate::pass::Pass;

/// How answers are drawn.
#[derive(Debug, Clone)]
pub struct TextOptions {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// 0 takes the best token each time.
    pub temperature: f64,
    /// Seed of the draws; row `i` uses `seed + i`.
    pub seed: u64,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
    /// What a finished row goes on with.
    pub pad: u32,
    /// Ids the tokenizer knows; rows of the head beyond are padding and are never drawn at a temperature above 0.
    pub vocabulary: usize,
}

/// Continues left-padded prompts. `embeds: [batch, sequence, hidden]`, `mask: [batch · sequence]` (true = a token).
/// Returns one row of ids per prompt, up to and with its stop token; `on_token` is told each step's ids.
///
/// The decoder's routes of `pass`, where it has some, are those of the prompts' tokens; each row goes on as its last one.
///
/// # Errors
/// Shapes that do not fit.
pub fn generate_text(
    model: &Janus,
    pass: &Pass,
    embeds: &Tensor,
    mask: &[bool],
    options: &TextOptions,
    on_token: &mut dyn FnMut(&[u32]),
) -> Result<Vec<Vec<u32>>> {
    let (batch, sequence, _) = embeds.dims3()?;
    let decoder = model.decoder();
    let mut sampler = Sampler::new(batch, options.temperature, options.seed);
    let mut mask: Vec<Vec<bool>> = mask.chunks_exact(sequence.max(1)).map(<[bool]>::to_vec).collect();
    let mut answers = vec![Vec::new(); batch];
    let mut finished = vec![false; batch];
    if options.max_new_tokens == 0 {
        return Ok(answers);
    }
    let (mut last, mut cache) = prefill(decoder, pass, embeds, &mask, sequence + options.max_new_tokens)?;
    let pass = &following(pass, batch, sequence)?;
    for step in 1..=options.max_new_tokens {
        let mut logits = decoder.text_logits(pass, &last)?.to_dtype(DType::F32)?;
        if options.temperature > 0.0 && options.vocabulary < logits.dim(1)? {
            logits = logits.narrow(1, 0, options.vocabulary)?.contiguous()?;
        }
        let mut drawn = sampler.draw(&logits)?;
        for (row, token) in drawn.iter_mut().enumerate() {
            if finished[row] {
                *token = options.pad;
            } else {
                answers[row].push(*token);
                finished[row] = options.stop.contains(token);
            }
        }
        on_token(&drawn);
        if step == options.max_new_tokens || finished.iter().all(|f| *f) {
            break;
        }
        mask.iter_mut().for_each(|row| row.push(true));
        let input = decoder.embed(pass, &drawn, batch)?;
        last = decoder.forward_last(pass, &input, &Placement::continued(&mask, 1), &mut cache)?;
    }
    Ok(answers)
}
