//! A residual block of the image tokenizer under training, as one node of the tape: two times group norm, `x · sigmoid(x)` and
//! a 3 x 3 convolution, around a shortcut that is the input or a 1 x 1 convolution of it.
//!
//! One operation at a time, more than half of a step is spent beside the products: on sums of gradients that have one term,
//! on copies between layouts, on waking threads for pieces of a picture. Here each thread takes whole pictures through the
//! block and back, and keeps but the input and what lies between the convolutions. The slow truth is the same block of
//! single operations, which is the path of other devices.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::conv2d::is_winograd;
use super::tracked_conv2d::turned_over;
use super::tracked_group_norm::NormGradient;
use super::unrolled::Geometry;
use super::values;
use crate::kernel::picture::{Norm, Picture};
use crate::kernel::winograd;

/// A group norm and the convolution behind it; the norm's `[channels]` twice, `[out, channels, 3, 3]`, `[out]`.
#[derive(Debug, Clone)]
pub(crate) struct NormedConvolution {
    pub(crate) norm_weight: Tensor,
    pub(crate) norm_bias: Tensor,
    pub(crate) kernel: Tensor,
    pub(crate) bias: Tensor,
}

impl NormedConvolution {
    fn tensors(&self) -> [&Tensor; 4] {
        [&self.norm_weight, &self.norm_bias, &self.kernel, &self.bias]
    }
}

/// The parameters of a block.
#[derive(Debug, Clone)]
pub(crate) struct Residual {
    pub(crate) first: NormedConvolution,
    pub(crate) second: NormedConvolution,
    /// Kernel `[out, in, 1, 1]` and bias `[out]` of the shortcut, where input and output differ in width.
    pub(crate) shortcut: Option<(Tensor, Tensor)>,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

impl Residual {
    fn tensors(&self) -> Vec<&Tensor> {
        let shortcut = self.shortcut.iter().flat_map(|(kernel, bias)| [kernel, bias]);
        self.first.tensors().into_iter().chain(self.second.tensors()).chain(shortcut).collect()
    }

    /// Whether something of it or before it carries a graph.
    pub(crate) fn is_tracked(&self, x: &Tensor) -> bool {
        self.tensors().into_iter().chain([x]).any(Tensor::track_op)
    }

    /// Whether one node computes it: in f32 on the processor, with convolutions wide enough.
    pub(crate) fn is_fused(&self, x: &Tensor) -> Result<bool> {
        let (_, input, _, _) = x.dims4()?;
        let output = self.first.bias.elem_count();
        let is_wide = [input, output].iter().all(|width| is_winograd([3, 3], 1, 1, *width));
        let is_f32 = self.tensors().into_iter().chain([x]).all(|tensor| tensor.dtype() == DType::F32);
        let is_divided = self.groups > 0 && input.is_multiple_of(self.groups) && output.is_multiple_of(self.groups);
        Ok(is_wide && is_f32 && is_divided && !super::is_composed(x.device()))
    }

    /// `x: [batch, in, height, width]` to `[batch, out, height, width]`, where it [`Residual::is_fused`]. Gradients flow to `x`
    /// and to every parameter.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let flat = self.tensors().into_iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        let operation = Block {
            input: self.first.norm_weight.elem_count(),
            output: self.first.bias.elem_count(),
            has_shortcut: self.shortcut.is_some(),
            groups: self.groups,
            eps: self.eps,
            between: Mutex::new(None),
        };
        let pixels = x.permute((0, 2, 3, 1))?.contiguous()?;
        pixels.apply_op2(&Tensor::cat(&flat, 0)?, operation)?.permute((0, 3, 1, 2))
    }
}

/// Of `[batch, height, width, in]` and all parameters one behind the other.
struct Block {
    input: usize,
    output: usize,
    has_shortcut: bool,
    groups: usize,
    eps: f64,
    /// What the first convolution gave, until the backward has read it.
    between: Mutex<Option<Vec<f32>>>,
}

