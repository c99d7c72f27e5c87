//! Answers: prompt embeddings in, token ids out.

use candle_core::Tensor;

use super::session::{Kind, RowOptions, Session, row_error};
use crate::error::Result;
use crate::model::Janus;
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
    let mut answers = vec![Vec::new(); batch];
    let TextOptions { max_new_tokens, temperature, seed, stop, pad, vocabulary } = options;
    if *max_new_tokens == 0 {
        return Ok(answers);
    }
    let mask: Vec<Vec<bool>> = mask.chunks_exact(sequence.max(1)).map(<[bool]>::to_vec).collect();
    let row = |row: u64| RowOptions {
        kind: Kind::Text { stop: stop.clone(), vocabulary: *vocabulary },
        most: *max_new_tokens,
        temperature: *temperature,
        seed: seed.wrapping_add(row),
    };
    let mut session = Session::new(model, usize::MAX);
    let rows = session.join(pass, embeds, &mask, (0..batch as u64).map(row).collect())?;
    let rows = rows.expect("a session without bounds has room");
    while !session.is_idle() {
        let mut ids = vec![*pad; batch];
        for drawn in session.step(&mut |_| {})? {
            let Ok(place) = rows.binary_search(&drawn.row) else { continue };
            ids[place] = drawn.token.map_err(|error| row_error(error, place))?;
            answers[place].push(ids[place]);
        }
        on_token(&ids);
    }
    Ok(answers)
}
