//! Convolution whose three gradients flow, on the processor: the products of `unrolled`, and for 3 x 3 kernels with a
//! margin of one Winograd's both ways, for the gradient of their input is such a convolution itself.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::conv2d::{Around, by_winograd, is_winograd};
use super::unrolled::Geometry;
use super::values;

/// As [`super::conv2d::conv2d`].
pub(super) fn tracked(
    x: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let no_bias = || Tensor::zeros(kernel.dim(0)?, DType::F32, kernel.device());
    let bias = bias.map_or_else(no_bias, |bias| Ok(bias.clone()))?;
    // Contiguous where the pixels already lie so; the layout is the operation's own.
    let pixels = x.permute((0, 2, 3, 1))?;
    pixels.apply_op3(kernel, &bias, Convolution { stride, padding })?.permute((0, 3, 1, 2))
}

/// Of `[batch, height, width, in]`, `[out, in, kh, kw]` and `[out]`: `[batch, height', width', out]`.
struct Convolution {
    stride: usize,
    padding: usize,
}

impl Convolution {
    fn geometry(&self, x: &[usize], kernel: &[usize]) -> Result<(usize, usize, Geometry)> {
        let (&[batch, height, width, input], &[out, _, kh, kw]) = (x, kernel) else {
            bail!("pixels {x:?} and a kernel {kernel:?}, expected four dimensions each");
        };
        Ok((batch, out, Geometry::new(input, [height, width], [kh, kw], self.stride, self.padding)))
    }

    fn is_winograd(&self, kernel: &[usize], input: usize) -> bool {
        is_winograd([kernel[2], kernel[3]], self.stride, self.padding, input)
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        kernel: &CpuStorage,
        lk: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, out, geometry) = self.geometry(lx.dims(), lk.dims())?;
        let dtype = values::dtype_of(x);
        let (x, kernel, bias) = (values::read(x, lx)?, values::read(kernel, lk)?, values::read(bias, lb)?);
        let y = if self.is_winograd(lk.dims(), lx.dims()[3]) {
            let sizes = [batch, lx.dims()[1], lx.dims()[2], lx.dims()[3]];
            by_winograd(&x, sizes, &kernel, out, Some(&bias), &Around::default(), None)?
        } else {
            geometry.run(batch, out, &x, &kernel, Some(&bias), None)
        };
        let [height, width] = geometry.out_size();
        Ok((values::store(y, dtype)?, Shape::from((batch, height, width, out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, out, geometry) = self.geometry(x.dims(), kernel.dims())?;
        values::with_values(gradient, |dy| {
            let dx = if x.track_op() {
                let dx = values::with_values(kernel, |weights| {
                    if self.is_winograd(kernel.dims(), out) {
                        let turned = turned_over(weights, out, x.dims()[3]);
                        let sizes = [batch, x.dims()[1], x.dims()[2], out];
                        return by_winograd(dy, sizes, &turned, x.dims()[3], None, &Around::default(), None);
                    }
                    Ok(geometry.input_gradient(batch, out, dy, weights))
                })?;
                Some(values::tensor(dx, x.shape(), x)?)
            } else {
                None
            };
            let d_kernel = if kernel.track_op() {
                let d_kernel = values::with_values(x, |x| Ok(geometry.kernel_gradient(batch, out, x, dy)))?;
                Some(values::tensor(d_kernel, kernel.shape(), kernel)?)
            } else {
                None
            };
            let d_bias =
                if bias.track_op() { Some(values::tensor(values::column_sums(dy, out), out, bias)?) } else { None };
            Ok((dx, d_kernel, d_bias))
        })
    }
}

/// `[out, in, 3, 3]` as the kernel `[in, out, 3, 3]` that takes a gradient back: each upside down and left to right.
pub(super) fn turned_over(kernel: &[f32], out: usize, input: usize) -> Vec<f32> {
    const TAPS: usize = 9;
    let mut turned = vec![0f32; kernel.len()];
    for (o, kernels) in kernel.chunks_exact((input * TAPS).max(1)).enumerate() {
        for (i, taps) in kernels.chunks_exact(TAPS).enumerate() {
            let to = &mut turned[(i * out + o) * TAPS..][..TAPS];
            to.iter_mut().zip(taps.iter().rev()).for_each(|(to, tap)| *to = *tap);
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::check;
    use crate::ops::conv2d::composed;

    /// Against candle's own, also where products are cut into bands and 3 x 3 kernels go through Winograd's transforms.
    #[test]
    fn result_and_gradients_agree_with_candle() -> Result<()> {
        let cases = [
            ([2, 18, 9, 7], 21, 3, 1, 1),
            ([3, 16, 8, 10], 5, 3, 1, 1),
            ([2, 5, 8, 6], 17, 3, 1, 1),
            ([2, 20, 10, 12], 18, 3, 2, 0),
            ([1, 3, 12, 8], 6, 4, 4, 0),
            ([3, 19, 5, 6], 7, 1, 1, 0),
            ([1, 24, 66, 70], 17, 3, 2, 0),
        ];
        for (shape, out, k, stride, padding) in cases {
            let x = Var::from_tensor(&check::tensor(&shape, 1))?;
            let kernel = Var::from_tensor(&check::tensor(&[out, shape[1], k, k], 2))?;
            let bias = Var::from_tensor(&check::tensor(&[out], 3))?;
            let fast = tracked(&x, &kernel, Some(&bias), stride, padding)?;
            let slow = composed(&x, &kernel, Some(&bias), stride, padding)?;
            check::close(&fast, &slow, 2e-4);
            let g = check::tensor(slow.dims(), 4);
            let fast = (fast * &g)?.sum_all()?.backward()?;
            let slow = (slow * &g)?.sum_all()?.backward()?;
            for var in [&x, &kernel, &bias] {
                let (fast, slow) = (fast.get(var).unwrap(), slow.get(var).unwrap());
                let largest = slow.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
                check::close(fast, slow, 2e-5 * largest.max(1.0));
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_frozen_gets_no_gradient() -> Result<()> {
        let x = Var::from_tensor(&check::tensor(&[1, 4, 5, 6], 1))?;
        let kernel = check::tensor(&[3, 4, 3, 3], 2);
        let gradients = tracked(&x, &kernel, None, 1, 1)?.sum_all()?.backward()?;
        assert!(gradients.get(&x).is_some() && gradients.get(&kernel).is_none());
        Ok(())
    }
}
