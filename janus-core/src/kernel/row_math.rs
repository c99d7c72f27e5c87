//! What blocks and operations do to a row of values: norms, activations and rotations, forward and backward.

use super::Element;
use super::vector::{normal_cdf, normal_density, sigmoid, sum, vectorized};

vectorized! {
    /// `y = g · x / sqrt(mean(x²) + eps)`.
    fn rms_norm_row<E>(x: &[E], weight: &[f32], eps: f32, y: &mut [E]) {
        let scale = rms_scale(x, eps);
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = E::narrow(x.widen() * scale * w);
        }
    }

    /// With `s = 1/sqrt(mean(x²)+eps)`, `n = x·s`: `dx = up + s·(g·dy - n·mean(g·dy·n))`.
    fn rms_norm_backward_row<E>(x: &[E], weight: &[f32], eps: f32, dy: &[E], upstream: &[E], dx: &mut [E]) {
        let width = x.len();
        let (weight, dy, upstream, dx) = (&weight[..width], &dy[..width], &upstream[..width], &mut dx[..width]);
        let scale = rms_scale(x, eps);
        let mean = sum(width, |i| x[i].widen() * dy[i].widen() * weight[i]) * scale / width as f32;
        for i in 0..width {
            let d = scale * (dy[i].widen() * weight[i] - x[i].widen() * scale * mean);
            dx[i] = E::narrow(upstream[i].widen() + d);
        }
    }

    /// `y = g · (x - mean) / sqrt(var + eps) + b`.
    fn layer_norm_row<E>(x: &[E], weight: &[f32], bias: &[f32], eps: f32, y: &mut [E]) {
        let (mean, scale) = layer_scale(x, eps);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = E::narrow((x.widen() - mean) * scale * w + b);
        }
    }

    /// With `n = (x - mean)·s`: `dx = up + s·(g·dy - mean(g·dy) - n·mean(g·dy·n))`.
    fn layer_norm_backward_row<E>(x: &[E], weight: &[f32], eps: f32, dy: &[E], upstream: &[E], dx: &mut [E]) {
        let width = x.len();
        let (weight, dy, upstream, dx) = (&weight[..width], &dy[..width], &upstream[..width], &mut dx[..width]);
        let (mean, scale) = layer_scale(x, eps);
        let first = sum(width, |i| dy[i].widen() * weight[i]) / width as f32;
        let dot = |i: usize| dy[i].widen() * weight[i] * (x[i].widen() - mean);
        let second = sum(width, dot) * scale / width as f32;
        for i in 0..width {
            let d = scale * (dy[i].widen() * weight[i] - first - (x[i].widen() - mean) * scale * second);
            dx[i] = E::narrow(upstream[i].widen() + d);
        }
    }

    /// With n as above: `dg += dy·n`, `db += dy`.
    fn norm_gradients_row<E>(x: &[E], centred: bool, eps: f32, dy: &[E], d_weight: &mut [f32], d_bias: &mut [f32]) {
        let (mean, scale) = if centred { layer_scale(x, eps) } else { (0.0, rms_scale(x, eps)) };
        for (((x, dy), d_weight), d_bias) in x.iter().zip(dy).zip(d_weight).zip(d_bias) {
            *d_weight += dy.widen() * (x.widen() - mean) * scale;
            *d_bias += dy.widen();
        }
    }

    /// `silu(gate)·up`.
    fn silu_gate_row<E>(gate: &[E], up: &[E], y: &mut [E]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let g = g.widen();
            *y = E::narrow(g * sigmoid(g) * u.widen());
        }
    }

    /// `dy·up·σ(g)·(1 + g·(1 - σ(g)))`.
    fn silu_gate_d_gate_row<E>(gate: &[E], up: &[E], dy: &[E], d_gate: &mut [E]) {
        for (((d, g), u), dy) in d_gate.iter_mut().zip(gate).zip(up).zip(dy) {
            let g = g.widen();
            let s = sigmoid(g);
            *d = E::narrow(dy.widen() * u.widen() * s * (1.0 + g * (1.0 - s)));
        }
    }

    /// `x·Φ(x)`.
    fn gelu_row<E>(x: &[E], y: &mut [E]) {
        for (y, x) in y.iter_mut().zip(x) {
            let x = x.widen();
            *y = E::narrow(x * normal_cdf(x));
        }
    }

    /// `dy·(Φ(x) + x·φ(x))`.
    fn gelu_backward_row<E>(x: &[E], dy: &[E], dx: &mut [E]) {
        for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
            let x = x.widen();
            *dx = E::narrow(dy.widen() * (normal_cdf(x) + x * normal_density(x)));
        }
    }

    /// Pairs (j, j + half) turned by their angles.
    fn rotate_head<E>(head: &mut [E], cosines: &[f32], sines: &[f32], sign: f32) {
        let (first, second) = head.split_at_mut(cosines.len());
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            let (x, y, s) = (a.widen(), b.widen(), s * sign);
            (*a, *b) = (E::narrow(x * c - y * s), E::narrow(y * c + x * s));
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn rms_scale<E: Element>(x: &[E], eps: f32) -> f32 {
    let mean = sum(x.len(), |i| x[i].widen() * x[i].widen()) / x.len() as f32;
    inverse(mean, eps)
}

/// `1 / sqrt(square + eps)`; NaN where the square is beyond all numbers: 0 would make a row of nothing out of one that
/// overflowed, and an answer out of that.
#[inline(always)]
fn inverse(square: f32, eps: f32) -> f32 {
    if square.is_finite() { 1.0 / (square + eps).sqrt() } else { f32::NAN }
}

/// The mean and `1 / sqrt(variance + eps)`.
#[inline(always)]
fn layer_scale<E: Element>(x: &[E], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(x.len(), |i| x[i].widen()) / count;
    let variance = sum(x.len(), |i| (x[i].widen() - mean) * (x[i].widen() - mean)) / count;
    (mean, inverse(variance, eps))
}
