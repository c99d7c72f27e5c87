//! Product with a frozen weight: `y = x·Wᵀ + b`, whose backward forms the gradient of `x` only.
//!
//! candle's own product would also form a weight-sized gradient for every frozen matrix.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::composed::is_composed;
use super::input_gradient;
use super::tracked_linear::tracked_linear;
use super::values::{Stored, with_slices};
use super::weight::{Weight, with_weights};
use crate::kernel::{Finish, Rows, SumOrder, Term, product};

impl Weight {
    /// `x·Wᵀ + b` with `x: [.., in]`, this weight `[out, in]` and `bias: [out]`; returns `[.., out]` in `x`'s type.
    ///
    /// The gradient flows to `x` only, even where the weight's values or `bias` are variables.
    ///
    /// # Errors
    /// Shapes that do not fit, or types other than f32 and bf16.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.product_in(x, bias, SumOrder::default())
    }

    /// The same, its sums made in an order on the processor.
    ///
    /// # Errors
    /// As [`Weight::product`].
    pub fn product_in(&self, x: &Tensor, bias: Option<&Tensor>, order: SumOrder) -> Result<Tensor> {
        let weight = self.prepared()?;
        let bias = bias.map(Tensor::detach);
        if is_composed(x.device()) || !weight.meets(x.dtype()) {
            return composed(x, &weight.to_dtype(x.dtype())?, bias.as_ref(), input_gradient::product);
        }
        let bias = bias.map(|bias| bias.to_dtype(x.dtype())).transpose()?;
        let x = &x.contiguous()?;
        let operation = FrozenLinear { weight, bias, order };
        if x.track_op() { x.apply_op1(operation) } else { x.apply_op1_no_bwd(&operation) }
    }

    /// `dy·W` with `dy: [.., out]` and this weight `[out, in]`; returns `[rows, in]` in `dy`'s type: the gradient of the
    /// product's input.
    ///
    /// # Errors
    /// Shapes that do not fit, types other than f32 and bf16, or a weight held in a type that `dy`'s does not meet.
    pub fn input_gradient(&self, dy: &Tensor) -> Result<Tensor> {
        let (dy, weight) = (dy.detach().contiguous()?, self.prepared()?);
        match dy.dtype() {
            DType::F32 if weight.meets(DType::F32) => gradient_in::<f32>(&dy, &weight),
            DType::BF16 if weight.meets(DType::BF16) => gradient_in::<bf16>(&dy, &weight),
            other => bail!("a gradient of type {other:?} does not meet a weight held in {:?}", weight.dtype()),
        }
    }
}

/// The same product with gradients for all three: for trainable weights.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if is_composed(x.device()) {
        return composed_linear(x, weight, bias);
    }
    let (weight, bias) = (weight.to_dtype(x.dtype())?, bias.map(|bias| bias.to_dtype(x.dtype())).transpose()?);
    tracked_linear(x, &weight, bias.as_ref())
}

/// The same by candle's operations: the slow truth, and the path of other devices.
pub(super) fn composed_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    composed(x, weight, bias, |x, weight| x.matmul(&weight.t()?))
}

/// `x·Wᵀ + b` for a `product` of `[rows, in]` and `[out, in]`.
fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    product: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (out, input) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    let rows = x.elem_count() / input.max(1);
    let weight = weight.to_dtype(x.dtype())?;
    let y = product(&x.reshape((rows, input))?, &weight)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?)?,
        None => y,
    };
    if let Some(last) = dims.last_mut() {
        *last = out;
    }
    y.reshape(dims)
}

#[derive(Debug)]
struct FrozenLinear {
    weight: Weight,
    bias: Option<Tensor>,
    order: SumOrder,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout),
            CpuStorage::BF16(_) => self.forward::<bf16>(storage, layout),
            _ => bail!("a product is computed in f32 or bf16"),
        }
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.weight.input_gradient(gradient)?.reshape(x.shape())?))
    }
}

