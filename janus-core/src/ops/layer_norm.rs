//! Layer norm with weight and bias over the last dimension (Ba, Kiros, Hinton, arXiv:1607.06450).

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};

use super::composed::{is_composed, over_root};
use super::norm_rows::{each_row, each_row_back};
use super::values;
use crate::kernel::row_math::{layer_norm_backward_row, layer_norm_row, norm_gradients_row};

/// `x: [.., width]`, `weight` and `bias`: `[width]`; returns `[.., width]` in `x`'s type. Gradients flow to all three.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if is_composed(x.device()) {
        return composed(x, weight, bias, eps);
    }
    let operation = LayerNorm { eps };
    if x.track_op() || weight.track_op() || bias.track_op() {
        x.apply_op3(weight, bias, operation)
    } else {
        x.apply_op3_no_bwd(weight, bias, &operation)
    }
}

/// The same by candle's operations: the slow truth, and the path of other devices.
fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let unit = over_root(&centred, &variance, eps)?;
    unit.broadcast_mul(&weight.to_dtype(DType::F32)?)?.broadcast_add(&bias.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

struct LayerNorm {
    eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        weight: &CpuStorage,
        lw: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = lw.shape().elem_count();
        if width == 0 || lx.dims().last() != Some(&width) || lb.shape().elem_count() != width {
            bail!("input of shape {:?} does not fit a norm of width {width}", lx.dims());
        }
        let dtype = values::dtype_of(x);
        let (x, weight, bias) = (values::read(x, lx)?, values::read(weight, lw)?, values::read(bias, lb)?);
        let mut y = vec![0f32; x.len()];
        each_row(&x, width, &mut y, |x, y| layer_norm_row(x, &weight, &bias, self.eps as f32, y));
        Ok((values::store(y, dtype)?, lx.shape().clone()))
    }

    /// With `n = (x - mean)·s`: `dx = s·(g·dy - mean(g·dy) - n·mean(g·dy·n))`, `dg = Σ dy·n`, `db = Σ dy`.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = weight.elem_count();
        let (eps, nothing) = (self.eps as f32, vec![0f32; width]);
        let mut dx = vec![0f32; if x.track_op() { x.elem_count() } else { 0 }];
        let (mut dw, mut db) = (vec![0f32; width], vec![0f32; width]);
        values::with_values(x, |xs| {
            values::with_values(weight, |w| {
                values::with_values(gradient, |dy| {
                    each_row_back(xs, dy, width, &mut dx, |x, dy, dx| {
                        layer_norm_backward_row(x, w, eps, dy, &nothing, dx);
                    });
                    if weight.track_op() || bias.track_op() {
                        for (x, dy) in xs.chunks_exact(width).zip(dy.chunks_exact(width)) {
                            norm_gradients_row(x, true, eps, dy, &mut dw, &mut db);
                        }
                    }
                    Ok(())
                })
            })
        })?;
        let keep = |tensor: &Tensor, values: Vec<f32>| -> Result<Option<Tensor>> {
            if tensor.track_op() { Ok(Some(values::tensor(values, tensor.shape(), tensor)?)) } else { Ok(None) }
        };
        Ok((keep(x, dx)?, keep(weight, dw)?, keep(bias, db)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn the_fused_norm_agrees_with_the_composed_one() -> Result<()> {
        let (x, w, b) = (check::tensor(&[3, 5, 24], 1), check::tensor(&[24], 2), check::tensor(&[24], 3));
        check::close(&layer_norm(&x, &w, &b, 1e-6)?, &composed(&x, &w, &b, 1e-6)?, 2e-6);
        let (x, w, b) = (x.to_dtype(DType::BF16)?, w.to_dtype(DType::BF16)?, b.to_dtype(DType::BF16)?);
        check::close(&layer_norm(&x, &w, &b, 1e-6)?, &composed(&x, &w, &b, 1e-6)?, 2e-2);
        Ok(())
    }

    #[test]
    fn the_gradients_agree_with_finite_differences() {
        check::gradients(&[&[2, 3, 5], &[5], &[5]], |t| layer_norm(&t[0], &t[1], &t[2], 1e-2));
    }
}
