//! Rotary position embedding, rotate-half form: pairs (j, j + half) (Su et al., arXiv:2104.09864; as
//! `transformers/models/llama/modeling_llama.py` applies it).

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::composed::is_composed;
use super::values;

/// Cosines and sines for the positions of one batch, computed once and shared by all layers.
#[derive(Debug, Clone)]
pub struct Rotary {
    batch: usize,
    sequence: usize,
    half: usize,
    cosines: Arc<Vec<f32>>,
    sines: Arc<Vec<f32>>,
    /// Both as tensors, `[batch, sequence, 1, head_dim / 2]`, from their first use on another device on.
    placed: Arc<OnceLock<(Tensor, Tensor)>>,
}

impl Rotary {
    /// Tables for `positions`, `batch` rows of equal length, at `angle = position · theta^(-2j / head_dim)`, in f32.
    pub fn new(positions: &[u32], batch: usize, head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|j| 1.0 / (theta as f32).powf(2.0 * j as f32 / head_dim as f32)).collect();
        let angles = positions.iter().flat_map(|p| frequencies.iter().map(move |f| *p as f32 * f));
        let (sines, cosines) = angles.map(f32::sin_cos).unzip();
        Self {
            batch,
            sequence: positions.len() / batch.max(1),
            half,
            cosines: Arc::new(cosines),
            sines: Arc::new(sines),
            placed: Arc::default(),
        }
    }

    /// Cosines and sines, `[batch · sequence, head_dim / 2]` each.
    pub(crate) fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cosines, &self.sines)
    }

    /// Whether the tables are those of `batch` rows of `sequence` tokens and of heads of `head_dim`.
    ///
    /// # Errors
    /// They are of another shape.
    pub(crate) fn fit(&self, batch: usize, sequence: usize, head_dim: usize) -> Result<()> {
        if (batch, sequence, head_dim) != (self.batch, self.sequence, 2 * self.half) {
            bail!(
                "{batch} x {sequence} tokens of heads of {head_dim} do not fit rotary tables of {} x {} and {}",
                self.batch,
                self.sequence,
                2 * self.half
            );
        }
        Ok(())
    }

    /// Rotates `x: [batch, sequence, heads, head_dim]`; the backward rotates the other way.
    ///
    /// # Errors
    /// Shapes that do not fit the tables.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if is_composed(x.device()) {
            return self.composed(x);
        }
        let operation = Rotate { tables: self.clone(), inverse: false };
        if x.track_op() { x.apply_op1(operation) } else { x.apply_op1_no_bwd(&operation) }
    }

    /// The same by candle's operations: the slow truth, and the path of other devices.
    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (cosines, sines) = self.on(x.device())?;
        let wide = x.to_dtype(DType::F32)?;
        let (a, b) = (wide.narrow(3, 0, self.half)?, wide.narrow(3, self.half, self.half)?);
        let first = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
        let second = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
        Tensor::cat(&[first, second], 3)?.to_dtype(x.dtype())
    }
}

impl Rotary {
    /// Cosines and sines on a device, brought there once.
    fn on(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        if let Some(placed) = self.placed.get().filter(|(cosines, _)| cosines.device().same_device(device)) {
            return Ok(placed.clone());
        }
        let shape = (self.batch, self.sequence, 1, self.half);
        let table = |values: &[f32]| Tensor::from_slice(values, shape, device);
        let made = (table(&self.cosines)?, table(&self.sines)?);
        // Where there is one of another device, this one serves this call alone.
        let _ = self.placed.set(made.clone());
        Ok(made)
    }
}

struct Rotate {
    tables: Rotary,
    inverse: bool,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let tables = &self.tables;
        let (batch, sequence, heads, head_dim) = layout.shape().dims4()?;
        tables.fit(batch, sequence, head_dim)?;
        let mut y = values::read(storage, layout)?.into_owned();
        let half = tables.half;
        let sign = if self.inverse { -1.0 } else { 1.0 };
        y.par_chunks_mut((heads * head_dim).max(1)).enumerate().for_each(|(token, row)| {
            let cosines = &tables.cosines[token * half..(token + 1) * half];
            let sines = &tables.sines[token * half..(token + 1) * half];
            for head in row.chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    let s = s * sign;
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        });
        Ok((values::store(y, values::dtype_of(storage))?, layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let inverse = Rotate { tables: self.tables.clone(), inverse: !self.inverse };
        Ok(Some(gradient.apply_op1_no_bwd(&inverse)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    const POSITIONS: [u32; 6] = [0, 1, 2, 0, 0, 7];

    #[test]
    fn the_fused_rotation_agrees_with_the_composed_one() -> Result<()> {
        let rotary = Rotary::new(&POSITIONS, 2, 8, 10_000.0);
        let x = check::tensor(&[2, 3, 5, 8], 1);
        check::close(&rotary.apply(&x)?, &rotary.composed(&x)?, 1e-6);
        let position_zero = rotary.apply(&x)?.narrow(1, 0, 1)?;
        check::close(&position_zero, &x.narrow(1, 0, 1)?, 0.0);
        Ok(())
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let rotary = Rotary::new(&POSITIONS, 2, 4, 100.0);
        check::gradients(&[&[2, 3, 2, 4]], |t| rotary.apply(&t[0]));
    }
}