fn gradient_in<E: Stored>(dy: &Tensor, weight: &Weight) -> Result<Tensor> {
    let (out, input) = weight.dims2()?;
    let rows = dy.elem_count() / out.max(1);
    if dy.dims().last() != Some(&out) {
        bail!("a gradient of shape {:?} does not fit a weight of shape [{out}, {input}]", dy.dims());
    }
    let mut dx = E::zeros(rows * input);
    with_slices::<E, _>(&[dy], |slices| {
        with_weights::<E, _>(&[weight], |weights| {
            let term = Term::plain(Rows::dense(slices[0], rows, out), weights[0]);
            product(&[term], Finish::default(), &mut dx, input);
            Ok(())
        })
    })?;
    Tensor::from_vec(dx, (rows, input), dy.device())
}

impl FrozenLinear {
    fn forward<E: Stored>(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out, input) = self.weight.dims2()?;
        let mut dims = layout.dims().to_vec();
        let fits = dims.last() == Some(&input) && self.bias.as_ref().is_none_or(|bias| bias.elem_count() == out);
        let (true, Some(x), Some((start, end))) = (fits, E::values(storage), layout.contiguous_offsets()) else {
            bail!("input of shape {dims:?} and bias {:?} do not fit a weight of shape [{out}, {input}]", self.bias);
        };
        let rows = layout.shape().elem_count() / input.max(1);
        let mut y = E::zeros(rows * out);
        let bias: Vec<&Tensor> = self.bias.iter().collect();
        with_weights::<E, _>(&[&self.weight], |weights| {
            with_slices::<E, _>(&bias, |bias| {
                let term = Term::transposed(Rows::dense(&x[start..end], rows, input), weights[0]).in_order(self.order);
                product(&[term], Finish { bias: bias.first().copied(), ..Finish::default() }, &mut y, out);
                Ok(())
            })
        })?;
        if let Some(last) = dims.last_mut() {
            *last = out;
        }
        Ok((E::storage(y), Shape::from(dims)))
    }
}

/// Whether a type can be computed in here.
pub fn is_supported(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;
    use candle_core::{Device, Var};

    #[test]
    fn the_frozen_product_and_its_gradient_agree_with_candle() -> Result<()> {
        for (rows, input, out) in [(1, 33, 19), (3, 40, 1300), (11, 24, 37)] {
            for dtype in [DType::F32, DType::BF16] {
                let x = Var::from_tensor(&check::tensor(&[rows, input], 1).to_dtype(dtype)?)?;
                let weight = check::tensor(&[out, input], 2).to_dtype(dtype)?;
                let bias = check::tensor(&[out], 3).to_dtype(dtype)?;
                let g = check::tensor(&[rows, out], 4);
                let fast = Weight::from(weight.clone()).product(&x, Some(&bias))?;
                let wide = Var::from_tensor(&x.as_detached_tensor().to_dtype(DType::F32)?)?;
                let slow = linear(&wide, &weight.to_dtype(DType::F32)?, Some(&bias.to_dtype(DType::F32)?))?;
                let bound = if dtype == DType::F32 { 2e-5 } else { 6e-2 };
                check::close(&fast, &slow, bound);
                let fast = (fast.to_dtype(DType::F32)? * &g)?.sum_all()?.backward()?;
                let slow = (slow * &g)?.sum_all()?.backward()?;
                let bound = if dtype == DType::F32 { 2e-4 } else { 0.6 };
                check::close(fast.get(&x).unwrap(), slow.get(&wide).unwrap(), bound);
            }
        }
        Ok(())
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() -> Result<()> {
        let x = Var::from_tensor(&check::tensor(&[5, 7], 1))?;
        let weight = Var::from_tensor(&check::tensor(&[3, 7], 2))?;
        let gradients = Weight::from(weight.as_tensor().clone()).product(&x, None)?.sum_all()?.backward()?;
        assert!(gradients.get(&weight).is_none());
        assert!(gradients.get(&x).is_some());
        Ok(())
    }

    #[test]
    fn a_misfit_is_an_error() {
        let x = Tensor::zeros((2, 5), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros((3, 7), DType::F32, &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let weight = Weight::from(weight.to_dtype(dtype).unwrap());
            assert!(weight.product(&x, None).is_err());
            assert!(weight.input_gradient(&x).is_err());
        }
    }
}
