//! Drawing tokens: answers from the text head, image codes from the generation head.
//!
//! What rows of a batch have in common is computed once (`prefill`).

mod codes;
mod prefill;
mod text;

use candle_core::{D, DType, Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::error::{ModelError, Result};
use crate::ops::is_composed;

pub use codes::{CodeOptions, CodePrompts, CodeStep, PromptImages, generate_codes, generate_first_codes};
pub use text::{TextOptions, generate_text};

/// Below it the best token is taken, as at 0: the reciprocal of a smaller one soon is no f32 any more, and nothing but the best
/// would be drawn.
const LEAST_TEMPERATURE: f64 = 1e-30;

/// Draws one token a step from rows of logits, each row with its own sequence of random numbers.
struct Sampler {
    rows: Vec<LogitsProcessor>,
    temperature: f64,
    /// How many classes there are from each one on, where the logits lie; from the first draw there on.
    remaining: Option<Tensor>,
}

impl Sampler {
    /// `temperature` 0 takes the best token.
    fn new(rows: usize, temperature: f64, seed: u64) -> Self {
        let sampling = if temperature >= LEAST_TEMPERATURE { Sampling::All { temperature } } else { Sampling::ArgMax };
        let row = |row| LogitsProcessor::from_sampling(seed.wrapping_add(row), sampling.clone());
        Self { rows: (0..rows as u64).map(row).collect(), temperature, remaining: None }
    }

    /// The classes of the largest logits, of equal ones the first, as on the processor; found where the logits lie, so that some bytes a
    /// row are waited for and not all of them. `None` where one is not finite.
    fn best(&mut self, logits: &Tensor) -> Result<Option<Vec<u32>>> {
        let logits = logits.to_dtype(DType::F32)?;
        let count = logits.dim(D::Minus1)?;
        let known = self.remaining.take().filter(|known| known.dims() == [count]);
        let remaining = match known {
            Some(known) => known,
            // There are fewer than 2^24, which f32 tells apart.
            None => {
                Tensor::arange(0, count as u32, logits.device())?.to_dtype(DType::F32)?.affine(-1.0, count as f64)?
            }
        };
        let is_largest = logits.broadcast_eq(&logits.max_keepdim(D::Minus1)?)?.to_dtype(DType::F32)?;
        let first = is_largest.broadcast_mul(&remaining)?.max(D::Minus1)?.affine(-1.0, count as f64)?;
        self.remaining = Some(remaining);
        // Zero times what is not finite is not zero.
        let strays = (&logits * 0.0)?.sum(D::Minus1)?;
        let rows: Vec<Vec<f32>> = Tensor::stack(&[first, strays], 1)?.to_vec2()?;
        let found = rows.iter().map(|row| match row.as_slice() {
            [class, 0.0] => Some(*class as u32),
            _ => None,
        });
        Ok(found.collect())
    }

    /// `logits: [rows, classes]`; returns one class a row.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`]: a class would be drawn of nothing.
    fn draw(&mut self, logits: &Tensor) -> Result<Vec<u32>> {
        if self.temperature < LEAST_TEMPERATURE
            && is_composed(logits.device())
            && let Some(best) = self.best(logits)?
        {
            return Ok(best);
        }
        // On the processor, so that equal logits draw equal tokens wherever they were computed.
        let logits = logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let mut drawn = Vec::with_capacity(self.rows.len());
        for (row, sampler) in self.rows.iter_mut().enumerate() {
            let logits = logits.get(row)?;
            let values = logits.to_vec1::<f32>()?;
            if let Some(value) = values.iter().copied().find(|value| !value.is_finite()) {
                return Err(ModelError::NotFinite { what: "logits", row, value }.into());
            }
            // What a small temperature would lift out of the numbers is counted from the largest down, which is the same to a
            // softmax.
            let largest = values.iter().copied().fold(f32::MIN, f32::max);
            let overflows = |value: &f32| !((f64::from(*value) / self.temperature) as f32).is_finite();
            let is_lifted = self.temperature >= LEAST_TEMPERATURE && values.iter().any(overflows);
            let logits = if is_lifted { (logits - f64::from(largest))? } else { logits };
            drawn.push(sampler.sample(&logits)?);
        }
        Ok(drawn)
    }
}

#[cfg(test)]
mod tests;