/// Slices of the flat parameters, or of their gradients in the same order.
struct Parts<T> {
    norm1: (T, T),
    conv1: (T, T),
    norm2: (T, T),
    conv2: (T, T),
    shortcut: Option<(T, T)>,
}

/// Values in each pair of [`Parts`], in order.
fn sizes(input: usize, output: usize, has_shortcut: bool) -> Vec<usize> {
    const TAPS: usize = 9;
    let mut sizes = vec![input, input, output * input * TAPS, output, output, output, output * output * TAPS, output];
    if has_shortcut {
        sizes.extend([output * input, output]);
    }
    sizes
}

impl Block {
    fn parts<'a>(&self, flat: &'a [f32]) -> Result<Parts<&'a [f32]>> {
        let mut rest = flat;
        let mut slices = Vec::new();
        for size in sizes(self.input, self.output, self.has_shortcut) {
            let Some((own, others)) = rest.split_at_checked(size) else { bail!("too few parameters of a block") };
            slices.push(own);
            rest = others;
        }
        let mut slices = slices.into_iter();
        let mut pair = || slices.next().zip(slices.next());
        match (pair(), pair(), pair(), pair(), pair()) {
            (Some(norm1), Some(conv1), Some(norm2), Some(conv2), shortcut) if rest.is_empty() => {
                Ok(Parts { norm1, conv1, norm2, conv2, shortcut })
            }
            _ => bail!("{} parameters do not fit a block", flat.len()),
        }
    }

    fn pointwise(&self, height: usize, width: usize) -> Geometry {
        Geometry::new(self.input, [height, width], [1, 1], 1, 0)
    }
}

impl CustomOp2 for Block {
    fn name(&self) -> &'static str {
        "residual-block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, flat: &CpuStorage, lf: &Layout) -> Result<(CpuStorage, Shape)> {
        let &[batch, height, width, input] = lx.dims() else { bail!("pixels {:?}", lx.dims()) };
        if input != self.input {
            bail!("{input} channels, expected {}", self.input);
        }
        let (x, flat) = (values::read(x, lx)?, values::read(flat, lf)?);
        let Parts { norm1, conv1, norm2, conv2, shortcut } = self.parts(&flat)?;
        let kernels = [
            winograd::Kernel::new(conv1.0, self.output, self.input, false),
            winograd::Kernel::new(conv2.0, self.output, self.output, false),
        ];
        let (own, out) = (height * width * self.input, height * width * self.output);
        let (mut between, mut y) = (vec![0f32; batch * out], vec![0f32; batch * out]);
        let pictures = x.par_chunks_exact(own.max(1)).zip(between.par_chunks_exact_mut(out.max(1)));
        pictures.zip(y.par_chunks_exact_mut(out.max(1))).for_each(|((x, between), y)| {
            let picture = Picture::new(x, height, width, self.input);
            let norm = Norm::of(picture, norm1.0, norm1.1, self.groups, self.eps);
            winograd::convolve(picture, Some(&norm), &kernels[0], Some(conv1.1), None, between);
            let picture = Picture::new(between, height, width, self.output);
            let norm = Norm::of(picture, norm2.0, norm2.1, self.groups, self.eps);
            let led = shortcut
                .map(|(kernel, bias)| self.pointwise(height, width).run(1, self.output, x, kernel, Some(bias), None));
            winograd::convolve(picture, Some(&norm), &kernels[1], Some(conv2.1), Some(led.as_deref().unwrap_or(x)), y);
        });
        *self.between.lock().unwrap_or_else(PoisonError::into_inner) = Some(between);
        Ok((CpuStorage::F32(y), Shape::from((batch, height, width, self.output))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        flat: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (batch, height, width, _) = x.dims4()?;
        let Some(between) = self.between.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("a residual block was walked back twice");
        };
        let (own, out) = (height * width * self.input, height * width * self.output);
        let mut dx = vec![0f32; batch * own];
        let sums: Vec<f32> = values::with_values(x, |x| {
            values::with_values(flat, |flat| {
                values::with_values(gradient, |dy| {
                    let parts = self.parts(flat)?;
                    let back = Back {
                        block: self,
                        height,
                        width,
                        kernels: [
                            winograd::Kernel::new(
                                &turned_over(parts.conv1.0, self.output, self.input),
                                self.input,
                                self.output,
                                false,
                            ),
                            winograd::Kernel::new(
                                &turned_over(parts.conv2.0, self.output, self.output),
                                self.output,
                                self.output,
                                false,
                            ),
                        ],
                        parts,
                    };
                    let pictures = dx.par_chunks_exact_mut(own.max(1)).zip(x.par_chunks_exact(own.max(1)));
                    let rest = between.par_chunks_exact(out.max(1)).zip(dy.par_chunks_exact(out.max(1)));
                    let each: Vec<Vec<f32>> =
                        pictures.zip(rest).map(|((dx, x), (between, dy))| back.picture(x, between, dy, dx)).collect();
                    // Picture after picture, whichever thread had it.
                    let mut sums = vec![0f32; flat.len()];
                    for own in each {
                        sums.iter_mut().zip(own).for_each(|(sum, value)| *sum += value);
                    }
                    Ok(sums)
                })
            })
        })?;
        let dx = if x.track_op() { Some(Tensor::from_vec(dx, x.shape(), x.device())?) } else { None };
        let d_flat = if flat.track_op() { Some(Tensor::from_vec(sums, flat.shape(), flat.device())?) } else { None };
        Ok((dx, d_flat))
    }
}

