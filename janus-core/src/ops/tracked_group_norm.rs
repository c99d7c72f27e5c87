//! Group norm whose three gradients flow, on the processor, with `y · sigmoid(y)` of it where wanted: one pass through the
//! pixels forward, two backward.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::group_norm::GroupNorm;
use super::values;
use crate::kernel::picture::{Norm, Picture, Statistics, gradient_sums, input_gradient};

/// As [`super::group_norm`], `activated` as [`super::group_norm_silu`].
pub(super) fn tracked(x: &Tensor, norm: GroupNorm<'_>, activated: bool) -> Result<Tensor> {
    let GroupNorm { weight, bias, groups, eps } = norm;
    let operation = Normed { groups, eps, activated };
    x.permute((0, 2, 3, 1))?.apply_op3(weight, bias, operation)?.permute((0, 3, 1, 2))
}

/// Of `[batch, height, width, channels]`, `[channels]` and `[channels]`.
struct Normed {
    groups: usize,
    eps: f64,
    activated: bool,
}

/// Gradients of a norm's parameters, by channel.
pub(super) struct NormGradient {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl NormGradient {
    /// Of one picture; replaces the gradient of the result by that of the pixels.
    ///
    /// With `n = (x - mean)·s` and g the gradient of `w·n + b`: `dx = s·(w·g - mean(w·g) - n·mean(w·g·n))`, the means over a
    /// group; `dw = Σ g·n`, `db = Σ g`.
    pub(super) fn of_picture(
        picture: Picture<'_>,
        weight: &[f32],
        bias: &[f32],
        groups: usize,
        eps: f64,
        activated: bool,
        gradient: &mut [f32],
    ) -> Self {
        let (x, channels) = (picture.values, picture.channels);
        let group = channels / groups.max(1);
        let count = (picture.height * picture.width * group) as f32;
        let Statistics { mean, inverse } = Statistics::of(picture, groups, eps);
        let inverse: Vec<f32> = inverse.into_iter().map(|inverse| inverse as f32).collect();
        let (mut sums, mut products) = (vec![0f32; channels], vec![0f32; channels]);
        gradient_sums(x, &mean, &inverse, weight, bias, activated, gradient, &mut sums, &mut products);
        let (mut means, mut of_products) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for first in (0..channels).step_by(group.max(1)) {
            let own = first..first + group;
            let mean: f32 = own.clone().map(|c| weight[c] * sums[c]).sum();
            let product: f32 = own.map(|c| weight[c] * products[c]).sum();
            means.extend((0..group).map(|_| mean / count));
            of_products.extend((0..group).map(|_| product / count));
        }
        input_gradient(x, &mean, &inverse, weight, &means, &of_products, gradient);
        Self { weight: products, bias: sums }
    }
}

impl CustomOp3 for Normed {
    fn name(&self) -> &'static str {
        "group-norm"
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
        let &[_, height, width, channels] = lx.dims() else { bail!("pixels {:?}", lx.dims()) };
        let dtype = values::dtype_of(x);
        let (x, weight, bias) = (values::read(x, lx)?, values::read(weight, lw)?, values::read(bias, lb)?);
        let mut y = vec![0f32; x.len()];
        let size = (height * width * channels).max(1);
        y.par_chunks_exact_mut(size).zip(x.par_chunks_exact(size)).for_each(|(y, x)| {
            let picture = Picture::new(x, height, width, channels);
            let norm = Norm::of(picture, &weight, &bias, self.groups, self.eps);
            y.copy_from_slice(&norm.apply(picture, self.activated));
        });
        Ok((values::store(y, dtype)?, lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, height, width, channels) = x.dims4()?;
        let size = (height * width * channels).max(1);
        let mut dx = values::with_values(gradient, |dy| Ok(dy.to_vec()))?;
        let (w, b) = (values::with_values(weight, |w| Ok(w.to_vec()))?, values::with_values(bias, |b| Ok(b.to_vec()))?);
        let each: Vec<NormGradient> = values::with_values(x, |x| {
            let pictures = dx.par_chunks_exact_mut(size).zip(x.par_chunks_exact(size));
            let of_picture = |(dx, x): (&mut [f32], &[f32])| {
                let picture = Picture::new(x, height, width, channels);
                NormGradient::of_picture(picture, &w, &b, self.groups, self.eps, self.activated, dx)
            };
            Ok(pictures.map(of_picture).collect())
        })?;
        let summed = |of: fn(&NormGradient) -> &[f32]| -> Vec<f32> {
            (0..channels).map(|c| each.iter().map(|own| f64::from(of(own)[c])).sum::<f64>() as f32).collect()
        };
        let keep = |tensor: &Tensor, values: Vec<f32>| -> Result<Option<Tensor>> {
            if tensor.track_op() { Ok(Some(values::tensor(values, tensor.shape(), tensor)?)) } else { Ok(None) }
        };
        let (dw, db) = (summed(|own| &own.weight), summed(|own| &own.bias));
        Ok((keep(x, dx)?, keep(weight, dw)?, keep(bias, db)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::check;

    #[test]
    fn result_and_gradients_agree_with_the_composed_norm() -> Result<()> {
        for activated in [false, true] {
            let vars: Vec<Var> = [(vec![3, 12, 9, 5], 1), (vec![12], 2), (vec![12], 3)]
                .iter()
                .map(|(shape, seed)| Var::from_tensor(&check::tensor(shape, *seed)))
                .collect::<Result<_>>()?;
            let norm = GroupNorm { weight: &vars[1], bias: &vars[2], groups: 4, eps: 1e-6 };
            let fast = tracked(&vars[0], norm, activated)?;
            let slow = norm.composed(&vars[0])?;
            let slow = if activated { slow.silu()? } else { slow };
            check::close(&fast, &slow, 3e-6);
            let g = check::tensor(slow.dims(), 4);
            let (fast, slow) = ((fast * &g)?.sum_all()?.backward()?, (slow * &g)?.sum_all()?.backward()?);
            for var in &vars {
                check::close(fast.get(var).unwrap(), slow.get(var).unwrap(), 2e-5);
            }
        }
        Ok(())
    }
}
