//! Drawing tokens: answers from the text head, image codes from the generation head.
//!
//! What rows of a batch have in common is computed once (`prefill`).

mod codes;
mod prefill;
mod text;

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::error::Result;

pub use codes::{CodeOptions, CodePrompts, CodeStep, PromptImages, generate_codes, generate_first_codes};
pub use text::{TextOptions, generate_text};

/// Draws one token a step from rows of logits, each row with its own sequence of random numbers.
struct Sampler(Vec<LogitsProcessor>);

impl Sampler {
    /// `temperature` 0 takes the best token.
    fn new(rows: usize, temperature: f64, seed: u64) -> Self {
        let sampling = if temperature > 0.0 { Sampling::All { temperature } } else { Sampling::ArgMax };
        Self(
            (0..rows as u64)
                .map(|row| LogitsProcessor::from_sampling(seed.wrapping_add(row), sampling.clone()))
                .collect(),
        )
    }

    /// `logits: [rows, classes]`; returns one class a row.
    fn draw(&mut self, logits: &Tensor) -> Result<Vec<u32>> {
        // On the processor, so that equal logits draw equal tokens wherever they were computed.
        let logits = logits.to_device(&Device::Cpu)?;
        let mut drawn = Vec::with_capacity(self.0.len());
        for (row, sampler) in self.0.iter_mut().enumerate() {
            drawn.push(sampler.sample(&logits.get(row)?)?);
        }
        Ok(drawn)
    }
}

#[cfg(test)]
mod tests;
