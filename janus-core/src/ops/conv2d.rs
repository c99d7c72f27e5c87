//! Convolution.
//!
//! 3 x 3 kernels with a margin of one go through [`crate::kernel::winograd`], with what stands around them; all others are
//! one matrix product, of the pixels themselves or of patches unrolled a band of rows at a time
//! (`unrolled`). Where a gradient is wanted, both have one of their own (`tracked_conv2d`): candle's
//! convolution is several times slower on the processor, and serves on other devices.

use candle_core::{DType, Result, Tensor};

use super::channels_last;
use super::composed::is_composed;
use super::group_norm::{GroupNorm, group_norm_silu};
use super::tracked_conv2d::tracked;
use super::unrolled::Geometry;
use super::values;
use crate::kernel::picture::Picture;
use crate::kernel::{SumOrder, winograd};

/// Input channels from which transforming tiles pays.
const LEAST_CHANNELS: usize = 16;

/// Whether a convolution goes through [`winograd`].
pub(super) fn is_winograd(kernel: [usize; 2], stride: usize, padding: usize, input: usize) -> bool {
    kernel == [3, 3] && [stride, padding] == [1, 1] && input >= LEAST_CHANNELS
}

/// What is computed together with a convolution, in this order.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around<'a> {
    /// Group norm of the input and `x · sigmoid(x)`.
    pub(crate) norm: Option<GroupNorm<'a>>,
    /// Whether every pixel becomes two by two before the convolution.
    pub(crate) doubled: bool,
    /// Added to the result, of its shape.
    pub(crate) add: Option<&'a Tensor>,
}

impl Around<'_> {
    /// What the convolution itself reads.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn before(&self, x: &Tensor) -> Result<Tensor> {
        let x = match self.norm {
            Some(norm) => group_norm_silu(x, norm)?,
            None => x.clone(),
        };
        if self.doubled { channels_last::doubled(&x) } else { Ok(x) }
    }

    /// The convolution's result with what is added to it.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn behind(&self, y: Tensor) -> Result<Tensor> {
        match self.add {
            Some(add) => channels_last::sum(add, &y),
            None => Ok(y),
        }
    }
}

/// `x: [batch, in, height, width]`, `kernel: [out, in, kh, kw]`, `bias: [out]`, equal stride and padding on both axes;
/// returns `[batch, out, height', width']` in `x`'s type.
///
/// On the processor the result is a view of `[batch, height', width', out]`, and an `x` that is such a view is read without a
/// copy. Gradients flow to all three.
///
/// # Errors
/// Shapes that do not fit.
pub fn conv2d(x: &Tensor, kernel: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    conv2d_within(x, kernel, bias, stride, padding, &Around::default(), SumOrder::default())
}

/// [`conv2d`] with what stands around it, `x: [batch, in, height, width]` before the pixels are doubled. Where no gradient is
/// wanted, sums are made in an order on the processor.
///
/// # Errors
/// Shapes that do not fit.
pub(crate) fn conv2d_within(
    x: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
    around: &Around<'_>,
    order: SumOrder,
) -> Result<Tensor> {
    let (batch, input, height, width) = x.dims4()?;
    let (out, kernel_input, kh, kw) = kernel.dims4()?;
    let factor = if around.doubled { 2 } else { 1 };
    let (wide, high) = (width * factor + 2 * padding, height * factor + 2 * padding);
    let bias_fits = bias.is_none_or(|bias| bias.dims() == [out]);
    if input != kernel_input || stride == 0 || kh == 0 || kw == 0 || high < kh || wide < kw || !bias_fits {
        candle_core::bail!("input {:?} does not fit a kernel {:?} with stride {stride}", x.dims(), kernel.dims());
    }
    let (out_height, out_width) = ((high - kh) / stride + 1, (wide - kw) / stride + 1);
    let dims = [batch, out, out_height, out_width];
    if around.add.is_some_and(|add| add.dims() != dims) {
        candle_core::bail!("the addend {:?} does not fit a result {dims:?}", around.add.map(Tensor::dims));
    }
    let parameters_tracked = kernel.track_op() || bias.is_some_and(Tensor::track_op);
    let is_tracked = x.track_op() || parameters_tracked || around.add.is_some_and(Tensor::track_op);
    let norm_is_fast = match &around.norm {
        Some(norm) => norm.is_fast(x)?,
        None => true,
    };
    if is_composed(x.device()) {
        return around.behind(composed(&around.before(x)?, kernel, bias, stride, padding)?);
    }
    if is_tracked || !norm_is_fast {
        return around.behind(tracked(&around.before(x)?, kernel, bias, stride, padding)?);
    }
    let winograd = is_winograd([kh, kw], stride, padding, input);
    let before = if winograd { x.clone() } else { around.before(x)? };
    let bias = bias.map(|bias| values::with_values(bias, |bias| Ok(bias.to_vec()))).transpose()?;
    let y = channels_last::with_pixels(&before, |pixels| {
        values::with_values(&kernel.contiguous()?, |kernel| {
            let run = |add: Option<&[f32]>| {
                if winograd {
                    let sizes = [batch, height, width, input];
                    return by_winograd(pixels, sizes, kernel, out, bias.as_deref(), around, add);
                }
                let size = [height * factor, width * factor];
                let geometry = Geometry::new(input, size, [kh, kw], stride, padding).in_order(order);
                Ok(geometry.run(batch, out, pixels, kernel, bias.as_deref(), add))
            };
            match around.add {
                Some(add) => channels_last::with_pixels(add, |add| run(Some(add))),
                None => run(None),
            }
        })
    })?;
    channels_last::tensor(y, dims, x)
}

