//! Pictures `[batch, channels, height, width]` whose channels lie side by side in memory: views of
//! `[batch, height, width, channels]`. Fast operations on pictures leave them so, and read them without a copy.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::composed::is_composed;
use super::values;

/// Calls `f` with the values in the order `[batch, height, width, channels]`, as f32.
pub(super) fn with_pixels<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    values::with_values(&x.permute((0, 2, 3, 1))?, f)
}

/// A tensor `[batch, channels, height, width]` of such values, in the type of `like`.
pub(super) fn tensor(pixels: Vec<f32>, [batch, channels, height, width]: [usize; 4], like: &Tensor) -> Result<Tensor> {
    values::tensor(pixels, (batch, height, width, channels), like)?.permute((0, 3, 1, 2))
}

/// `a + b` of one shape, in the order of memory where both lie so.
///
/// # Errors
/// Shapes that differ.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.rank() != 4 || a.is_contiguous() {
        return a + b;
    }
    (a.permute((0, 2, 3, 1))? + b.permute((0, 2, 3, 1))?)?.permute((0, 3, 1, 2))
}

/// The same picture with `below` rows and `right` columns of zeros more.
///
/// # Errors
/// Not four dimensions.
pub(crate) fn padded(x: &Tensor, below: usize, right: usize) -> Result<Tensor> {
    let pixels = x.permute((0, 2, 3, 1))?.contiguous()?;
    pixels.pad_with_zeros(2, 0, right)?.pad_with_zeros(1, 0, below)?.permute((0, 3, 1, 2))
}

/// Each pixel two by two. candle's `upsample_nearest2d` has a backward that overwrites a gradient already summed.
///
/// # Errors
/// Not four dimensions.
pub(crate) fn doubled(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let pixels = x.permute((0, 2, 3, 1))?;
    if x.track_op() && !is_composed(x.device()) {
        return pixels.apply_op1(Doubled)?.permute((0, 3, 1, 2));
    }
    let pixels = pixels.reshape((batch * height, 1, width, 1, channels))?;
    let pixels = pixels.broadcast_as((batch * height, 2, width, 2, channels))?;
    pixels.reshape((batch, 2 * height, 2 * width, channels))?.permute((0, 3, 1, 2))
}

/// Of `[batch, height, width, channels]`: each pixel two by two.
struct Doubled;

impl CustomOp1 for Doubled {
    fn name(&self) -> &'static str {
        "doubled"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let &[batch, height, width, channels] = layout.dims() else { bail!("pixels {:?}", layout.dims()) };
        let dtype = values::dtype_of(x);
        let x = values::read(x, layout)?;
        let line = (width * channels).max(1);
        let mut y = vec![0f32; 4 * x.len()];
        y.par_chunks_exact_mut(4 * line).zip(x.par_chunks_exact(line)).for_each(|(y, x)| {
            let (above, below) = y.split_at_mut(2 * line);
            for (pair, pixel) in above.chunks_exact_mut(2 * channels).zip(x.chunks_exact(channels)) {
                pair[..channels].copy_from_slice(pixel);
                pair[channels..].copy_from_slice(pixel);
            }
            below.copy_from_slice(above);
        });
        Ok((values::store(y, dtype)?, Shape::from((batch, 2 * height, 2 * width, channels))))
    }

    /// Each pixel has the sum of its four.
    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, width, channels) = x.dims4()?;
        let line = (width * channels).max(1);
        let mut dx = vec![0f32; x.elem_count()];
        values::with_values(gradient, |dy| {
            dx.par_chunks_exact_mut(line).zip(dy.par_chunks_exact(4 * line)).for_each(|(dx, dy)| {
                let (above, below) = dy.split_at(2 * line);
                let pairs = above.chunks_exact(2 * channels).zip(below.chunks_exact(2 * channels));
                for (dx, (above, below)) in dx.chunks_exact_mut(channels).zip(pairs) {
                    for c in 0..channels {
                        dx[c] = above[c] + above[channels + c] + below[c] + below[channels + c];
                    }
                }
            });
            Ok(())
        })?;
        Ok(Some(values::tensor(dx, x.shape(), x)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{check, with_composed};

    #[test]
    fn doubling_has_the_gradient_of_differences_both_ways() {
        check::gradients(&[&[2, 3, 2, 4]], |t| doubled(&t[0]));
        with_composed(|| check::gradients(&[&[2, 3, 2, 4]], |t| doubled(&t[0])));
    }
}
