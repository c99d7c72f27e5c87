//! Dropout whose mask is a function of a key: forward, backward and any recomputation draw the same one.
//!
//! On other devices the mask is drawn there, by another function of the key that is composed of candle's operations: bringing
//! one for every site from the processor would take longer than the pass.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
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
        let factors = if x.device().is_cpu() {
            let mut factors = vec![1f32; x.elem_count()];
            operation.apply(&mut factors);
            Tensor::from_vec(factors, x.dims(), x.device())?
        } else {
            operation.factors(x.dims(), x.device())?
        };
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

/// Odd multipliers with bits in all places, from the finaliser of MurmurHash3 (Appleby, 2011) and Knuth's for the counter.
const COUNTER: u32 = 0x9e37_79b1;
const FIRST: u32 = 0x85eb_ca6b;
const SECOND: u32 = 0xc2b2_ae35;

impl Dropout {
    /// What each value is multiplied by, drawn on the device: no more than the numbers of rows and columns is brought there.
    fn factors(&self, dims: &[usize], device: &Device) -> Result<Tensor> {
        let columns = dims.last().copied().unwrap_or(1);
        let rows = dims.iter().product::<usize>() / columns.max(1);
        let count = |end: usize| Tensor::arange(0, u32::try_from(end).unwrap_or(u32::MAX), device);
        let scramble = |z: &Tensor, multiplier: u32, more: u32| z.affine(f64::from(multiplier), f64::from(more));
        // Higher bits come down by a division and go in by a sum: candle has no shift and no exclusive or.
        let fold = |z: &Tensor, bits: u32| z + z.broadcast_div(&Tensor::new(1u32 << bits, device)?)?;
        let hash = |places: Tensor, first: u32, second: u32| -> Result<Tensor> {
            let mut z = scramble(&places, COUNTER, first)?;
            for (bits, multiplier) in [(16, FIRST), (13, SECOND), (15, COUNTER), (16, FIRST)] {
                z = scramble(&fold(&z, bits)?, multiplier, second)?;
            }
            Ok(z)
        };
        let (low, high) = (self.key as u32, (self.key >> 32) as u32);
        let row = hash(count(rows)?, low, high)?.reshape((rows, 1))?;
        let column = hash(count(columns)?, !high, low)?.reshape((1, columns))?;
        // A sum alone would give rows that differ by a constant.
        let mut z = scramble(&row, 2, 1)?.broadcast_mul(&fold(&column, 16)?)?.broadcast_add(&row)?;
        for (bits, multiplier) in [(16, FIRST), (15, SECOND), (13, COUNTER)] {
            z = scramble(&fold(&z, bits)?, multiplier, SECOND)?;
        }
        let least = (self.probability * f64::from(u32::MAX)) as u32;
        let is_kept = fold(&z, 16)?.broadcast_ge(&Tensor::new(least, device)?)?;
        is_kept.to_dtype(DType::F32)?.affine(1.0 / (1.0 - self.probability), 0.0)?.reshape(dims)
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

    /// Shares of zeros, over all and where the neighbour in a row, in a column or under the next key is zero, too.
    #[test]
    fn masks_of_a_device_are_independent_of_place_and_key() -> Result<()> {
        let (rows, columns, probability) = (400, 250, 0.3);
        let zeros = |key: u64| -> Result<Vec<Vec<bool>>> {
            let factors = Dropout { probability, key }.factors(&[rows, columns], &Device::Cpu)?;
            let factors: Vec<Vec<f32>> = factors.to_vec2()?;
            let kept = (1.0 / (1.0 - probability)) as f32;
            assert!(factors.iter().flatten().all(|f| *f == 0.0 || *f == kept));
            Ok(factors.into_iter().map(|row| row.into_iter().map(|f| f == 0.0).collect()).collect())
        };
        for key in [0, 1, 2, 0xffff_ffff, 1 << 32, noise::key_of("a"), u64::MAX] {
            let (one, next) = (zeros(key)?, zeros(key.wrapping_add(1))?);
            assert_eq!(one, zeros(key)?);
            let pairs = |other: &dyn Fn(usize, usize) -> bool| {
                let places = (0..rows - 1).flat_map(|r| (0..columns - 1).map(move |c| (r, c)));
                let both = places.filter(|(r, c)| one[*r][*c] && other(*r, *c)).count();
                both as f64 / ((rows - 1) * (columns - 1)) as f64
            };
            // Standard deviations of a share of 0.3 and of 0.09 over 100,000 places: 0.0015 and 0.0009.
            assert!((pairs(&|_, _| true) - 0.3).abs() < 0.007, "{key}: {}", pairs(&|_, _| true));
            for both in [pairs(&|r, c| one[r][c + 1]), pairs(&|r, c| one[r + 1][c]), pairs(&|r, c| next[r][c])] {
                assert!((both - 0.09).abs() < 0.005, "{key}: {both}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        check::gradients(&[&[3, 7]], |t| dropout(&t[0], 0.4, 3));
    }
}