/// Pictures one by one through one kernel.
pub(super) fn by_winograd(
    pixels: &[f32],
    [batch, height, width, input]: [usize; 4],
    kernel: &[f32],
    out: usize,
    bias: Option<&[f32]>,
    around: &Around<'_>,
    add: Option<&[f32]>,
) -> Result<Vec<f32>> {
    let kernel = winograd::Kernel::new(kernel, out, input, around.doubled);
    let size = height * width * if around.doubled { 4 } else { 1 } * out;
    let mut y = vec![0f32; batch * size];
    let pictures = pixels.chunks_exact((height * width * input).max(1));
    for (i, (pixels, y)) in pictures.zip(y.chunks_exact_mut(size.max(1))).enumerate() {
        let picture = Picture::new(pixels, height, width, input);
        let norm = around.norm.map(|norm| norm.of(picture)).transpose()?;
        winograd::convolve(picture, norm.as_ref(), &kernel, bias, add.map(|add| &add[i * size..][..size]), y);
    }
    Ok(y)
}

/// By candle's convolution: the slow truth, and the path of other devices. Its backward fails unless the last step leaves as
/// many rows unread as columns, so where there are steps, what is unread is cut off first.
pub(super) fn composed(
    x: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (wide, kernel) = (x.to_dtype(DType::F32)?.contiguous()?, kernel.to_dtype(DType::F32)?);
    let y = if stride == 1 {
        wide.conv2d(&kernel, padding, 1, 1, 1)?
    } else {
        let mut read = wide;
        for axis in [2, 3] {
            if padding > 0 {
                read = read.pad_with_zeros(axis, padding, padding)?;
            }
            let size = read.dim(axis)?;
            let unread = (size - kernel.dim(axis)?) % stride;
            read = read.narrow(axis, 0, size - unread)?;
        }
        read.conv2d(&kernel, 0, stride, 1, 1)?
    };
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(DType::F32)?.reshape((1, (), 1, 1))?)?,
        None => y,
    };
    y.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{check, with_composed};

    #[test]
    fn the_unrolled_convolution_agrees_with_candle() -> Result<()> {
        for (height, width, k, stride, padding) in
            [(9, 7, 3, 1, 1), (8, 10, 3, 2, 0), (7, 9, 3, 2, 1), (12, 12, 4, 4, 0), (5, 6, 1, 1, 0), (3, 2, 5, 1, 2)]
        {
            for input in [3, 18] {
                let x = check::tensor(&[2, input, height, width], 1);
                let kernel = check::tensor(&[5, input, k, k], 2);
                let bias = check::tensor(&[5], 3);
                let fast = conv2d(&x, &kernel, Some(&bias), stride, padding)?;
                check::close(&fast, &composed(&x, &kernel, Some(&bias), stride, padding)?, 1e-5);
            }
        }
        Ok(())
    }

    #[test]
    fn what_stands_around_is_the_same_fused_and_step_by_step() -> Result<()> {
        for (input, k, stride, padding) in [(24, 3, 1, 1), (6, 3, 1, 1), (24, 1, 1, 0), (18, 3, 2, 0)] {
            for doubled in [false, true] {
                let x = check::tensor(&[2, input, 9, 11], 1);
                let (kernel, bias) = (check::tensor(&[7, input, k, k], 2), check::tensor(&[7], 3));
                let (weight, shift) = (check::tensor(&[input], 4), check::tensor(&[input], 5));
                let norm = GroupNorm { weight: &weight, bias: &shift, groups: 6, eps: 1e-6 };
                let around = Around { norm: Some(norm), doubled, add: None };
                let run = |around: &Around<'_>| {
                    conv2d_within(&x, &kernel, Some(&bias), stride, padding, around, SumOrder::default())
                };
                let slow = with_composed(|| run(&around))?;
                check::close(&run(&around)?, &slow, 2e-5);
                let add = check::tensor(slow.dims(), 6);
                for norm in [Some(norm), None] {
                    let around = Around { norm, doubled, add: Some(&add) };
                    let slow = with_composed(|| run(&around))?;
                    check::close(&run(&around)?, &slow, 2e-5);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn channels_last_or_not_the_result_is_the_same() -> Result<()> {
        let (x, kernel) = (check::tensor(&[2, 20, 6, 5], 1), check::tensor(&[3, 20, 3, 3], 2));
        let turned = x.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))?;
        check::close(&conv2d(&x, &kernel, None, 1, 1)?, &conv2d(&turned, &kernel, None, 1, 1)?, 0.0);
        check::close(&composed(&x, &kernel, None, 1, 1)?, &composed(&turned, &kernel, None, 1, 1)?, 1e-5);
        check::close(&channels_last::doubled(&x)?, &x.upsample_nearest2d(12, 10)?, 0.0);
        let padded = x.pad_with_zeros(3, 0, 1)?.pad_with_zeros(2, 0, 2)?;
        check::close(&channels_last::padded(&turned, 2, 1)?, &padded, 0.0);
        Ok(())
    }

    #[test]
    fn large_inputs_go_band_by_band() -> Result<()> {
        let (x, kernel) = (check::tensor(&[1, 40, 70, 64], 1), check::tensor(&[6, 40, 3, 3], 2));
        check::close(&conv2d(&x, &kernel, None, 1, 1)?, &composed(&x, &kernel, None, 1, 1)?, 1e-4);
        Ok(())
    }

    #[test]
    fn the_gradients_agree_with_finite_differences() {
        for (height, width, k, stride, padding) in
            [(4, 4, 3, 1, 1), (5, 6, 4, 4, 0), (6, 5, 3, 2, 0), (6, 7, 3, 2, 1), (8, 8, 4, 4, 0)]
        {
            check::gradients(&[&[2, 3, height, width], &[2, 3, k, k], &[2]], |t| {
                conv2d(&t[0], &t[1], Some(&t[2]), stride, padding)
            });
        }
        check::gradients(&[&[2, 4, 2, 3], &[3, 4, 3, 3], &[3], &[4], &[4], &[2, 3, 4, 6]], |t| {
            let norm = GroupNorm { weight: &t[3], bias: &t[4], groups: 2, eps: 1e-2 };
            let around = Around { norm: Some(norm), doubled: true, add: Some(&t[5]) };
            conv2d_within(&t[0], &t[1], Some(&t[2]), 1, 1, &around, SumOrder::default())
        });
    }

    #[test]
    fn a_misfit_is_an_error_with_and_without_a_graph() {
        let tracked = |shape: &[usize]| candle_core::Var::from_tensor(&check::tensor(shape, 1)).unwrap().into_inner();
        for x in [check::tensor(&[1, 3, 4, 4], 1), tracked(&[1, 3, 4, 4])] {
            for (kernel, stride) in [([2, 3, 5, 5], 1), ([2, 4, 3, 3], 1), ([2, 3, 3, 3], 0)] {
                assert!(conv2d(&x, &check::tensor(&kernel, 2), None, stride, 0).is_err());
            }
        }
    }
}
