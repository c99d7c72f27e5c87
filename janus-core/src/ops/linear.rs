//! Product with a frozen weight: `y = x·Wᵀ + b`, whose backward forms the gradient of `x` only.
//!
//! candle's own product would also form a weight-sized gradient for every frozen matrix. bf16 weights are widened panel
//! by panel, so that no weight-sized f32 copy exists at any time.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::composed::is_composed;
use super::matmul::{Matrix, multiply};
use super::{input_gradient, values};

/// Rows of a bf16 weight that are widened at a time; 1024 rows of 2048 are 8 MiB, which stays in the outer caches.
const PANEL_ROWS: usize = 1024;

/// Input rows up to which a product is a set of dot products that read the weight once, without widening it first.
const FEW_ROWS: usize = 4;

/// `x·Wᵀ + b` with `x: [.., in]`, `weight: [out, in]`, `bias: [out]`; returns `[.., out]` in `x`'s type.
///
/// The gradient flows to `x` only, even where `weight` or `bias` are variables.
///
/// # Errors
/// Shapes that do not fit, or types other than f32 and bf16.
pub fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let weight = weight.detach();
    let bias = bias.map(Tensor::detach);
    if is_composed(x.device()) {
        return composed(x, &weight, bias.as_ref(), input_gradient::product);
    }
    let operation = FrozenLinear { weight, bias };
    if x.track_op() { x.apply_op1(operation) } else { x.apply_op1_no_bwd(&operation) }
}

/// The same product by candle's operations, with gradients for all three: for trainable weights.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
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
    weight: Tensor,
    bias: Option<Tensor>,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out, input) = self.weight.dims2()?;
        let mut dims = layout.dims().to_vec();
        if dims.last() != Some(&input) {
            bail!("input of shape {dims:?} does not fit a weight of shape [{out}, {input}]");
        }
        let rows = layout.shape().elem_count() / input.max(1);
        let x = values::read(storage, layout)?;
        let mut y = vec![0f32; rows * out];
        with_weight(&self.weight, |weight| {
            forward(&x, weight, rows, input, out, &mut y);
            Ok(())
        })?;
        if let Some(bias) = &self.bias {
            values::with_values(bias, |bias| {
                if bias.len() != out {
                    bail!("bias of {} values does not fit {out} outputs", bias.len());
                }
                y.par_chunks_mut(out).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
                Ok(())
            })?;
        }
        if let Some(last) = dims.last_mut() {
            *last = out;
        }
        Ok((values::store(y, values::dtype_of(storage))?, Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (out, input) = self.weight.dims2()?;
        let rows = gradient.elem_count() / out.max(1);
        let mut dx = vec![0f32; rows * input];
        values::with_values(gradient, |dy| {
            with_weight(&self.weight, |weight| {
                backward(dy, weight, rows, input, out, &mut dx, false);
                Ok(())
            })
        })?;
        Ok(Some(values::tensor(dx, x.shape(), x)?))
    }
}

/// A weight's values as they are stored, row-major.
#[derive(Clone, Copy)]
pub(crate) enum Weight<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
}

impl<'a> Weight<'a> {
    /// `count` rows of `width` values from row `first` on.
    pub(crate) fn rows(self, first: usize, count: usize, width: usize) -> Weight<'a> {
        let range = first * width..(first + count) * width;
        match self {
            Weight::F32(values) => Weight::F32(&values[range]),
            Weight::BF16(values) => Weight::BF16(&values[range]),
        }
    }

    /// Takes row `row` off `target`, which is as wide as the weight.
    pub(crate) fn subtract_row(self, row: usize, target: &mut [f32]) {
        match self.rows(row, 1, target.len()) {
            Weight::F32(values) => target.iter_mut().zip(values).for_each(|(t, w)| *t -= w),
            Weight::BF16(values) => target.iter_mut().zip(values).for_each(|(t, w)| *t -= w.to_f32()),
        }
    }
}

/// Calls `f` with a weight's values, which must lie on the processor.
pub(crate) fn with_weight<T>(weight: &Tensor, f: impl FnOnce(Weight<'_>) -> Result<T>) -> Result<T> {
    let weight = weight.contiguous()?;
    let (storage, layout) = weight.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("weight is not contiguous") };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => f(Weight::F32(&values[start..end])),
        Storage::Cpu(CpuStorage::BF16(values)) => f(Weight::BF16(&values[start..end])),
        Storage::Cpu(other) => bail!("weights must be f32 or bf16, got {:?}", values::dtype_of(other)),
        _ => bail!("expected a weight on the processor"),
    }
}

