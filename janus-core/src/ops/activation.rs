//! Activations: exact GELU (by erf, not the tanh approximation) and the gated SiLU of the decoder.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::composed::is_composed;
use super::values;
use crate::kernel::row_math::{gelu_backward_row, gelu_row, silu_gate_d_gate_row, silu_gate_row};

/// Elements per parallel piece.
const CHUNK: usize = 1 << 13;

/// `x · Φ(x)`, exact (Hendrycks and Gimpel, arXiv:1606.08415). Any shape.
///
/// # Errors
/// A type other than f32 and bf16.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if is_composed(x.device()) {
        return x.to_dtype(DType::F32)?.gelu_erf()?.to_dtype(x.dtype());
    }
    if x.track_op() { x.apply_op1(Gelu) } else { x.apply_op1_no_bwd(&Gelu) }
}

/// `1 / (1 + exp(-x))`.
///
/// # Errors
/// The tensor engine's.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    if is_composed(x.device()) {
        // By the hyperbolic tangent, whose slope stays finite where `exp(-x)` is not.
        return ((x * 0.5)?.tanh()? * 0.5)? + 0.5;
    }
    candle_nn::ops::sigmoid(x)
}

/// `silu(gate) · up` with `silu(x) = x / (1 + exp(-x))` (Shazeer, arXiv:2002.05202). Equal shapes.
///
/// # Errors
/// Shapes that differ.
pub fn silu_gate(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if is_composed(gate.device()) {
        return composed_silu_gate(gate, up);
    }
    if gate.track_op() || up.track_op() { gate.apply_op2(up, SiluGate) } else { gate.apply_op2_no_bwd(up, &SiluGate) }
}

/// The same by candle's operations: the slow truth, and the path of other devices.
fn composed_silu_gate(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    (gate.to_dtype(DType::F32)?.silu()? * up.to_dtype(DType::F32)?)?.to_dtype(gate.dtype())
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values::read(storage, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| gelu_row(x, y));
        Ok((values::store(y, values::dtype_of(storage))?, layout.shape().clone()))
    }

    /// `d/dx = Φ(x) + x·φ(x)`.
    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0f32; x.elem_count()];
        values::with_values(x, |x| {
            values::with_values(gradient, |dy| {
                let inputs = x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK));
                dx.par_chunks_mut(CHUNK).zip(inputs).for_each(|(dx, (x, dy))| gelu_backward_row(x, dy, dx));
                Ok(())
            })
        })?;
        Ok(Some(values::tensor(dx, x.shape(), x)?))
    }
}

struct SiluGate;

impl CustomOp2 for SiluGate {
    fn name(&self) -> &'static str {
        "silu-gate"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, lg: &Layout, up: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        if lg.dims() != lu.dims() {
            bail!("gate of shape {:?} and up of shape {:?} differ", lg.dims(), lu.dims());
        }
        let dtype = values::dtype_of(gate);
        let (gate, up) = (values::read(gate, lg)?, values::read(up, lu)?);
        let mut y = vec![0f32; gate.len()];
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
        y.par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (gate, up))| silu_gate_row(gate, up, y));
        Ok((values::store(y, dtype)?, lg.shape().clone()))
    }

    /// `d gate = dy·up·σ(g)·(1 + g·(1 - σ(g)))`, `d up = dy·g·σ(g)`.
    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let count = gate.elem_count();
        let (mut d_gate, mut d_up) = (vec![0f32; count], vec![0f32; count]);
        values::with_values(gate, |g| {
            values::with_values(up, |u| {
                values::with_values(gradient, |dy| {
                    let outputs = d_gate.par_chunks_mut(CHUNK).zip(d_up.par_chunks_mut(CHUNK));
                    let inputs = g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
                    outputs.zip(inputs).for_each(|((d_gate, d_up), ((g, u), dy))| {
                        silu_gate_d_gate_row(g, u, dy, d_gate);
                        silu_gate_row(g, dy, d_up);
                    });
                    Ok(())
                })
            })
        })?;
        Ok((Some(values::tensor(d_gate, gate.shape(), gate)?), Some(values::tensor(d_up, up.shape(), up)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn the_composed_sigmoid_agrees_also_far_from_zero() -> Result<()> {
        let x = candle_core::Var::new(
            &[-200f32, -90.0, -3.0, -0.1, 0.0, 0.7, 5.0, 90.0, 200.0],
            &candle_core::Device::Cpu,
        )?;
        let outcome = |y: Tensor| -> Result<(Tensor, Tensor)> {
            let gradients = y.sum_all()?.backward()?;
            Ok((y, gradients.get(&x).unwrap().clone()))
        };
        let (fast, fast_slope) = outcome(sigmoid(&x)?)?;
        let (slow, slow_slope) = crate::ops::with_composed(|| outcome(sigmoid(&x)?))?;
        check::close(&slow, &fast, 1e-6);
        check::close(&slow_slope, &fast_slope, 1e-6);
        Ok(())
    }

    #[test]
    fn the_fused_activations_agree_with_candle() -> Result<()> {
        let (x, u) = ((check::tensor(&[4, 31], 1) * 6.0)?, check::tensor(&[4, 31], 2));
        check::close(&gelu(&x)?, &x.gelu_erf()?, 2e-6);
        check::close(&silu_gate(&x, &u)?, &(x.silu()? * &u)?, 2e-6);
        Ok(())
    }

    #[test]
    fn the_gradients_agree_with_finite_differences() {
        check::gradients(&[&[3, 5]], |t| gelu(&t[0]));
        check::gradients(&[&[3, 5], &[3, 5]], |t| silu_gate(&t[0], &t[1]));
    }

    #[test]
    fn far_out_values_stay_finite() -> Result<()> {
        let x = Tensor::new(&[-200f32, -90.0, 90.0, 200.0], &candle_core::Device::Cpu)?;
        let y: Vec<f32> = silu_gate(&x, &x)?.to_vec1()?;
        assert!(y.iter().all(|v| v.is_finite()), "{y:?}");
        Ok(())
    }
}
