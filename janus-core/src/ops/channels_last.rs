//! Pictures `[batch, channels, height, width]` whose channels lie side by side in memory: views of
//! `[batch, height, width, channels]`. Fast operations on pictures leave them so, and read them without a copy.

use candle_core::{Result, Tensor};

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

/// Each pixel two by two. By views, not by `upsample_nearest2d`, whose backward overwrites a gradient already summed.
///
/// # Errors
/// Not four dimensions.
pub(crate) fn doubled(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let pixels = x.permute((0, 2, 3, 1))?.reshape((batch * height, 1, width, 1, channels))?;
    let pixels = pixels.broadcast_as((batch * height, 2, width, 2, channels))?;
    pixels.reshape((batch, 2 * height, 2 * width, channels))?.permute((0, 3, 1, 2))
}
