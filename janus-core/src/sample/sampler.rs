//! One token out of a row of logits.

use candle_core::{D, DType, Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::error::{ModelError, Result};
use crate::ops::is_composed;

/// Below it the best token is taken, as at 0: the reciprocal of a smaller one soon is no f32 any more, and nothing but the best
/// would be drawn.
const LEAST_TEMPERATURE: f64 = 1e-30;

/// Draws the tokens of one row, with its own sequence of random numbers.
pub(super) struct Sampler {
    processor: LogitsProcessor,
    temperature: f64,
}

impl Sampler {
    /// `temperature` 0 takes the best token.
    pub(super) fn new(temperature: f64, seed: u64) -> Self {
        let sampling = if temperature >= LEAST_TEMPERATURE { Sampling::All { temperature } } else { Sampling::ArgMax };
        Self { processor: LogitsProcessor::from_sampling(seed, sampling), temperature }
    }

    fn is_greedy(&self) -> bool {
        self.temperature < LEAST_TEMPERATURE
    }

    /// `logits: [classes]` on the processor, f32; `row` is what an error calls it.
    fn draw(&mut self, logits: Tensor, row: usize) -> Result<u32> {
        let values = logits.to_vec1::<f32>()?;
        if let Some(value) = values.iter().copied().find(|value| !value.is_finite()) {
            return Err(ModelError::NotFinite { what: "logits", row, value }.into());
        }
        // What a small temperature would lift out of the numbers is counted from the largest down, which is the same to a
        // softmax.
        let largest = values.iter().copied().fold(f32::MIN, f32::max);
        let overflows = |value: &f32| !((f64::from(*value) / self.temperature) as f32).is_finite();
        let is_lifted = !self.is_greedy() && values.iter().any(overflows);
        let logits = if is_lifted { (logits - f64::from(largest))? } else { logits };
        Ok(self.processor.sample(&logits)?)
    }
}

/// One class of each row of `logits: [rows, classes]`, of the first `within` classes where a row that is not greedy says so.
/// [`ModelError::NotFinite`] for rows in which a class would be drawn of nothing; the others are drawn all the same.
///
/// # Errors
/// The tensor engine's.
pub(super) fn draw(
    rows: &mut [(&mut Sampler, Option<usize>)],
    logits: &Tensor,
    best: &mut Best,
) -> Result<Vec<Result<u32>>> {
    if is_composed(logits.device())
        && rows.iter().all(|(sampler, _)| sampler.is_greedy())
        && let Some(best) = best.of(logits)?
    {
        return Ok(best.into_iter().map(Ok).collect());
    }
    // On the processor, so that equal logits draw equal tokens wherever they were computed.
    let logits = logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let mut drawn = Vec::with_capacity(rows.len());
    for (row, (sampler, within)) in rows.iter_mut().enumerate() {
        let mut logits = logits.get(row)?;
        if let Some(within) = within.filter(|within| !sampler.is_greedy() && *within < logits.elem_count()) {
            logits = logits.narrow(0, 0, within)?;
        }
        drawn.push(sampler.draw(logits, row));
    }
    Ok(drawn)
}

/// Finds the largest logits where they lie, so that some bytes a row are waited for and not all of them.
#[derive(Default)]
pub(super) struct Best {
    /// How many classes there are from each one on; from the first time on.
    remaining: Option<Tensor>,
}

impl Best {
    /// The classes of the largest logits, of equal ones the first, as on the processor. `None` where one is not finite.
    fn of(&mut self, logits: &Tensor) -> Result<Option<Vec<u32>>> {
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
}
