//! Dropout whose mask is a function of a key: forward, backward and any recomputation draw the same one.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::composed::is_composed;
use super::values;
use crate::noise;

/// Elements per parallel piece.
const CHUNK: usize = 1 << 14;

/// Zeroes each value with `probability` and divides the others by `1 - probability`.
///
/// # Errors
/// A type other than f32 and bf16.
pub fn dropout(x: &Tensor, probability: f64, key: u64) -> Result<Tensor> {
    if probability == 0.0 {
        return Ok(x.clone());
    }
    let operation = Dropout { probability, key };
    if is_composed(x.device()) {
        let mut factors = vec![1f32; x.elem_count()];
        operation.apply(&mut factors);
        let factors = Tensor::from_vec(factors, x.dims(), x.device())?;
        return (x.to_dtype(DType::F32)? * factors)?.to_dtype(x.dtype());
    }
    x.apply_op1(operation)
}

struct Dropout {
    probability: f64,
    key: u64,
}

impl Dropout {
    fn apply(&self, values: &mut [f32]) {
        let factor = (1.0 / (1.0 - self.probability)) as f32;
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
            for (i, value) in values.iter_mut().enumerate() {
                let index = (chunk * CHUNK + i) as u64;
                *value = if noise::uniform(self.key, index) < self.probability { 0.0 } else { *value * factor };
            }
        });
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = values::read(storage, layout)?.into_owned();
        self.apply(&mut y);
        Ok((values::store(y, values::dtype_of(storage))?, layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient.apply_op1_no_bwd(self)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn the_mask_follows_the_key_and_keeps_the_mean() -> Result<()> {
        let x = Tensor::ones((50, 400), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        let y = dropout(&x, 0.25, 9)?;
        check::close(&y, &dropout(&x, 0.25, 9)?, 0.0);
        let other: f32 = (dropout(&x, 0.25, 10)? - &y)?.abs()?.max_all()?.to_scalar()?;
        assert!(other > 1.0);
        let mean: f32 = y.mean_all()?.to_scalar()?;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let zeros: f32 = y.eq(0f32)?.to_dtype(candle_core::DType::F32)?.mean_all()?.to_scalar()?;
        assert!((zeros - 0.25).abs() < 0.02, "{zeros}");
        Ok(())
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        check::gradients(&[&[3, 7]], |t| dropout(&t[0], 0.4, 3));
    }
}