/// What the way back needs of a block.
struct Back<'a> {
    block: &'a Block,
    height: usize,
    width: usize,
    /// The kernels that take gradients back.
    kernels: [winograd::Kernel; 2],
    parts: Parts<&'a [f32]>,
}

impl Back<'_> {
    /// One picture: writes the gradient of its pixels, gives those of all parameters one behind the other.
    fn picture(&self, x: &[f32], between: &[f32], dy: &[f32], dx: &mut [f32]) -> Vec<f32> {
        let Block { input, output, .. } = *self.block;
        let (height, width) = (self.height, self.width);
        let mut all = Vec::with_capacity(sizes(input, output, self.block.has_shortcut).iter().sum());
        let (second, d_between) = self.half(between, output, self.parts.norm2, &self.kernels[1], dy);
        let (first, own) = self.half(x, input, self.parts.norm1, &self.kernels[0], &d_between);
        dx.copy_from_slice(&own);
        all.extend(first);
        all.extend(second);
        match self.parts.shortcut {
            None => dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy),
            Some((kernel, _)) => {
                let pointwise = self.block.pointwise(height, width);
                let led = pointwise.input_gradient(1, output, dy, kernel);
                dx.iter_mut().zip(led).for_each(|(dx, led)| *dx += led);
                all.extend(pointwise.kernel_gradient(1, output, x, dy));
                all.extend(bias_gradient(dy, output));
            }
        }
        all
    }

    /// A norm and its convolution: the gradients of their parameters, norm first, and of `x`.
    fn half(
        &self,
        x: &[f32],
        channels: usize,
        (weight, bias): (&[f32], &[f32]),
        turned: &winograd::Kernel,
        dy: &[f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let Block { output, groups, eps, .. } = *self.block;
        let (height, width) = (self.height, self.width);
        let picture = Picture::new(x, height, width, channels);
        let activated = Norm::of(picture, weight, bias, groups, eps).apply(picture, true);
        let geometry = Geometry::new(channels, [height, width], [3, 3], 1, 1);
        let d_kernel = geometry.kernel_gradient(1, output, &activated, dy);
        let mut gradient = activated;
        winograd::convolve(Picture::new(dy, height, width, output), None, turned, None, None, &mut gradient);
        let NormGradient { weight: d_weight, bias: d_bias } =
            NormGradient::of_picture(picture, weight, bias, groups, eps, true, &mut gradient);
        let parameters = [d_weight, d_bias, d_kernel, bias_gradient(dy, output)].concat();
        (parameters, gradient)
    }
}

