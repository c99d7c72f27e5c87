//! Group norm over channels and space (Wu and He, arXiv:1803.08494).

use candle_core::{DType, Result, Tensor};

use super::channels_last;
use super::composed::{is_composed, over_root};
use super::tracked_group_norm::tracked;
use super::values;
use crate::kernel::picture::{Norm, Picture};

/// The parameters of a group norm.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm<'a> {
    /// `[channels]`, factor of the normed values.
    pub weight: &'a Tensor,
    /// `[channels]`, added to them.
    pub bias: &'a Tensor,
    /// Groups of adjacent channels, which divide the channels.
    pub groups: usize,
    /// Added to each group's variance.
    pub eps: f64,
}

/// `x: [batch, channels, height, width]`; returns `x`'s shape and type.
///
/// # Errors
/// Channels that the groups do not divide.
pub fn group_norm(x: &Tensor, norm: GroupNorm<'_>) -> Result<Tensor> {
    norm.run(x, false)
}

/// [`group_norm`], then `y · sigmoid(y)`.
///
/// # Errors
/// Channels that the groups do not divide.
pub fn group_norm_silu(x: &Tensor, norm: GroupNorm<'_>) -> Result<Tensor> {
    norm.run(x, true)
}

impl GroupNorm<'_> {
    fn run(self, x: &Tensor, activated: bool) -> Result<Tensor> {
        if self.is_fast(x)? {
            return self.fast(x, activated);
        }
        if !is_composed(x.device()) {
            return tracked(x, self, activated);
        }
        let y = self.composed(x)?;
        if activated { y.silu() } else { Ok(y) }
    }

    /// Whether the processor's code computes it without a graph: the shapes fit, and nothing carries one.
    pub(super) fn is_fast(&self, x: &Tensor) -> Result<bool> {
        let (_, channels, _, _) = x.dims4()?;
        if self.groups == 0 || channels % self.groups != 0 {
            candle_core::bail!("{channels} channels do not divide into {} groups", self.groups);
        }
        if self.weight.dims() != [channels] || self.bias.dims() != [channels] {
            let (weight, bias) = (self.weight.dims(), self.bias.dims());
            candle_core::bail!("weight {weight:?} and bias {bias:?} do not fit {channels} channels");
        }
        let tracked = x.track_op() || self.weight.track_op() || self.bias.track_op();
        Ok(!tracked && !is_composed(x.device()))
    }

    /// The maps of one picture's channels.
    pub(super) fn of(&self, picture: Picture<'_>) -> Result<Norm> {
        values::with_values(self.weight, |weight| {
            values::with_values(self.bias, |bias| Ok(Norm::of(picture, weight, bias, self.groups, self.eps)))
        })
    }

    fn fast(&self, x: &Tensor, activated: bool) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let y = channels_last::with_pixels(x, |pixels| {
            let mut y = Vec::new();
            for pixels in pixels.chunks_exact((height * width * channels).max(1)) {
                let picture = Picture::new(pixels, height, width, channels);
                let normed = self.of(picture)?.apply(picture, activated);
                if batch == 1 {
                    y = normed;
                } else {
                    y.extend_from_slice(&normed);
                }
            }
            Ok(y)
        })?;
        channels_last::tensor(y, [batch, channels, height, width], x)
    }

    /// By candle's differentiable operations: the slow truth, and the path of other devices.
    pub(super) fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let wide = x.to_dtype(DType::F32)?.reshape((batch, self.groups, ()))?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(2)?)?;
        let variance = centred.sqr()?.mean_keepdim(2)?;
        let unit = over_root(&centred, &variance, self.eps)?.reshape((batch, channels, height, width))?;
        let weight = self.weight.to_dtype(DType::F32)?.reshape((1, channels, 1, 1))?;
        let bias = self.bias.to_dtype(DType::F32)?.reshape((1, channels, 1, 1))?;
        unit.broadcast_mul(&weight)?.broadcast_add(&bias)?.to_dtype(x.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::level::{at_level, levels};
    use crate::ops::check;

    #[test]
    fn each_group_has_mean_zero_and_variance_one() -> Result<()> {
        let x = check::tensor(&[2, 6, 4, 5], 1);
        let (weight, bias) = (Tensor::ones(6, DType::F32, x.device())?, Tensor::zeros(6, DType::F32, x.device())?);
        let norm = GroupNorm { weight: &weight, bias: &bias, groups: 3, eps: 0.0 };
        let y = group_norm(&x, norm)?.contiguous()?.reshape((2, 3, 40))?;
        check::close(&y.mean(2)?, &Tensor::zeros((2, 3), DType::F32, x.device())?, 1e-5);
        check::close(&y.sqr()?.mean(2)?, &Tensor::ones((2, 3), DType::F32, x.device())?, 1e-4);
        Ok(())
    }

    #[test]
    fn every_level_agrees_with_the_composed_norm() -> Result<()> {
        // Larger than a piece whose moments are taken alone, and a mean far from zero beside a small spread.
        for (shape, groups, mean) in [([2, 6, 4, 5], 2, 0.0), ([1, 33, 50, 61], 11, 0.0), ([3, 4, 1, 7], 1, 100.0)] {
            let x = (check::tensor(&shape, 1) + mean)?;
            let (weight, bias) = (check::tensor(&[shape[1]], 2), check::tensor(&[shape[1]], 3));
            let norm = GroupNorm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
            let bound = if mean == 0.0 { 3e-6 } else { 2e-4 };
            for level in levels() {
                let (plain, activated) = at_level(level, || (group_norm(&x, norm), group_norm_silu(&x, norm)));
                check::close(&plain?, &norm.composed(&x)?, bound);
                check::close(&activated?, &norm.composed(&x)?.silu()?, bound);
            }
        }
        Ok(())
    }

    #[test]
    fn channels_that_do_not_fit_are_refused() {
        let (x, six, five) = (check::tensor(&[1, 6, 2, 2], 1), check::tensor(&[6], 2), check::tensor(&[5], 2));
        let given = |weight, bias, groups| group_norm(&x, GroupNorm { weight, bias, groups, eps: 1e-6 }).is_ok();
        assert!(given(&six, &six, 3));
        assert!(!given(&six, &six, 4) && !given(&six, &six, 0) && !given(&five, &six, 3) && !given(&six, &five, 3));
    }

    #[test]
    fn the_gradients_agree_with_finite_differences() {
        let norm = |t: &[Tensor]| group_norm(&t[0], GroupNorm { weight: &t[1], bias: &t[2], groups: 2, eps: 1e-2 });
        check::gradients(&[&[2, 4, 2, 3], &[4], &[4]], norm);
        let norm =
            |t: &[Tensor]| group_norm_silu(&t[0], GroupNorm { weight: &t[1], bias: &t[2], groups: 2, eps: 1e-2 });
        check::gradients(&[&[2, 4, 2, 3], &[4], &[4]], norm);
    }
}
