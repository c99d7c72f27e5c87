//! Convolution with a frozen kernel: patches unrolled into columns, a band of rows at a time, and one matrix product.
//!
//! candle's own convolution is several times slower on the processor; it serves where a gradient is wanted.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::composed::is_composed;
use super::matmul::{Matrix, multiply};
use super::values;

/// Values of unrolled patches held at a time: 4 MiB.
const BAND_VALUES: usize = 1 << 20;

/// `x: [batch, in, height, width]`, `kernel: [out, in, kh, kw]`, `bias: [out]`, equal stride and padding on both axes;
/// returns `[batch, out, height', width']` in `x`'s type.
///
/// Where `x`, `kernel` or `bias` carry a graph, candle's differentiable convolution is used.
///
/// # Errors
/// Shapes that do not fit.
pub fn conv2d(x: &Tensor, kernel: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let (batch, input, height, width) = x.dims4()?;
    let (out, kernel_input, kh, kw) = kernel.dims4()?;
    if input != kernel_input || stride == 0 || height + 2 * padding < kh || width + 2 * padding < kw {
        candle_core::bail!("input {:?} does not fit a kernel {:?} with stride {stride}", x.dims(), kernel.dims());
    }
    let tracked = x.track_op() || kernel.track_op() || bias.is_some_and(Tensor::track_op);
    if tracked || is_composed(x.device()) {
        return composed(x, kernel, bias, stride, padding);
    }
    let geometry = Geometry {
        input,
        height,
        width,
        kh,
        kw,
        stride,
        padding,
        out_height: (height + 2 * padding - kh) / stride + 1,
        out_width: (width + 2 * padding - kw) / stride + 1,
    };
    let y = values::with_values(x, |x| {
        values::with_values(&kernel.contiguous()?, |kernel| match bias {
            Some(bias) => values::with_values(bias, |bias| Ok(geometry.run(batch, out, x, kernel, Some(bias)))),
            None => Ok(geometry.run(batch, out, x, kernel, None)),
        })
    })?;
    values::tensor(y, (batch, out, geometry.out_height, geometry.out_width), x)
}

/// By candle's convolution. Its backward fails unless the last step leaves as many rows unread as columns, so where there
/// are steps, what is unread is cut off first.
fn composed(x: &Tensor, kernel: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let (wide, kernel) = (x.to_dtype(DType::F32)?, kernel.to_dtype(DType::F32)?);
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

struct Geometry {
    input: usize,
    height: usize,
    width: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    padding: usize,
    out_height: usize,
    out_width: usize,
}

impl Geometry {
    fn run(&self, batch: usize, out: usize, x: &[f32], kernel: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let depth = self.input * self.kh * self.kw;
        let area = self.out_height * self.out_width;
        let band = (BAND_VALUES / (depth * self.out_width).max(1)).clamp(1, self.out_height.max(1));
        let mut y = vec![0f32; batch * out * area];
        let mut columns = vec![0f32; depth * band * self.out_width];
        for (x, y) in x.chunks_exact(self.input * self.height * self.width).zip(y.chunks_exact_mut((out * area).max(1)))
        {
            for first in (0..self.out_height).step_by(band) {
                let rows = band.min(self.out_height - first);
                let count = rows * self.out_width;
                columns[..depth * count]
                    .par_chunks_mut(count)
                    .enumerate()
                    .for_each(|(d, column)| self.unroll(x, d, first, column));
                let right = Matrix::new(&columns, depth, count, count);
                multiply(
                    Matrix::new(kernel, out, depth, depth),
                    right,
                    1.0,
                    &mut y[first * self.out_width..],
                    area,
                    false,
                    true,
                );
            }
            if let Some(bias) = bias {
                y.chunks_exact_mut(area).zip(bias).for_each(|(y, b)| y.iter_mut().for_each(|y| *y += b));
            }
        }
        y
    }

    /// Fills the values that kernel cell `d` meets at the output places from row `first` on.
    fn unroll(&self, x: &[f32], d: usize, first: usize, column: &mut [f32]) {
        let (channel, ky, kx) = (d / (self.kh * self.kw), d / self.kw % self.kh, d % self.kw);
        let plane = &x[channel * self.height * self.width..(channel + 1) * self.height * self.width];
        for (row, cells) in column.chunks_exact_mut(self.out_width).enumerate() {
            let y = ((first + row) * self.stride + ky).wrapping_sub(self.padding);
            if y >= self.height {
                cells.fill(0.0);
                continue;
            }
            let line = &plane[y * self.width..(y + 1) * self.width];
            for (i, cell) in cells.iter_mut().enumerate() {
                let x = (i * self.stride + kx).wrapping_sub(self.padding);
                *cell = line.get(x).copied().unwrap_or(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn the_unrolled_convolution_agrees_with_candle() -> Result<()> {
        for (height, width, k, stride, padding) in
            [(9, 7, 3, 1, 1), (8, 10, 3, 2, 0), (12, 12, 4, 4, 0), (5, 6, 1, 1, 0)]
        {
            let x = check::tensor(&[2, 3, height, width], 1);
            let kernel = check::tensor(&[5, 3, k, k], 2);
            let bias = check::tensor(&[5], 3);
            let fast = conv2d(&x, &kernel, Some(&bias), stride, padding)?;
            check::close(&fast, &composed(&x, &kernel, Some(&bias), stride, padding)?, 1e-5);
        }
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
