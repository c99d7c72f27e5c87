//! Group norm over channels and space (Wu and He, arXiv:1803.08494), by candle's differentiable operations.

use candle_core::{DType, Result, Tensor};

/// `x: [batch, channels, height, width]`, `weight` and `bias`: `[channels]`; returns `x`'s shape and type.
///
/// # Errors
/// Channels that the groups do not divide.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if groups == 0 || channels % groups != 0 {
        candle_core::bail!("{channels} channels do not divide into {groups} groups");
    }
    let wide = x.to_dtype(DType::F32)?.reshape((batch, groups, ()))?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(2)?)?;
    let variance = centred.sqr()?.mean_keepdim(2)?;
    let unit = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((batch, channels, height, width))?;
    let weight = weight.to_dtype(DType::F32)?.reshape((1, channels, 1, 1))?;
    let bias = bias.to_dtype(DType::F32)?.reshape((1, channels, 1, 1))?;
    unit.broadcast_mul(&weight)?.broadcast_add(&bias)?.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn each_group_has_mean_zero_and_variance_one() -> Result<()> {
        let x = check::tensor(&[2, 6, 4, 5], 1);
        let (weight, bias) = (Tensor::ones(6, DType::F32, x.device())?, Tensor::zeros(6, DType::F32, x.device())?);
        let y = group_norm(&x, &weight, &bias, 3, 0.0)?.reshape((2, 3, 40))?;
        check::close(&y.mean(2)?, &Tensor::zeros((2, 3), DType::F32, x.device())?, 1e-5);
        check::close(&y.sqr()?.mean(2)?, &Tensor::ones((2, 3), DType::F32, x.device())?, 1e-4);
        Ok(())
    }

    #[test]
    fn the_gradients_agree_with_finite_differences() {
        check::gradients(&[&[2, 4, 2, 3], &[4], &[4]], |t| group_norm(&t[0], &t[1], &t[2], 2, 1e-2));
    }
}