/// `y = x·Wᵀ` of `rows` rows: `x: [rows, input]`, `W: [out, input]`, `y: [rows, out]`.
pub(crate) fn forward(x: &[f32], weight: Weight<'_>, rows: usize, input: usize, out: usize, y: &mut [f32]) {
    match weight {
        Weight::F32(w) => {
            multiply(
                Matrix::new(x, rows, input, input),
                Matrix::new(w, out, input, input).t(),
                1.0,
                y,
                out,
                false,
                true,
            );
        }
        Weight::BF16(w) if rows <= FEW_ROWS => few_rows(x, w, rows, input, out, y),
        Weight::BF16(w) => {
            let mut panel = vec![0f32; PANEL_ROWS.min(out) * input];
            for start in (0..out).step_by(PANEL_ROWS) {
                let count = PANEL_ROWS.min(out - start);
                values::widen(&w[start * input..(start + count) * input], &mut panel[..count * input]);
                let right = Matrix::new(&panel, count, input, input).t();
                multiply(Matrix::new(x, rows, input, input), right, 1.0, &mut y[start..], out, false, true);
            }
        }
    }
}

/// `dx = dy·W`, or added to `dx`: `dy: [rows, out]`, `W: [out, input]`, `dx: [rows, input]`.
pub(crate) fn backward(
    dy: &[f32],
    weight: Weight<'_>,
    rows: usize,
    input: usize,
    out: usize,
    dx: &mut [f32],
    add: bool,
) {
    match weight {
        Weight::F32(w) => {
            multiply(Matrix::new(dy, rows, out, out), Matrix::new(w, out, input, input), 1.0, dx, input, add, true);
        }
        Weight::BF16(w) => {
            let mut panel = vec![0f32; PANEL_ROWS.min(out) * input];
            for start in (0..out).step_by(PANEL_ROWS) {
                let count = PANEL_ROWS.min(out - start);
                values::widen(&w[start * input..(start + count) * input], &mut panel[..count * input]);
                let left = Matrix::new(&dy[start..], rows, count, out);
                multiply(left, Matrix::new(&panel, count, input, input), 1.0, dx, input, add || start > 0, true);
            }
        }
    }
}

/// Dot products of each weight row with each of a few input rows: bound by reading the weight once.
fn few_rows(x: &[f32], weight: &[bf16], rows: usize, input: usize, out: usize, y: &mut [f32]) {
    let mut columns = vec![0f32; out * rows];
    columns.par_chunks_mut(rows * 64).enumerate().for_each(|(block, cells)| {
        for (offset, cells) in cells.chunks_mut(rows).enumerate() {
            let start = (block * 64 + offset) * input;
            let row = &weight[start..start + input];
            for (cell, x) in cells.iter_mut().zip(x.chunks_exact(input)) {
                *cell = dot(x, row);
            }
        }
    });
    for (o, cells) in columns.chunks_exact(rows).enumerate() {
        for (r, value) in cells.iter().enumerate() {
            y[r * out + o] = *value;
        }
    }
}

/// Sum of products over sixteen running sums, so that the compiler can keep them in vector registers.
fn dot(x: &[f32], weight: &[bf16]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (x_blocks, w_blocks) = (x.chunks_exact(LANES), weight.chunks_exact(LANES));
    let tail: f32 = x_blocks.remainder().iter().zip(w_blocks.remainder()).map(|(x, w)| x * w.to_f32()).sum();
    for (x, w) in x_blocks.zip(w_blocks) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * f32::from_bits(u32::from(w[lane].to_bits()) << 16);
        }
    }
    sums.iter().sum::<f32>() + tail
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
                let fast = frozen_linear(&x, &weight, Some(&bias))?;
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
        let gradients = frozen_linear(&x, weight.as_tensor(), None)?.sum_all()?.backward()?;
        assert!(gradients.get(&weight).is_none());
        assert!(gradients.get(&x).is_some());
        Ok(())
    }

    #[test]
    fn a_misfit_is_an_error() {
        let x = Tensor::zeros((2, 5), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros((3, 7), DType::F32, &Device::Cpu).unwrap();
        assert!(frozen_linear(&x, &weight, None).is_err());
    }
}
