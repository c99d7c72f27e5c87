//! Pictures whose channels lie side by side, pixel by pixel, and what happens to a pixel on its way into a convolution.

use rayon::prelude::*;

use super::vector::{sigmoid, vectorized};

/// `[height, width, channels]` without gaps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Picture<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl<'a> Picture<'a> {
    pub(crate) fn new(values: &'a [f32], height: usize, width: usize, channels: usize) -> Self {
        assert_eq!(values.len(), height * width * channels, "a picture of another size");
        Self { values, height, width, channels }
    }

    /// Some pixels of one row.
    #[inline(always)]
    pub(super) fn pixels(&self, y: usize, x: usize, count: usize) -> &'a [f32] {
        &self.values[(y * self.width + x) * self.channels..][..count * self.channels]
    }
}

/// A group norm as one map per channel: `(x - mean) · scale + shift`.
#[derive(Debug, Default)]
pub(crate) struct Norm {
    mean: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// Mean and sum of squared distances from it, over `count` values.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Of both sets together (Chan, Golub and LeVeque, 1979).
    fn with(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let distance = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + distance * other.count / count,
            squares: self.squares + other.squares + distance * distance * self.count * other.count / count,
        }
    }
}

/// Values of a piece whose moments are taken by themselves: small beside a core's second-level cache, for it is read twice.
const PIECE: usize = 1 << 15;

/// Mean and `1 / sqrt(variance + eps)` of each channel's group.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f32>,
    pub(crate) inverse: Vec<f64>,
}

impl Statistics {
    /// Of one picture whose channels are `groups` groups.
    pub(crate) fn of(picture: Picture<'_>, groups: usize, eps: f64) -> Self {
        let channels = picture.channels;
        assert!(groups > 0 && channels.is_multiple_of(groups), "groups that do not divide the channels");
        if channels == 0 {
            return Self::default();
        }
        let piece = (PIECE / channels).max(1) * channels;
        let pieces: Vec<Vec<Moments>> = picture
            .values
            .par_chunks(piece)
            .map(|pixels| {
                let (mut means, mut squares) = (vec![0f32; channels], vec![0f32; channels]);
                moments(pixels, &mut means, &mut squares);
                let count = (pixels.len() / channels) as f64;
                let of_channel =
                    |(mean, squares): (f32, f32)| Moments { count, mean: f64::from(mean), squares: f64::from(squares) };
                means.into_iter().zip(squares).map(of_channel).collect()
            })
            .collect();
        let width = channels / groups;
        let mut statistics = Self::default();
        for group in 0..groups {
            let own = pieces.iter().flat_map(|piece| &piece[group * width..(group + 1) * width]);
            let all = own.fold(Moments::default(), |all, piece| all.with(*piece));
            let variance = all.squares / all.count.max(1.0);
            // 0 would make a picture of nothing out of one that overflowed.
            let inverse = if variance.is_finite() { 1.0 / (variance + eps).sqrt() } else { f64::NAN };
            statistics.mean.extend((0..width).map(|_| all.mean as f32));
            statistics.inverse.extend((0..width).map(|_| inverse));
        }
        statistics
    }
}

impl Norm {
    /// The norm of one picture over `groups` groups, which divide the channels; `weight` and `bias`: `[channels]`.
    pub(crate) fn of(picture: Picture<'_>, weight: &[f32], bias: &[f32], groups: usize, eps: f64) -> Self {
        assert!(weight.len() == picture.channels && bias.len() == picture.channels, "channels without parameters");
        let Statistics { mean, inverse } = Statistics::of(picture, groups, eps);
        let scale = weight.iter().zip(inverse).map(|(weight, inverse)| (f64::from(*weight) * inverse) as f32).collect();
        Self { mean, scale, shift: bias.to_vec() }
    }

    /// The normed picture, with `x · sigmoid(x)` of it where `activated`.
    pub(crate) fn apply(&self, picture: Picture<'_>, activated: bool) -> Vec<f32> {
        let mut out = vec![0f32; picture.values.len()];
        let piece = (PIECE / self.mean.len().max(1)).max(1) * self.mean.len().max(1);
        out.par_chunks_mut(piece).zip(picture.values.par_chunks(piece)).for_each(|(out, pixels)| {
            self.write(pixels, activated, self.mean.len(), out);
        });
        out
    }

