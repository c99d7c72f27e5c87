//! Root-mean-square norm: `y = g · x / sqrt(mean(x²) + eps)` over the last dimension (Zhang and Sennrich, arXiv:1910.07467).

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};

use super::composed::{is_composed, over_root};
use super::norm_rows::{each_row, each_row_back};
use super::values;
use crate::kernel::row_math::{norm_gradients_row, rms_norm_backward_row, rms_norm_row};

/// `x: [.., width]`, `weight: [width]`; returns `[.., width]` in `x`'s type. Gradients flow to both.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if is_composed(x.device()) {
        return composed(x, weight, eps);
    }
    let operation = RmsNorm { eps };
    if x.track_op() || weight.track_op() {
        x.apply_op2(weight, operation)
    } else {
        x.apply_op2_no_bwd(weight, &operation)
    }
}

/// The same by candle's operations: the slow truth, and the path of other devices.
fn composed(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let mean = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let unit = over_root(&wide, &mean, eps)?;
    unit.broadcast_mul(&weight.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

struct RmsNorm {
    eps: f64,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, weight: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = lw.shape().elem_count();
        if width == 0 || lx.dims().last() != Some(&width) {
            bail!("input of shape {:?} does not fit a norm of width {width}", lx.dims());
        }
        let (x, weight, dtype) = (values::read(x, lx)?, values::read(weight, lw)?, values::dtype_of(x));
        let mut y = vec![0f32; x.len()];
        each_row(&x, width, &mut y, |x, y| rms_norm_row(x, &weight, self.eps as f32, y));
        Ok((values::store(y, dtype)?, lx.shape().clone()))
    }

    /// With `s = 1/sqrt(mean(x²)+eps)`, `n = x·s`: `dx = s·(g·dy - n·mean(g·dy·n))`, `dg = Σ dy·n`.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = weight.elem_count();
        let mut dx = vec![0f32; if x.track_op() { x.elem_count() } else { 0 }];
        let (mut dw, mut no_bias) = (vec![0f32; width], vec![0f32; width]);
        let (eps, nothing) = (self.eps as f32, vec![0f32; width]);
        values::with_values(x, |xs| {
            values::with_values(weight, |w| {
                values::with_values(gradient, |dy| {
                    each_row_back(xs, dy, width, &mut dx, |x, dy, dx| {
                        rms_norm_backward_row(x, w, eps, dy, &nothing, dx);
                    });
                    if weight.track_op() {
                        for (x, dy) in xs.chunks_exact(width).zip(dy.chunks_exact(width)) {
                            norm_gradients_row(x, false, eps, dy, &mut dw, &mut no_bias);
                        }
                    }
                    Ok(())
                })
            })
        })?;
        let dx = if x.track_op() { Some(values::tensor(dx, x.shape(), x)?) } else { None };
        let dw = if weight.track_op() { Some(values::tensor(dw, weight.shape(), weight)?) } else { None };
        Ok((dx, dw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn the_fused_norm_agrees_with_the_composed_one() -> Result<()> {
        let (x, w) = (check::tensor(&[3, 5, 24], 1), check::tensor(&[24], 2));
        check::close(&rms_norm(&x, &w, 1e-6)?, &composed(&x, &w, 1e-6)?, 2e-6);
        let (x, w) = (x.to_dtype(DType::BF16)?, w.to_dtype(DType::BF16)?);
        check::close(&rms_norm(&x, &w, 1e-6)?, &composed(&x, &w, 1e-6)?, 2e-2);
        Ok(())
    }

    /// A row whose squares overflow: zeros would pass for a result.
    #[test]
    fn a_row_that_overflows_is_not_taken_for_zeros() -> Result<()> {
        let x = Tensor::from_vec(vec![1f32, 2.0, 3.0, 3e38, 1.0, -2e38], (2, 3), &candle_core::Device::Cpu)?;
        let weight = Tensor::ones(3, DType::F32, x.device())?;
        for y in [rms_norm(&x, &weight, 1e-6)?, composed(&x, &weight, 1e-6)?] {
            let rows = y.to_vec2::<f32>()?;
            assert!(rows[0].iter().all(|y| y.is_finite()) && rows[1].iter().all(|y| y.is_nan()), "{rows:?}");
        }
        Ok(())
    }

    #[test]
    fn the_gradients_agree_with_finite_differences() {
        check::gradients(&[&[2, 3, 5], &[5]], |t| rms_norm(&t[0], &t[1], 1e-2));
    }
}
