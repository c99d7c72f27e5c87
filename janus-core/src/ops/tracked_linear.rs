//! Product with a weight under training: `y = x·Wᵀ + b` with gradients for all three.
//!
//! candle's own would copy the input's gradient out of a product of its own, and add the bias and its gradient in passes over
//! the whole result.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::unrolled::transpose;
use super::values;
use crate::kernel::{Finish, Rows, Term, product};

/// `x·Wᵀ + b` with `x: [.., in]`, `weight: [out, in]`, `bias: [out]`, all on the processor and of one type, f32 or bf16;
/// returns `[.., out]` in that type.
///
/// # Errors
/// Shapes that do not fit, or other types.
pub(super) fn tracked_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => x.apply_op3(weight, bias, TrackedLinear),
        None => x.apply_op2(weight, TrackedLinear),
    }
}

struct TrackedLinear;

impl TrackedLinear {
    fn forward(
        parts: [(&CpuStorage, &Layout); 2],
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let [(x, lx), (weight, lw)] = parts;
        let (out, input) = lw.shape().dims2()?;
        let mut dims = lx.dims().to_vec();
        let bias_count = bias.map(|(_, layout)| layout.shape().elem_count());
        if dims.last() != Some(&input) || bias_count.is_some_and(|count| count != out) {
            bail!("input of shape {dims:?} and a bias of {bias_count:?} do not fit a weight of shape [{out}, {input}]");
        }
        let dtype = values::dtype_of(x);
        let (x, weight) = (values::read(x, lx)?, values::read(weight, lw)?);
        let bias = bias.map(|(bias, layout)| values::read(bias, layout)).transpose()?;
        let rows = x.len() / input.max(1);
        let mut y = vec![0f32; rows * out];
        let term = Term::transposed(Rows::dense(&x, rows, input), Rows::dense(&weight, out, input));
        product(&[term], Finish { bias: bias.as_deref(), ..Finish::default() }, &mut y, out);
        if let Some(last) = dims.last_mut() {
            *last = out;
        }
        Ok((values::store(y, dtype)?, Shape::from(dims)))
    }

    /// `dx = dy·W`, `dW = dyᵀ·x`, `db = Σ dy`, of those that are tracked.
    fn backward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, gradient: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (out, input) = weight.dims2()?;
        let rows = x.elem_count() / input.max(1);
        values::with_values(gradient, |dy| {
            let dx = if x.track_op() {
                let mut dx = vec![0f32; rows * input];
                values::with_values(weight, |weight| {
                    let term = Term::plain(Rows::dense(dy, rows, out), Rows::dense(weight, out, input));
                    product(&[term], Finish::default(), &mut dx, input);
                    Ok(())
                })?;
                Some(values::tensor(dx, x.shape(), x)?)
            } else {
                None
            };
            let d_weight = if weight.track_op() {
                let (mut turned, mut d_weight) = (Vec::new(), vec![0f32; out * input]);
                transpose(dy, out, &mut turned);
                values::with_values(x, |x| {
                    let term = Term::plain(Rows::dense(&turned, out, rows), Rows::dense(x, rows, input));
                    product(&[term], Finish::default(), &mut d_weight, input);
                    Ok(())
                })?;
                Some(values::tensor(d_weight, weight.shape(), weight)?)
            } else {
                None
            };
            let d_bias = match bias {
                Some(bias) if bias.track_op() => Some(values::tensor(values::column_sums(dy, out), out, bias)?),
                _ => None,
            };
            Ok([dx, d_weight, d_bias])
        })
    }
}

impl CustomOp2 for TrackedLinear {
    fn name(&self) -> &'static str {
        "tracked-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, weight: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::forward([(x, lx), (weight, lw)], None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, d_weight, _] = Self::backward(x, weight, None, gradient)?;
        Ok((dx, d_weight))
    }
}

impl CustomOp3 for TrackedLinear {
    fn name(&self) -> &'static str {
        "tracked-linear-with-bias"
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
        Self::forward([(x, lx), (weight, lw)], Some((bias, lb)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, d_weight, d_bias] = Self::backward(x, weight, Some(bias), gradient)?;
        Ok((dx, d_weight, d_bias))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;
    use crate::ops::check;
    use crate::ops::linear::composed_linear;

    /// Against candle's own, over more rows than a block of the product has, with and without a bias.
    #[test]
    fn result_and_gradients_agree_with_candle() -> Result<()> {
        for (dims, out, with_bias) in
            [(vec![3, 37, 21], 13, true), (vec![70, 33], 48, false), (vec![2, 5, 7, 9], 4, true)]
        {
            let input = dims[dims.len() - 1];
            let x = Var::from_tensor(&check::tensor(&dims, 1))?;
            let weight = Var::from_tensor(&check::tensor(&[out, input], 2))?;
            let bias = Var::from_tensor(&check::tensor(&[out], 3))?;
            let bias = with_bias.then_some(&*bias);
            let (y, truth) = (tracked_linear(&x, &weight, bias)?, composed_linear(&x, &weight, bias)?);
            check::close(&y, &truth, 1e-5);
            let g = check::tensor(y.dims(), 4);
            let (ours, theirs) = ((y * &g)?.sum_all()?.backward()?, (truth * &g)?.sum_all()?.backward()?);
            for variable in [Some(&*x), Some(&*weight), bias].into_iter().flatten() {
                check::close(ours.get(variable).expect("tracked"), theirs.get(variable).expect("tracked"), 2e-5);
            }
        }
        Ok(())
    }

    #[test]
    fn the_gradients_agree_with_finite_differences() {
        check::gradients(&[&[3, 2, 5], &[4, 5], &[4]], |t| tracked_linear(&t[0], &t[1], Some(&t[2])));
        check::gradients(&[&[3, 5], &[4, 5]], |t| tracked_linear(&t[0], &t[1], None));
    }

    #[test]
    fn an_untracked_input_gets_no_gradient_and_bf16_stays_it() -> Result<()> {
        let x = check::tensor(&[6, 5], 1).to_dtype(DType::BF16)?;
        let weight = Var::from_tensor(&check::tensor(&[4, 5], 2).to_dtype(DType::BF16)?)?;
        let y = tracked_linear(&x, &weight, None)?;
        assert_eq!(y.dtype(), DType::BF16);
        let gradients = y.to_dtype(DType::F32)?.sum_all()?.backward()?;
        assert!(gradients.get(&x).is_none());
        assert_eq!(gradients.get(&weight).map(Tensor::dtype), Some(DType::BF16));
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (x, weight) = (check::tensor(&[6, 5], 1), check::tensor(&[4, 7], 2));
        assert!(tracked_linear(&x, &weight, None).is_err());
        let weight = check::tensor(&[4, 5], 2);
        assert!(tracked_linear(&x, &weight, Some(&check::tensor(&[5], 3))).is_err());
    }
}