    /// As [`Norm::apply`] for some pixels, the results `stride` values apart.
    pub(super) fn write(&self, pixels: &[f32], activated: bool, stride: usize, out: &mut [f32]) {
        if activated {
            normed_silu::<f32>(pixels, &self.mean, &self.scale, &self.shift, stride, out);
        } else {
            normed::<f32>(pixels, &self.mean, &self.scale, &self.shift, stride, out);
        }
    }
}

vectorized! {
    /// Means of the channels and sums of squared distances from them.
    fn moments<E>(pixels: &[E], means: &mut [f32], squares: &mut [f32]) {
        let channels = means.len();
        for pixel in pixels.chunks_exact(channels) {
            for (mean, value) in means.iter_mut().zip(pixel) {
                *mean += value.widen();
            }
        }
        let share = 1.0 / (pixels.len() / channels).max(1) as f32;
        means.iter_mut().for_each(|mean| *mean *= share);
        for pixel in pixels.chunks_exact(channels) {
            for ((square, mean), value) in squares.iter_mut().zip(&*means).zip(pixel) {
                let distance = value.widen() - mean;
                *square += distance * distance;
            }
        }
    }

    fn normed<E>(pixels: &[E], mean: &[f32], scale: &[f32], shift: &[f32], stride: usize, out: &mut [f32]) {
        let channels = mean.len();
        let (scale, shift) = (&scale[..channels], &shift[..channels]);
        for (pixel, out) in pixels.chunks_exact(channels).zip(out.chunks_mut(stride)) {
            let (pixel, out) = (&pixel[..channels], &mut out[..channels]);
            for c in 0..channels {
                out[c] = (pixel[c].widen() - mean[c]) * scale[c] + shift[c];
            }
        }
    }

    fn normed_silu<E>(pixels: &[E], mean: &[f32], scale: &[f32], shift: &[f32], stride: usize, out: &mut [f32]) {
        let channels = mean.len();
        let (scale, shift) = (&scale[..channels], &shift[..channels]);
        for (pixel, out) in pixels.chunks_exact(channels).zip(out.chunks_mut(stride)) {
            let (pixel, out) = (&pixel[..channels], &mut out[..channels]);
            for c in 0..channels {
                let y = (pixel[c].widen() - mean[c]) * scale[c] + shift[c];
                out[c] = y * sigmoid(y);
            }
        }
    }

    /// Replaces the gradient of the result by that of the normed values, and sums it by channel, alone and times those.
    fn gradient_sums<E>(
        x: &[E],
        mean: &[f32],
        inverse: &[f32],
        weight: &[f32],
        bias: &[f32],
        activated: bool,
        gradient: &mut [f32],
        sums: &mut [f32],
        products: &mut [f32],
    ) {
        let channels = mean.len();
        let (inverse, weight, bias) = (&inverse[..channels], &weight[..channels], &bias[..channels]);
        let (sums, products) = (&mut sums[..channels], &mut products[..channels]);
        for (pixel, gradient) in x.chunks_exact(channels).zip(gradient.chunks_exact_mut(channels)) {
            for c in 0..channels {
                let normed = (pixel[c].widen() - mean[c]) * inverse[c];
                let mut g = gradient[c];
                if activated {
                    let y = normed * weight[c] + bias[c];
                    let s = sigmoid(y);
                    g *= s * (1.0 + y * (1.0 - s));
                }
                gradient[c] = g;
                sums[c] += g;
                products[c] += g * normed;
            }
        }
    }

    /// From the gradient of the normed values to that of the pixels, with the means that [`gradient_sums`] leads to.
    fn input_gradient<E>(
        x: &[E],
        mean: &[f32],
        inverse: &[f32],
        weight: &[f32],
        means: &[f32],
        products: &[f32],
        gradient: &mut [f32],
    ) {
        let channels = mean.len();
        let (inverse, weight) = (&inverse[..channels], &weight[..channels]);
        let (means, products) = (&means[..channels], &products[..channels]);
        for (pixel, gradient) in x.chunks_exact(channels).zip(gradient.chunks_exact_mut(channels)) {
            for c in 0..channels {
                let normed = (pixel[c].widen() - mean[c]) * inverse[c];
                gradient[c] = inverse[c] * (weight[c] * gradient[c] - means[c] - normed * products[c]);
            }
        }
    }
}