/// Sums over pixels.
fn bias_gradient(dy: &[f32], output: usize) -> Vec<f32> {
    let mut sums = vec![0f32; output];
    for pixel in dy.chunks_exact(output.max(1)) {
        sums.iter_mut().zip(pixel).for_each(|(sum, dy)| *sum += dy);
    }
    sums
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernel::SumOrder;
    use crate::ops::conv2d::{Around, conv2d_within};
    use crate::ops::{GroupNorm, check, with_composed};

    fn block(input: usize, output: usize) -> (Vec<Var>, Residual) {
        let mut shapes = vec![vec![input], vec![input], vec![output, input, 3, 3], vec![output]];
        shapes.extend([vec![output], vec![output], vec![output, output, 3, 3], vec![output]]);
        if input != output {
            shapes.extend([vec![output, input, 1, 1], vec![output]]);
        }
        let vars: Vec<Var> =
            (20..).zip(&shapes).map(|(seed, shape)| Var::from_tensor(&check::tensor(shape, seed)).unwrap()).collect();
        let at = |number: usize| vars[number].as_tensor().clone();
        let half = |first: usize| NormedConvolution {
            norm_weight: at(first),
            norm_bias: at(first + 1),
            kernel: at(first + 2),
            bias: at(first + 3),
        };
        let shortcut = (input != output).then(|| (at(8), at(9)));
        let residual = Residual { first: half(0), second: half(4), shortcut, groups: 8, eps: 1e-5 };
        (vars, residual)
    }

    /// One operation after the other.
    fn step_by_step(block: &Residual, x: &Tensor) -> Result<Tensor> {
        let half = |half: &NormedConvolution, x: &Tensor, add: Option<&Tensor>| {
            let NormedConvolution { norm_weight, norm_bias, kernel, bias } = half;
            let norm = GroupNorm { weight: norm_weight, bias: norm_bias, groups: block.groups, eps: block.eps };
            let around = Around { norm: Some(norm), doubled: false, add };
            conv2d_within(x, kernel, Some(bias), 1, 1, &around, SumOrder::default())
        };
        let h = half(&block.first, x, None)?;
        let shortcut = match &block.shortcut {
            Some((kernel, bias)) => {
                conv2d_within(x, kernel, Some(bias), 1, 0, &Around::default(), SumOrder::default())?
            }
            None => x.clone(),
        };
        half(&block.second, &h, Some(&shortcut))
    }

    #[test]
    fn one_node_agrees_with_its_operations_forward_and_backward() -> Result<()> {
        for (input, output) in [(24, 24), (16, 40), (40, 16)] {
            let (vars, block) = block(input, output);
            let x = Var::from_tensor(&check::tensor(&[3, input, 7, 10], 1))?;
            assert!(block.is_fused(&x)?);
            let fused = block.forward(&x)?;
            let slow = with_composed(|| step_by_step(&block, &x))?;
            let largest = |x: &Tensor| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
            check::close(&fused, &slow, 1e-5 * largest(&slow)?.max(1.0));
            let g = check::tensor(slow.dims(), 4);
            let fast = (fused * &g)?.sum_all()?.backward()?;
            let slow = with_composed(|| (&slow * &g)?.sum_all()?.backward())?;
            for var in vars.iter().chain([&x]) {
                let (fast, slow) = (fast.get(var).expect("a gradient"), slow.get(var).expect("a gradient"));
                check::close(fast, slow, 2e-4 * largest(slow)?.max(1e-3));
            }
        }
        Ok(())
    }

    #[test]
    fn what_one_node_does_not_compute_is_told() -> Result<()> {
        let (_, narrow) = block(8, 24);
        assert!(!narrow.is_fused(&check::tensor(&[1, 8, 4, 4], 1))?, "too few channels");
        let (_, wide) = block(24, 24);
        let x = check::tensor(&[1, 24, 4, 4], 1);
        assert!(wide.is_fused(&x)? && !wide.is_fused(&x.to_dtype(DType::BF16)?)?);
        assert!(!with_composed(|| wide.is_fused(&x))?);
        assert!(wide.forward(&check::tensor(&[1, 16, 4, 4], 1)).is_err());
        Ok(())
    }
}
